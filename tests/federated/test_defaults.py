"""What people run: a model, their data and nothing else said. Trained, interrupted, gone on with, evaluated, asked,
exported; the other tests set rates, heads and formats of their own.
"""

import pytest
import torch
from safetensors.torch import load_file
from small_runs import save_model, save_texts

from ffalora.config import from_mapping, merge
from ffalora.federated.simulate import simulate
from ffalora.runs.bundle import evaluate, predict
from ffalora.runs.export import export
from ffalora.training.engine import Engine

PRIVATE = {"privacy": {"unit": "sample", "target_epsilon": 6.0}}
RUNS = {
    "defaults": {},
    "private": PRIVATE,
    "private, with texts of the classes": PRIVATE
    | {"data.label_texts": {"0": ["word30 word31", "word38"], "1": ["word1 word2", "word7"]}},
    "private LoRA": PRIVATE | {"federation.strategy": "lora"},
    "another adapter": {"adapter.method": "vera"},
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """A configuration of a model, its data and few rounds, with changes."""
    folder = tmp_path_factory.mktemp("usual")
    model, data = save_model(folder / "model"), save_texts(folder / "texts.csv")
    base = {"model": {"name": str(model)}, "data": {"name": str(data)}, "federation": {"rounds": 2, "local_steps": 2}}
    return lambda changes: from_mapping(merge(base, changes))


@pytest.mark.long
@pytest.mark.parametrize("named", RUNS)
def test_a_run_of_the_defaults_goes_on_and_is_used(named, usual, tmp_path, monkeypatch):
    config, whole, cut = usual(RUNS[named]), tmp_path / "whole", tmp_path / "cut"
    result = simulate(config, whole, progress=False)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Engine, "train", _interrupted_in_the_second_round(Engine.train))
        simulate(config, cut, progress=False)
    simulate(config, cut, resume=True, progress=False)
    first, second = (load_file(next((run / "adapter").glob("*.safetensors"))) for run in (whole, cut))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    metrics = evaluate(whole)
    assert metrics["loss"] == pytest.approx(result.rounds[-1]["metrics"]["loss"], rel=1e-4)
    (answer,) = predict(whole, ["word1 word2 word3"])
    assert answer["label"] in ("0", "1") and sum(answer["probabilities"].values()) == pytest.approx(1.0)
    export(whole, tmp_path / "shared", merged=config.adapter.method != "lora")
    assert (tmp_path / "shared" / "README.md").exists()
    assert (result.summary["epsilon"] or 0) <= 6.0


def _interrupted_in_the_second_round(train):
    calls = []

    def once(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    return once
