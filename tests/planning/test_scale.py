"""Plans past this machine: counted from byte functions, stated links and small cohorts; nothing is charged."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_runs import PRIVATE

from ffalora.cli import main
from ffalora.config import ConfigError, to_yaml
from ffalora.federated.experiment import build
from ffalora.planning.scale import Network, Pace, at_scale, measure_pace, timed_cohorts

PACE = Pace(
    fixed=0.1, client=0.01, alone=0.12, row=0.001, written=0.2, books=1e-6, evaluation=0.0, process_bytes=10**9,
    row_bytes=1000,
)  # fmt: skip


@pytest.fixture(scope="module")
def experiment(small):
    return build(small(federation__strategy="fedsa", **PRIVATE))


def test_bytes_are_those_of_the_byte_functions_and_time_that_of_small_cohorts_continued(experiment):
    server, wire = experiment.strategy.begin(), experiment.strategy.wire
    one = at_scale(experiment, PACE, 10**6, 1000)
    assert (one.up, one.down) == (wire.bytes_up(server), wire.bytes_down(server, [0]))
    assert one.traffic == 1000 * (one.up + one.down)
    assert one.simulated == pytest.approx(0.1 + 1000 * 0.01 + 1000 * 0.001 + 0.2 + 10**6 * 1e-6)
    shared = at_scale(experiment, PACE, 10**6, 1000, processes=10, network=Network(link=1e12))
    assert shared.simulated == pytest.approx(0.1 + 100 * 0.01 + 1000 * 0.001 + 1.2, rel=1e-3)
    slow = at_scale(experiment, PACE, 10**6, 1000, network=Network(up=8 * one.up, down=8 * one.down, latency=3.0))
    assert slow.real == pytest.approx(3.0 + 1.0 + 0.12 + 1.0 + 1000 * 0.001)


@pytest.mark.parametrize("strategy", ["fedsvd", "rolora", "hetlora"])
def test_bytes_are_those_of_rounds_after_the_first_however_many_clients_are_drawn(small, strategy):
    experiment = build(small(federation__strategy=strategy, federation__refactor_every=2))
    server, wire = experiment.strategy.begin(), experiment.strategy.wire
    rounds = [replace(server, round=number) for number in range(4, 8)]
    found = at_scale(experiment, PACE, 1000, 100)
    assert found.up == sum(map(wire.bytes_up, rounds)) // 4
    assert found.down == sum(wire.bytes_down(later, [0]) for later in rounds) // 4


@pytest.mark.parametrize("strategy", ["fedex", "flora"])
def test_methods_whose_downloads_grow_with_cohorts_are_refused(small, strategy):
    with pytest.raises(ConfigError, match=rf"{strategy}.*grows with each round's cohort"):
        at_scale(build(small(federation__strategy=strategy)), PACE, 10, 2)


def test_evaluations_are_counted_as_often_as_they_are_due_of_each_model_that_there_is(small):
    pace = replace(PACE, evaluation=3.0)
    for strategy, models in (("ffa", 1), ("fedsa", 100)):
        rare = build(small(federation__strategy=strategy, federation__evaluate_every=4, **PRIVATE))
        without, one = (at_scale(rare, each, 100, 10) for each in (PACE, pace))
        assert one.simulated - without.simulated == pytest.approx(models * 3.0 / 4)
        assert one.real - without.real == pytest.approx(3.0 / 4)


def test_memory_grows_with_the_cohort_and_what_clients_keep_is_on_the_disk(experiment):
    few, many = (at_scale(experiment, PACE, 10**6, drawn) for drawn in (10, 1010))
    assert many.process_bytes - few.process_bytes == 1000 * PACE.row_bytes
    assert few.disk_bytes == many.disk_bytes >= 10**6 * 4 * experiment.strategy.begin().row.numel()


@pytest.mark.parametrize("clients,drawn,processes", [(10, 11, 1), (10, 0, 1), (10, 1, 0)])
def test_a_size_that_cannot_be_is_refused(experiment, clients, drawn, processes):
    with pytest.raises(ValueError, match=f"clients={clients}, drawn={drawn}, processes={processes}"):
        at_scale(experiment, PACE, clients, drawn, processes)


def test_cohorts_that_are_timed_fill_whole_physical_batches_and_have_no_more_clients_than_ranks(small):
    together = build(small(optimizer__token_budget=256, **PRIVATE))
    few, many = timed_cohorts(together)
    assert few * 8 * together.train.lengths.mean() >= 256 and many == 4 * few
    assert timed_cohorts(build(small(federation__strategy="hetlora", clients__ranks=[1, 2, 2]))) == (2, 3)
    assert timed_cohorts(build(small(federation__one_pass="never"))) == (2, 6)


def test_measuring_changes_neither_ledgers_nor_clients(experiment):
    before = [vars(client).copy() for client in experiment.participants]
    pace = measure_pace(experiment)
    assert pace.alone > 0 and pace.client >= 0 and pace.books >= 0 and pace.written > 0 and pace.evaluation > 0
    assert pace.row_bytes == 2 * 4 * experiment.strategy.begin().row.numel()
    assert [vars(client) for client in experiment.participants] == before
    assert all(ledger.steps_taken == 0 for ledger in experiment.ledgers.values())


@pytest.mark.parametrize("mechanism", ["banded-mf", "blt"])
def test_short_runs_with_correlated_noise_are_measured_too(small, mechanism, monkeypatch):
    monkeypatch.setattr("ffalora.planning.scale._BOOKS", 2)
    terms = {"privacy__mechanism": mechanism, "privacy__band": 1 if mechanism == "banded-mf" else None}
    short = {"federation__rounds": 1, "federation__local_steps": 1, "federation__one_pass": "never"}
    pace = measure_pace(build(small(**PRIVATE | terms | short)))
    assert pace.alone > 0 and pace.written > 0


def test_the_command_says_memory_bytes_and_rounds_an_hour(small, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(to_yaml(small(optimizer__token_budget=256)))
    with pytest.raises(SystemExit) as done:
        main(["plan", str(tmp_path / "run.yaml"), "--gpus", "64", "--clients", "1e6", "--drawn", "1e3"])
    said = capsys.readouterr().out
    assert done.value.code == 0 and "1,000,000 clients, 1,000 of them in each round" in said
    assert all(word in said for word in ("memory", "wire", "simulated", "rounds an hour", "64 like this"))
