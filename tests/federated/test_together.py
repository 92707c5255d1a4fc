"""Runs of one method that differ in values of a client's row train as one cohort, and end as they would alone."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file
from small_runs import CLIENT_LEVEL, PRIVATE

from ffalora.federated import simulate as training
from ffalora.federated.simulate import simulate
from ffalora.federated.together import shared_setting, simulate_together
from ffalora.runs.folder import METRICS
from ffalora.training.engine import Engine

#: What differs between three runs that share everything else.
VALUES = [
    {"optimizer__lr": 0.5},
    {"optimizer__lr": 2.0, "privacy__max_grad_norm": 0.02},
    {"optimizer__lr": 1.0, "privacy__target_epsilon": 2.0, "privacy__noise_multiplier": None},
]


def rows_of(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same_runs(one, other, bitwise):
    """Adapters, privacy and every number of every round but the seconds."""
    for name, tensor in adapter_of(one).items():
        if bitwise:
            assert torch.equal(tensor, adapter_of(other)[name]), name
        else:
            torch.testing.assert_close(tensor, adapter_of(other)[name], rtol=1e-4, atol=1e-6)
    assert (one / "privacy.json").read_text() == (other / "privacy.json").read_text()
    assert (one / "config.yaml").read_text() == (other / "config.yaml").read_text()
    for mine, alone in zip(rows_of(one), rows_of(other), strict=True):
        assert {key for key in mine if mine[key] is None} == {key for key in alone if alone[key] is None}
        for key in {key for key in mine if mine[key] is not None} - {"seconds", "padding"}:
            assert mine[key] == pytest.approx(alone[key], rel=0 if bitwise else 1e-3, abs=0 if bitwise else 1e-5), key


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        PRIVATE,
        PRIVATE | {"federation__strategy": "fedsb", "adapter__init": "orthonormal"},
        PRIVATE | {"optimizer__name": "adamw", "optimizer__keep_moments": True},
        PRIVATE | {"federation__prox_mu": 0.1, "federation__straggler_rate": 0.5, "federation__local_steps": 3},
        PRIVATE | {"federation__server_optimizer": "fedadam", "federation__server_lr": 0.01},
        PRIVATE | {"privacy__clipping": "per-layer"},
        PRIVATE | {"clients__count": 4, "federation__participation": 0.5, "federation__dropout_rate": 0.3},
        PRIVATE | {"adapter__dropout": 0.2},
    ],
    ids=[
        "plain",
        "core",
        "adamw with kept moments",
        "prox, stragglers",
        "fedadam",
        "per-layer",
        "drawn, dropping out",
        "dropout",
    ],
)
@pytest.mark.parametrize("one_pass", ["always", "never"])
def test_a_run_among_others_ends_where_it_ends_alone(small, tmp_path, changes, one_pass):
    configs = {
        tmp_path / f"run-{i}": small(**changes | {"federation__one_pass": one_pass, "federation__rounds": 2} | values)
        for i, values in enumerate(VALUES)
    }
    results = simulate_together(configs)
    ends = []
    for (folder, config), result in zip(configs.items(), results, strict=True):
        alone = simulate(config, tmp_path / f"alone-{folder.name}", progress=False)
        assert_same_runs(folder, alone.folder, bitwise=one_pass == "never")
        times = {"seconds": 0.0, "seconds_per_round": 0.0}
        assert result.summary | times | {"metrics": {}} == alone.summary | times | {"metrics": {}}
        ends.append(adapter_of(folder))
    assert all(
        not torch.equal(ends[0][name], other[name]) for other in ends[1:] for name in ends[0] if "lora_B" in name
    )


def test_without_privacy_a_run_among_others_ends_where_it_ends_alone(small, tmp_path):
    configs = {tmp_path / str(lr): small(federation__one_pass="always", optimizer__lr=lr) for lr in (0.1, 0.4)}
    simulate_together(configs)
    for folder, config in configs.items():
        alone = simulate(config, tmp_path / f"alone-{folder.name}", progress=False)
        assert_same_runs(folder, alone.folder, bitwise=False)


def test_adaptive_clipping_norms_of_runs_stay_apart(small, tmp_path):
    changes = PRIVATE | {"privacy__clipping": "adaptive", "federation__one_pass": "always"}
    configs = {
        tmp_path / str(c): small(**changes | {"privacy__max_grad_norm": c, "optimizer__lr": 0.5}) for c in (0.01, 1.0)
    }
    simulate_together(configs)
    for folder, config in configs.items():
        alone = simulate(config, tmp_path / f"alone-{folder.name}", progress=False)
        assert_same_runs(folder, alone.folder, bitwise=False)


def test_a_diverging_run_leaves_its_neighbours_sound_and_its_losses_are_its_own(small, tmp_path):
    changes = {"federation__one_pass": "always", "federation__rounds": 2}
    configs = {tmp_path / str(lr): small(**changes, optimizer__lr=lr) for lr in (0.5, 1e38)}
    simulate_together(configs)
    sound, lost = (rows_of(folder) for folder in configs)
    alone = simulate(configs[tmp_path / "0.5"], tmp_path / "alone", progress=False)
    assert_same_runs(tmp_path / "0.5", alone.folder, bitwise=False)
    assert [row["nonfinite"] for row in sound] == [0, 0]
    assert 0 < lost[0]["nonfinite"] <= lost[0]["samples"], "samples of passes whose gradient was not finite"


def test_the_seconds_of_a_shared_round_are_divided_among_its_runs(small, tmp_path, monkeypatch):
    """The clock moves only while somebody trains: 6 s a cohort."""
    now, train = [0.0], Engine.train

    def six_seconds(engine, *args, **options):
        now[0] += 6.0
        return train(engine, *args, **options)

    monkeypatch.setattr(Engine, "train", six_seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    configs = {tmp_path / str(i): small(**PRIVATE | values) for i, values in enumerate(VALUES)}
    simulate_together(configs)
    seconds = [row["seconds"] for folder in configs for row in rows_of(folder)]
    assert seconds == pytest.approx([now[0] / len(seconds)] * len(seconds), abs=1e-3) and now[0] > 0


def test_all_runs_of_a_round_share_one_pass(small, tmp_path, monkeypatch):
    passes, real = [], Engine.train

    def train(engine, cohort, *args, **options):
        passes.append(len(cohort))
        return real(engine, cohort, *args, **options)

    monkeypatch.setattr(Engine, "train", train)
    configs = {
        tmp_path / str(i): small(**PRIVATE | {"federation__one_pass": "always"} | values)
        for i, values in enumerate(VALUES)
    }
    simulate_together(configs)
    clients = len(rows_of(tmp_path / "0")[0]["epsilon_per_client"])
    assert set(passes) == {3 * clients} and len(passes) == len(rows_of(tmp_path / "0"))


@pytest.mark.long
@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_runs_interrupted_in_different_rounds_end_where_whole_ones_end(stop_at, small, tmp_path, monkeypatch):
    """``stop_at`` rounds, of all runs together, are on the disk when everything stops: one run may be ahead."""
    changes = PRIVATE | {"federation__one_pass": "never", "federation__rounds": 3, "optimizer__schedule": "cosine"}
    configs = {name: small(**changes | values) for name, values in zip("ab", VALUES, strict=False)}
    real, written = training.Run.complete_round, []

    def complete_round(run, row):
        if len(written) == stop_at:
            raise KeyboardInterrupt
        written.append(None)
        real(run, row)

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "complete_round", complete_round)
        with pytest.raises(KeyboardInterrupt):
            simulate_together({tmp_path / name: config for name, config in configs.items()})
    said = []
    simulate_together({tmp_path / name: config for name, config in configs.items()}, True, said.append)
    assert said[0] == stop_at and sum(said) == 2 * 3, "rounds done before count, and all of them are counted once"
    for name, config in configs.items():
        simulate(config, tmp_path / f"whole-{name}", progress=False)
        assert_same_runs(tmp_path / name, tmp_path / f"whole-{name}", bitwise=True)


def test_runs_that_differ_in_values_of_a_row_alone_may_train_together(small, tmp_path):
    base = shared_setting(small(**PRIVATE))
    assert base is not None
    for values in VALUES:
        assert shared_setting(small(**PRIVATE | values)) == base
    for other in [
        {"seed": 5}, {"adapter__alpha": 3.0}, {"adapter__seed": 7}, {"optimizer__batch_size": 3},
        {"federation__prox_mu": 0.5}, {"privacy__delta": 1e-6}, {"data__evaluate_on": "validation"},
    ]:  # fmt: skip
        assert shared_setting(small(**PRIVATE | other)) not in (None, base), other
    for alone in [
        PRIVATE | {"privacy__noise": "secure"},
        CLIENT_LEVEL,
        *(PRIVATE | {"federation__strategy": name} for name in ("lora", "fedsvd", "rolora", "fedsa", "hetlora")),
    ]:
        assert shared_setting(small(**alone)) is None, alone


def test_budgets_that_ask_for_other_batches_have_them_among_others_as_alone(small, tmp_path):
    terms = PRIVATE | {"privacy__noise_multiplier": None, "optimizer__batch_size": "auto", "federation__rounds": 1}
    configs = {tmp_path / f"eps-{epsilon}": small(**terms, privacy__target_epsilon=epsilon) for epsilon in (1.0, 8.0)}
    simulate_together(configs)
    for folder, config in configs.items():
        simulate(config, tmp_path / "alone" / folder.name, progress=False)
        assert_same_runs(folder, tmp_path / "alone" / folder.name, bitwise=False)


def test_runs_that_cannot_train_together_are_refused_before_they_begin(small, tmp_path):
    configs = {tmp_path / "a": small(**PRIVATE), tmp_path / "b": small(**PRIVATE | {"seed": 5})}
    with pytest.raises(ValueError, match=r"b cannot be trained together with .*optimizer\.lr"):
        simulate_together(configs)
    assert not list(tmp_path.iterdir())
