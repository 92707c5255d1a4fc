"""The report of a cohort that trained in several calls is that of its clients, whoever shared their calls."""

import torch

from ffalora.training.batches import PhysicalBatches
from ffalora.training.report import TrainingReport

PLAN = PhysicalBatches((), 10, 20)


def step(report, index, rows, norms, limits):
    norms = torch.tensor(norms, dtype=torch.float64)
    limits = None if limits is None else torch.tensor(limits, dtype=torch.float64)
    report.add_step(torch.tensor(index), torch.tensor(rows, dtype=torch.int64), norms.float() / 10, norms, limits, PLAN)


def test_a_client_that_trained_on_counts_once_by_its_last_step():
    whole = TrainingReport(3)
    step(whole, [0, 1, 2], [0, 1, 1, 2], [10.0, 20.0, 30.0, float("inf")], [20.0, 20.0, 20.0])
    step(whole, [2, 0], [0, 1], [70.0, 80.0], [100.0, 75.0])
    assert whole.samples.tolist() == [2, 2, 2] and whole.nonfinite.tolist() == [0, 0, 1]
    assert (whole.rows.tolist(), whole.losses.tolist()) == ([1, 1, 2, 0], [2.0, 3.0, 7.0, 8.0])
    assert (whole.tokens, whole.padded_tokens) == (20, 40)
    assert whole.norms.tolist() == [20.0, 30.0, 70.0, 80.0] and whole.above.tolist() == [False, True, False, True]
    step(whole, [1], [], [], [20.0])
    assert whole.rows.tolist() == [2, 0]


def test_a_part_holds_its_own_samples_alone():
    for limits in ([25.0] * 3, None):
        whole = TrainingReport(3)
        step(whole, [0, 1, 2], [0, 2, 1, 2], [10.0, 20.0, 30.0, 40.0], limits)
        part = whole.part(1, 3)
        assert (part.rows.tolist(), part.losses.tolist()) == ([1, 0, 1], [2.0, 3.0, 4.0])
        assert part.samples.tolist() == [1, 2] and part.nonfinite.tolist() == [0, 0]
        assert part.above.tolist() == ([] if limits is None else [False, True, True])


def test_what_is_written_down_is_of_finite_norms_and_rounded():
    whole = TrainingReport(1)
    step(whole, [0], [0, 0, 0, 0], [1.0, 2.0, 3.0, float("nan")], [1.5])
    assert whole.numbers() == {
        "train_loss": None, "median_norm": 2.0, "clipped": 0.6667, "nonfinite": 1, "padding": 0.5, "samples": 4
    }  # fmt: skip


def test_a_cohort_of_nobody_has_an_empty_report():
    assert TrainingReport(0).numbers() == {
        "train_loss": None, "median_norm": None, "clipped": 0.0, "nonfinite": 0, "padding": 0.0, "samples": 0
    }  # fmt: skip
