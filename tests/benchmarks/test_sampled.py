"""Sampled counts of big launches: they agree with a count of all programs, and the committed ones have not drifted."""

import bench_path  # noqa: F401
import numpy as np
import pytest

pytest.importorskip("triton")
import emulate
import recount
import sampled

from ffalora_kernels.ops import SCHEMAS

#: Grids that are longer than what is run of them, and small enough to be counted in full.
CASES = {
    "backward": lambda: emulate.backward(90, [16] * 24, 256 * 15 + 96, 12, True, ""),
    "backward, split segments": lambda: emulate.backward(90, [1024] * 3, 256 * 4, 8, True, ""),
    "expand_": lambda: emulate.expand(90, 64 * 20, 256 * 14, 8),
    "outer": lambda: emulate.outer(90, [16] * 20, 8, 128 * 15),
    "clip_reduce_, norms given": lambda: emulate.clip(90, 14, 2048 * 20, 1, True),
    "clip_reduce_, norms from the arena": lambda: emulate.clip(90, 14, 2048 * 20, 1, False),
    "privatize_step_": lambda: emulate.privatize(90, 1, 40000, 2),
}
FAST = ("privatize_step_", "outer", "clip_reduce_, norms given")


def agree(case: str) -> None:
    whole, sample = emulate.count(CASES[case]()), sampled.estimate(CASES[case]())
    assert sample["run"] < sample["programs"], "the sample is the whole grid"
    assert sample["unique_bytes"] == pytest.approx(whole["unique_bytes"], rel=sampled.BOUND)


@pytest.mark.parametrize("case", FAST)
def test_sample_agrees_with_the_count_of_all_programs(case):
    agree(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(set(CASES) - set(FAST)))
def test_sample_agrees_with_the_count_of_all_programs_of_larger_grids(case):
    agree(case)


@pytest.mark.parametrize("rows,columns", [(3, 40), (40, 3), (40, 50), (1, 200), (200, 1), (5, 5)])
def test_union_of_sets_counts_what_is_shared_once(rows, columns):
    """A program reads a tile that straddles the next one, its row's and its column's share, and what all read."""

    def touched(i, j):
        own = i * (8 * columns + 100) + 8 * j + np.arange(9)
        return np.concatenate([own, 10**6 + 4 * i + np.arange(4), 2 * 10**6 + 4 * j + np.arange(4), [3 * 10**6]])

    whole = len(np.unique(np.concatenate([touched(i, j) for i in range(rows) for j in range(columns)])))
    assert sampled.union(rows, columns, touched) == pytest.approx(whole, rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("op", [key[0] for key in recount.counts()])
def test_committed_emulator_count_is_that_of_a_recount(op):
    key, again = next((k, v) for k, v in recount.counts().items() if k[0] == op)
    assert recount.drift(again(), key, emulate.CSV) is None


@pytest.mark.parametrize("op", list(SCHEMAS))
def test_committed_sample_is_that_of_a_recount(op):
    key, again = next((k, v) for k, v in recount.samples().items() if k[0] == op)
    assert recount.drift(again(), key, sampled.CSV) is None


def test_drift_of_a_count_is_noticed():
    for path, columns in ((emulate.CSV, ("op", "shape", "variant", "part")), (sampled.CSV, ("op", "case", "part"))):
        row = recount.read_table(path)[0]
        key = tuple(row[c] for c in columns)
        assert recount.drift(row, key, path) is None
        assert recount.drift(row | {"unique_bytes": "1"}, key, path) is not None
        assert recount.drift(row, ("unknown", *key[1:]), path) is not None
