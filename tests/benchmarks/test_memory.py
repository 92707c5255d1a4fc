"""The memory table: the counter counts what lives, and a private step keeps within the bars."""

import csv

import bench_path  # noqa: F401
import memory
import memory_batches
import pytest
import torch
from memory import LiveBytes, broken_bars, measure, saved_bytes
from workload import roberta

META = torch.device("meta")


def test_freed_storage_is_no_longer_counted():
    with LiveBytes() as counter:
        a = torch.empty(1000, device=META)
        view = a.view(10, 100)[2:]
        b = a + 1
        assert counter.live == 8000 and counter.peak == 8000
        del a, b
        assert counter.live == 4000, "a view keeps its storage"
        del view
        assert counter.live == 0 and counter.peak == 8000


def test_saved_activations_count_once_and_weights_never():
    w = torch.nn.Parameter(torch.empty(50, 30, device=META))
    with LiveBytes() as counter:
        x = torch.empty(20, 30, device=META).requires_grad_()
        with saved_bytes(counter) as found:
            y = torch.tanh((x * 1.0) @ w.t())
            (y * y).sum()
        assert found["saved"] == 4 * (20 * 30 + 20 * 50 + 50 * 30)
        counter.alive()


@pytest.fixture(scope="module")
def rows():
    compared = ("floor", "opacus hooks", "opacus hooks, a frozen", "ours")
    work = roberta(META, 256, 2, 4, 500, samples=32, batch=32, length=32)
    return measure(work, {name: memory.PROVIDERS[name] for name in compared})


@pytest.mark.long
def test_private_step_stays_within_its_bars(rows):
    assert broken_bars(rows) == []


def test_broken_bar_is_noticed(rows):
    worse = [row | ({"extra_mib": 1e6} if row["provider"] == "ours" else {}) for row in rows]
    assert len(broken_bars(worse)) == 2


def test_arena_is_no_larger_than_opacus_per_sample_gradients(rows):
    held = {row["provider"]: row["held_mib"] for row in rows}
    arena = 32 * 2 * 2 * 256 * 8 * 4 / 2**20
    assert arena - 0.1 <= held["ours"] - held["floor"] <= 1.3 * arena
    assert held["ours"] <= held["opacus hooks, a frozen"]


def test_committed_table_keeps_the_bars():
    if not memory.TABLE.exists():
        pytest.skip("benchmarks/data/memory.csv is not written yet: python benchmarks/memory.py --write")
    committed = list(csv.DictReader(memory.TABLE.open(newline="")))
    assert {row["provider"] for row in committed} == set(memory.PROVIDERS)
    assert broken_bars(committed) == []


def test_picture_and_table_hold_every_batch_and_provider(tmp_path):
    with memory_batches.TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = {(int(row["batch"]), row["provider"]) for row in rows}
    assert pairs == {(batch, name) for batch in memory_batches.BATCHES for name in memory_batches.COMPARED}
    for batch in memory_batches.BATCHES:
        assert broken_bars([row for row in rows if int(row["batch"]) == batch]) == []
    memory_batches.draw(rows, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 0
    assert memory_batches.drift(rows) == []
    assert len(memory_batches.drift([rows[0] | {"peak_mib": "1"}])) == 1


@pytest.mark.slow
def test_committed_memory_of_a_batch_is_that_of_a_recount():
    assert memory_batches.drift(memory_batches.measure_batches((8,))) == []


@pytest.mark.slow
def test_committed_memory_table_is_that_of_a_recount():
    assert memory.main(["--check"]) == 0
