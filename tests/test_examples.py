"""The examples run offline, and turn into the other library's example again by undoing the one line."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
CHANGED = {
    "peft_lora.py": (
        "from ffalora import get_peft_model  # was: from peft import get_peft_model",
        "from peft import get_peft_model",
    ),
    "transformers_trainer.py": (
        "    ffalora.convert(model)  # the new line: every A is frozen, forward and backward are ours",
        "",
    ),
}


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    sys.modules.pop("offline", None)


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGED)
def test_an_example_learns_with_and_without_its_one_changed_line(name, tmp_path):
    ours = runpy.run_path(str(EXAMPLES / name))["main"]()
    changed, original = CHANGED[name]
    source = (EXAMPLES / name).read_text()
    assert source.count(changed) == 1
    (tmp_path / name).write_text(source.replace(changed, original))
    theirs = runpy.run_path(str(tmp_path / name))["main"]()
    before = {"peft_lora.py": 4.0, "transformers_trainer.py": 0.65}[name]
    assert ours < before and theirs < before


def test_the_private_example_meets_its_target():
    assert 7.5 < runpy.run_path(str(EXAMPLES / "private_trainer.py"))["main"]() <= 8.0
