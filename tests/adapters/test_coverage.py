"""Every architecture of docs/coverage.md still does what its row says."""

import pytest
from architectures import ARCHITECTURES, DOCUMENT, examine

REFUSED = {"DeBERTa-v2, shared position keys": "does not lead with", "ResNet (batch normalisation)": "mixes samples"}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_architecture_trains_privately_and_travels_to_peft(architecture):
    row = examine(architecture)
    if architecture.name in REFUSED:
        assert REFUSED[architecture.name] in row.refusal
        return
    assert not row.refusal
    assert row.gradients < 1e-5, "a sample's row in the arena is not that sample's gradient"
    assert row.peft < 1e-5, "PEFT answers differently with our files"
    assert row.merged < 1e-5, "merging changed the outputs"


def test_the_committed_table_lists_every_architecture():
    table = DOCUMENT.read_text()
    missing = [a.name for a in ARCHITECTURES if f"| {a.name} |" not in table]
    assert not missing, f"run python tests/adapters/architectures.py: {missing} are not in the table"
