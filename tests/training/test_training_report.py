"""The report of a cohort that trained in several calls is that of its clients, whoever shared their calls."""

import torch

from ffalora.training.report import TrainingReport


def report(samples, rows, losses, nonfinite=None):
    losses = torch.tensor(losses, dtype=torch.float64)
    return TrainingReport(
        tokens=10, padded_tokens=20, samples_by_row=torch.tensor(samples), rows=torch.tensor(rows), losses=losses,
        nonfinite_by_row=torch.tensor(nonfinite or [0] * len(samples)), norms=10 * losses, above=losses > 2,
    )  # fmt: skip


def test_a_client_that_trained_on_counts_once_by_its_last_step():
    everyone = report([2, 3, 4], [0, 1, 1, 2], [1.0, 2.0, 3.0, 4.0])
    fast = report([5, 6], [0, 1], [7.0, 8.0], [1, 0])
    whole = TrainingReport.merged(3, [(torch.arange(3), everyone), (torch.tensor([2, 0]), fast)])
    assert whole.samples_by_row.tolist() == [8, 3, 9] and whole.nonfinite_by_row.tolist() == [0, 0, 1]
    assert (whole.rows.tolist(), whole.losses.tolist()) == ([1, 1, 2, 0], [2.0, 3.0, 7.0, 8.0])
    assert (whole.tokens, whole.padded_tokens) == (20, 40)
    assert whole.norms.tolist() == [20.0, 30.0, 70.0, 80.0] and whole.above.tolist() == [False, True, True, True]


def test_a_part_holds_its_own_samples_alone():
    whole = report([2, 3, 4], [0, 2, 1, 2], [1.0, 2.0, 3.0, 4.0], [0, 1, 2])
    part = whole.part(1, 3)
    assert (part.rows.tolist(), part.losses.tolist()) == ([1, 0, 1], [2.0, 3.0, 4.0])
    assert (part.samples, part.nonfinite) == (7, 3)


def test_a_cohort_of_nobody_has_an_empty_report():
    nobody = TrainingReport.merged(0, [])
    assert nobody.samples == nobody.nonfinite == 0 and nobody.loss != nobody.loss and nobody.clipped == 0.0
