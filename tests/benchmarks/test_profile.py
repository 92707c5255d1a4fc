"""The profile of a job: operations land in their part, the whole step is accounted for, nothing of the job is left
over.
"""

import json

import pytest
from small_runs import PRIVATE, save_model, save_texts, small_config

from ffalora.federated.profile import PARTS, part_of, profile_run

RANKS = {8}


@pytest.mark.parametrize(
    "name,shapes,part",
    [
        ("aten::addmm", [[384], [2048, 384], [384, 384]], "base products"),
        ("aten::mm", [[2048, 384], [384, 8]], "adapters"),
        ("ffalora::backward", [[2048, 384], [2048, 8]], "adapters"),
        ("ffalora::clip_reduce_", [[1, 36864], [64, 36864]], "clipping"),
        ("ffalora::privatize_step_", [[1, 36864]], "noise and optimiser"),
        ("aten::_softmax", [[64, 12, 32, 32]], "attention"),
        ("aten::bmm", [[768, 32, 32], [768, 32, 32]], "attention"),
        ("ffalora: data", [], "data"),
        ("aten::native_layer_norm", [[64, 32, 384]], "everything else"),
    ],
)
def test_operation_lands_in_its_part(name, shapes, part):
    assert part_of(name, shapes, RANKS) == part


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    config = small_config(save_model(folder / "model"), save_texts(folder / "texts.csv"), **PRIVATE)
    return profile_run(config, folder / "out", steps=2), folder / "out"


def test_every_part_of_a_private_step_has_its_time(profiled):
    found, folder = profiled
    assert set(found.milliseconds) == set(PARTS)
    assert all(found.milliseconds[part] > 0 for part in PARTS), found.milliseconds
    assert found.steps == 2 and found.samples > 0 and 0 <= found.padding < 1
    assert found.memory["arena"] > 0 and found.memory["activations, at most"] > 0
    assert json.loads((folder / "profile.json").read_text())["milliseconds"] == found.milliseconds


def test_trace_can_be_opened(profiled):
    trace = json.loads(profiled[0].trace.read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"ffalora::backward", "ffalora::clip_reduce_", "ffalora: data"} <= names


def test_text_fits_one_screen(profiled):
    text = profiled[0].to_text()
    assert len(text.splitlines()) <= 24
    assert all(part in text for part in PARTS)


def test_profile_without_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        profile_run(None, tmp_path, steps=0)
