"""A run that several processes share ends where one process ends, in one folder, with every step charged once."""

import json
import os
import shutil
from functools import partial

import pytest
import torch
from ranks import on_ranks
from safetensors.torch import load_file
from small_runs import CLIENT_LEVEL, PRIVATE

from ffalora.adapters import CheckpointError
from ffalora.config import ConfigError
from ffalora.federated import checks
from ffalora.federated import simulate as simulate_module
from ffalora.federated.experiment import build
from ffalora.federated.one_site import train
from ffalora.federated.simulate import simulate
from ffalora.federated.together import simulate_together
from ffalora.runs.folder import BASELINES, LEDGERS
from ffalora.training.step import LogicalStep
from ffalora.training.workers import LeadStopped, Workers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SECURE = PRIVATE | {"privacy__noise": "secure"}
RUNS = {
    "one site, private": (train, PRIVATE | {"privacy__noise": "seeded", "clients__count": 1}),
    "clients dealt out": (simulate, PRIVATE | {"clients__count": 4}),
    "clients dealt out, moments kept, adaptive": (
        simulate,
        PRIVATE
        | {"clients__count": 4, "optimizer__momentum": 0.5, "optimizer__keep_moments": True}
        | {"privacy__clipping": "adaptive"},
    ),
    "slow and vanishing clients, plain": (
        simulate,
        {"clients__count": 6, "federation__straggler_rate": 0.5, "federation__dropout_rate": 0.2},
    ),
    "clients dealt out, dropout": (
        simulate,
        {"clients__count": 4, "federation__participation": 0.75, "adapter__dropout": 0.3},
    ),
    "too few clients to deal out": (simulate, PRIVATE | {"clients__count": 2, "federation__participation": 0.5}),
    "clients dealt out, correlated noise": (
        simulate,
        PRIVATE
        | {
            "clients__count": 6,
            "federation__participation": 0.67,
            "privacy__mechanism": "banded-mf",
            "privacy__band": 2,
        },
    ),
    "client level": (simulate, CLIENT_LEVEL | {"clients__count": 6}),
    "one site, steps of products": (
        train,
        PRIVATE | {"privacy__noise": "seeded", "clients__count": 1, "federation__strategy": "prism"},
    ),
    "fedsa": (simulate, {"federation__strategy": "fedsa", "clients__count": 4, "federation__participation": 0.5}),
}


def _numbers(folder):
    files = sorted((folder / "adapter").glob("*.safetensors"))
    return torch.cat([value.double().flatten() for file in files for _, value in sorted(load_file(file).items())])


def _rms(folder, other):
    found, expected = _numbers(folder), _numbers(other)
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def _rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _share(run, config, folder, size, resume=False):
    return on_ranks(size, lambda workers: run(config, folder, resume, progress=False).summary)


_QUICK = [
    ("one site, private", (2, 3)),
    ("clients dealt out, moments kept, adaptive", (2,)),
    ("client level", (2,)),
    ("one site, steps of products", (2,)),
    ("clients dealt out, correlated noise", (2,)),
]


@pytest.mark.long
@pytest.mark.parametrize("name,sizes", [*_QUICK, *(pytest.param(n, (2, 3), marks=pytest.mark.slow) for n in RUNS)])
def test_processes_end_where_one_ends_with_the_same_epsilon(name, sizes, small, tmp_path):
    run, changes = RUNS[name]
    config = small(**changes)
    run(config, tmp_path / "one", progress=False)
    for size in sizes:
        folder = tmp_path / f"{size}"
        summaries = _share(run, config, folder, size)
        assert all(summary == summaries[0] for summary in summaries)
        assert _rms(folder, tmp_path / "one") <= 1e-5
        for ours, expected in zip(_rows(folder), _rows(tmp_path / "one"), strict=True):
            same = ("round", "epsilon", "epsilon_per_client", "bytes_up", "bytes_down", "dropped", "samples")
            assert {key: ours[key] for key in same} == {key: expected[key] for key in same}
            assert ours["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
            assert ours["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
        assert json.loads((folder / "environment.json").read_text())["processes"] == size
        assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "one").iterdir())


def test_clients_that_train_one_after_another_end_at_the_same_bits_wherever_they_train(small, tmp_path):
    config = small(**PRIVATE, clients__count=4, federation__one_pass="never")
    simulate(config, tmp_path / "one", progress=False)
    _share(simulate, config, tmp_path / "two", 2)
    assert torch.equal(_numbers(tmp_path / "one"), _numbers(tmp_path / "two"))


class _Stop(Exception):
    pass


def _stopped_after(rounds, run, config, folder):
    """Ends all processes after some rounds, as a kill between two rounds would."""
    real = simulate_module.run_round

    def round_or_stop(experiment, server):
        if server.round == rounds:
            raise _Stop
        return real(experiment, server)

    simulate_module.run_round = round_or_stop
    with pytest.raises(_Stop):
        run(config, folder, progress=False)


@pytest.mark.parametrize(
    "name",
    [
        "one site, private",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in RUNS
            if "adaptive" in name or "level" in name or "corr" in name
        ),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes_to_the_same_result(name, small, tmp_path):
    run, changes = RUNS[name]
    config = small(**changes)
    run(config, tmp_path / "whole", progress=False)
    on_ranks(2, lambda workers: _stopped_after(1, run, config, tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    _share(run, config, tmp_path / "run", 3, resume=True)
    run(config, tmp_path / "alone", resume=True, progress=False)
    for folder in (tmp_path / "run", tmp_path / "alone"):
        assert _rms(folder, tmp_path / "whole") <= 1e-5
        assert _rows(folder)[-1]["epsilon"] == _rows(tmp_path / "whole")[-1]["epsilon"]


_SHARDED = {
    "one site, baselines, a trained head": (
        "one site, private",
        {"adapter__head": "trained", "baselines": True, "federation__rounds": 2},
    ),
    "all share the steps of every client": ("clients dealt out", {"federation__one_pass": "never"}),
    "fedsa, whose clients are evaluated apart": ("fedsa", {}),
}


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if "head" in n else pytest.mark.slow) for n in _SHARDED])
def test_processes_that_hold_parts_of_the_base_end_where_one_ends_that_holds_it_whole(name, small, tmp_path):
    (run, changes), more = RUNS[_SHARDED[name][0]], _SHARDED[name][1]
    run(small(**changes | more), tmp_path / "one", progress=False)
    config, folder = small(**changes | more, model__shard=True), tmp_path / "run"
    on_ranks(2, lambda workers: _stopped_after(1, run, config, folder))
    _share(run, config, folder, 3, resume=True)
    assert _rms(folder, tmp_path / "one") <= 1e-5
    for ours, expected in zip(_rows(folder), _rows(tmp_path / "one"), strict=True):
        assert (ours["epsilon"], ours["samples"]) == (expected["epsilon"], expected["samples"])
        assert ours["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
    if more.get("baselines"):
        ours, expected = (json.loads((each / BASELINES).read_text()) for each in (folder, tmp_path / "one"))
        assert ours == expected


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"model__compile": True}, "set model.compile to false"),
        ({"model__cache_frozen_layers": "always"}, "takes layers out of it"),
        ({"adapter__init": "pissa"}, "takes factors from whole weights"),
        ({"federation__strategy": "fedex"}, "model.shard=True does not go with federation.strategy='fedex'"),
    ],
)
def test_what_does_not_go_with_parts_of_the_base_is_refused_by_name(changes, said, small, monkeypatch):
    with pytest.raises(ConfigError, match="and this is the only one; start several with torchrun"):
        build(small(**changes, model__shard=True))
    monkeypatch.setattr(checks, "find_workers", lambda: Workers(0, 2))
    with pytest.raises(ConfigError, match=said):
        build(small(**changes, model__shard=True))


def test_a_resumed_run_is_bit_identical_on_as_many_processes(small, tmp_path):
    run, changes = RUNS["one site, private"]
    config = small(**changes)
    _share(run, config, tmp_path / "whole", 2)
    on_ranks(2, lambda workers: _stopped_after(1, run, config, tmp_path / "run"))
    _share(run, config, tmp_path / "run", 2, resume=True)
    assert torch.equal(_numbers(tmp_path / "run"), _numbers(tmp_path / "whole"))


@pytest.mark.long
@pytest.mark.parametrize("run,clients", [(train, 1), (simulate, 4)])
def test_a_secure_run_is_charged_once_whatever_the_number_of_processes(run, clients, small, tmp_path, monkeypatch):
    config = small(**SECURE, clients__count=clients)
    _share(run, config, tmp_path / "run", 2)
    for client in range(clients):
        ledger = json.loads((tmp_path / "run" / LEDGERS / f"{client}.json").read_text())
        assert ledger["steps_taken"] == 3 * 2
    monkeypatch.setenv("FFALORA_LEDGERS", str(tmp_path / "other"))  # where nothing was spent on these records
    run(config, tmp_path / "alone", progress=False)
    assert [r["epsilon"] for r in _rows(tmp_path / "run")] == [r["epsilon"] for r in _rows(tmp_path / "alone")]


def test_a_secure_run_whose_process_died_goes_on_with_every_release_charged(small, tmp_path):
    config, folder = small(**SECURE, clients__count=1), tmp_path / "run"

    def die(workers):
        real = LogicalStep.passes

        def sums_or_die(step, *arguments):
            if workers.rank == 1 and step.cohort[0].steps_taken == 2:
                os._exit(9)
            return real(step, *arguments)

        LogicalStep.passes = sums_or_die
        with pytest.raises(RuntimeError, match="lost the others"):
            train(config, folder, progress=False)

    assert on_ranks(2, die) == [None, None]
    released = json.loads((folder / LEDGERS / "0.json").read_text())["steps_taken"]
    assert released == 2 + 1  # a round, and the step that was charged and never ended
    _share(train, config, folder, 2, resume=True)  # the round again; what is left does not cover another one
    assert json.loads((folder / LEDGERS / "0.json").read_text())["steps_taken"] == 2 + 1 + 2


def test_a_folder_in_use_is_refused_on_all_processes_and_stays_as_it_is(small, tmp_path):
    config, folder = small(clients__count=2, federation__rounds=1), tmp_path / "run"
    simulate(config, folder, progress=False)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    def again(workers):
        with pytest.raises(CheckpointError if workers.leads else LeadStopped, match="holds a run already"):
            simulate(config, folder, progress=False)

    on_ranks(2, again)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_processes_with_other_frozen_factors_are_refused(small, tmp_path):
    def start(workers):
        config = small(clients__count=2, adapter__seed=workers.rank)
        with pytest.raises(ValueError, match=r"hold other frozen factors than process"):
            simulate(config, tmp_path / "run", progress=False)

    on_ranks(2, start)


def test_runs_that_train_together_are_refused_on_several_processes(small, tmp_path):
    configs = {tmp_path / "run": small(clients__count=2)}

    def start(workers):
        with pytest.raises(ValueError, match="one process, and this is one of 2"):
            simulate_together(configs)

    on_ranks(2, start)


def test_clients_are_dealt_out_by_their_tokens(small, tmp_path):
    config = small(clients__count=4, clients__partition="quantity", clients__quantities=[0.4, 0.2, 0.2, 0.2])

    def busy(size, workers):
        from ffalora.federated.shared_rounds import dealt_clients

        experiment = build(config)
        experiment.workers = workers
        clients = experiment.participants
        return dealt_clients(experiment, clients, [2, 2, 2, 6]), dealt_clients(experiment, clients[:1], [2])

    for dealt, alone in on_ranks(2, partial(busy, 2)):
        assert alone is None  # fewer clients than processes share every step
        assert dealt.tolist() == [1, 1, 1, 0]
