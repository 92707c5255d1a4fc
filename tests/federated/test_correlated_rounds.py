"""Rounds with correlated noise: resumed to the bit, charged anew where noise is secret, refused where not derived."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_runs import PRIVATE, save_model, save_texts, small_config

import ffalora.federated.simulate as module
from ffalora.config import ConfigError
from ffalora.federated.experiment import build
from ffalora.federated.flower.rounds import check_remote
from ffalora.federated.simulate import simulate
from ffalora.privacy.accounting import PrivacyBudgetSpent
from ffalora.runs.folder import CHECKPOINT, LEDGERS

BANDED = PRIVATE | {"privacy__mechanism": "banded-mf", "privacy__band": 4}
BLT = PRIVATE | {"privacy__mechanism": "blt"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("correlated")
    model, data = save_model(folder / "model"), save_texts(folder / "texts.csv")
    return lambda **changes: small_config(model, data, **changes)


def stop_after(patch, rounds: int) -> None:
    real, done = module.run_round, []

    def run_round(*arguments):
        if len(done) == rounds:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    patch.setattr(module, "run_round", run_round)


@pytest.mark.parametrize("changes", [BANDED, BLT, BLT | {"federation__participation": 0.67}])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(small, tmp_path, monkeypatch, changes):
    config = small(**changes)
    simulate(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, tmp_path / "cut", progress=False)
    simulate(config, tmp_path / "cut", resume=True, progress=False)
    whole, cut = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "cut"))
    assert {"noise.0", "noise.1", "noise.2"} <= set(whole)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_secure_run_that_is_interrupted_is_charged_whole_releases_and_writes_no_noise(small, tmp_path, monkeypatch):
    config = small(**BANDED, privacy__noise="secure", privacy__ledger=f"{tmp_path}/ledger")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, tmp_path / "run", progress=False)
    assert not any(name.startswith("noise") for name in load_file(tmp_path / "run" / CHECKPOINT))
    simulate(config, tmp_path / "run", resume=True, progress=False)
    said = json.loads((tmp_path / "run/privacy.json").read_text())
    for name in "012":
        written = json.loads((tmp_path / "run" / LEDGERS / f"{name}.json").read_text())
        assert written["steps_taken"] == 6, "two steps, two of a release that was given up, two of the next round"
        assert said["clients"][int(name)]["history"][-1][2] == 2


def test_the_probe_beside_a_run_with_correlated_noise_has_a_ledger_for_independent_noise(small, tmp_path):
    config = small(**BANDED, baselines=True, adapter__head="trained")
    simulate(config, tmp_path / "run", progress=False)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    limit = max(c["final_epsilon"] for c in json.loads((tmp_path / "run/privacy.json").read_text())["clients"])
    found = [row["epsilon"] for row in summary["baselines"] if row["epsilon"]]
    assert found and all(0.9 * limit < epsilon <= 1.001 * limit for epsilon in found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation__strategy": "fedsvd"}, "privacy.mechanism='banded-mf' does not go with"),
        ({"federation__strategy": "flora"}, "privacy.mechanism='banded-mf' does not go with"),
        ({"privacy__clipping": "adaptive"}, "not derived for clipping='adaptive'"),
        ({"privacy__sampling": "shuffled"}, "not derived for sampling='shuffled'"),
        ({"privacy__unit": "client"}, "not derived for unit='client'"),
        ({"privacy__public_size_bound": 99}, "leave public_size_bound out"),
        ({"privacy__band": 7}, "band=7 must lie in 1 … 4"),
        ({"privacy__band": None}, "does not say which band is best"),
        ({"privacy__mechanism": "blt"}, "band=4 is of mechanism='banded-mf'"),
        ({"privacy__mechanism": "tree", "privacy__band": None}, "banded-mf"),
        ({"optimizer__dp_bias_correction": True}, "variance of independent noise"),
    ],
)
def test_what_is_not_derived_for_correlated_noise_is_refused_by_name(small, changes, said):
    with pytest.raises(ValueError, match=said):
        build(small(**BANDED | changes))


def test_flower_and_plans_refuse_correlated_noise_by_name(small):
    from ffalora.planning.plan import make_plans

    config = small(**BLT | {"privacy__noise_multiplier": None, "privacy__target_epsilon": 5.0})
    for refuses in (check_remote, make_plans):
        with pytest.raises(ConfigError, match=r"privacy\.mechanism=.blt."):
            refuses(config)


def test_a_secure_run_whose_noise_spans_all_steps_cannot_go_on(small, tmp_path, monkeypatch):
    config = small(**BLT, privacy__noise="secure", privacy__ledger=f"{tmp_path}/ledger")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            simulate(config, tmp_path / "run", progress=False)
    with pytest.raises(PrivacyBudgetSpent, match="begin anew"):
        simulate(config, tmp_path / "run", resume=True, progress=False)
