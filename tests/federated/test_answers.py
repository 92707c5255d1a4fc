"""What a server believes of its clients: which answers count, how far each moves the average, what each weighs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ffalora.federated.flower.answers import (
    NORM_CAP,
    WEIGHT_CAP,
    Answer,
    answer_weights,
    bound_rows,
    read_answer,
    sound_answers,
)

BY_SIZE = SimpleNamespace(federation=SimpleNamespace(weighting="size"))


def row(value=1.0, size=4, dtype=np.float32):
    return np.full(size, value, dtype=dtype)


@pytest.mark.parametrize(
    "numbers,said",
    [
        (row(np.nan), "NaN or Inf"),
        (row(np.inf), "NaN or Inf"),
        (row(size=3), r"shape \(3,\), \(4,\) is expected"),
        (row(size=4).reshape(2, 2), r"shape \(2, 2\)"),
        (row(dtype=np.float64), "float64, not float32"),
        (row(dtype=np.int64), "int64, not float32"),
        (np.array([None] * 4, dtype=object), "object, not float32"),
        (np.array(["a"] * 4), "not float32"),
        (None, "NoneType, not float32"),
    ],
)
def test_numbers_that_cannot_be_a_row_are_left_out_by_name_and_the_others_count(numbers, said):
    kept, rejected = sound_answers([Answer(1, numbers), Answer(0, row())], 4, 3, needs_samples=False)
    assert [answer.client for answer in kept] == [0] and list(rejected) == [1]
    import re

    assert re.search(said, rejected[1])


def test_ids_are_unique_and_of_this_federation():
    answers = [Answer(0, row()), Answer(1, row()), Answer(1, row(9)), Answer(99, row()), Answer(-1, row())]
    kept, rejected = sound_answers(answers, 4, 3, needs_samples=False)
    assert [answer.client for answer in kept] == [0] and sorted(rejected) == [-1, 1, 99]
    assert "2 answers came under this id" in rejected[1] and "0 … 2" in rejected[99]


def test_an_answer_without_its_size_does_not_count_where_sizes_are_weights():
    kept, rejected = sound_answers([Answer(0, row()), Answer(1, row(), samples=5)], 4, 2, needs_samples=True)
    assert [answer.client for answer in kept] == [1] and "how many samples" in rejected[0]


@pytest.mark.parametrize("samples", [0, -60, 1.5, float("nan"), "many", True])
def test_a_size_that_is_no_count_is_refused(samples):
    with pytest.raises(ValueError, match=r"client 2: samples="):
        read_answer({"client": 2, "samples": samples}, [row()])


@pytest.mark.parametrize(
    "report", [{}, {"client": "0"}, {"client": 1.0}, {"client": 0, "epsilon": -1.0}, {"client": 0, "epsilon": "2"}]
)
def test_words_of_another_kind_are_refused(report):
    with pytest.raises(ValueError, match="client"):
        read_answer(report, [row()])


def test_several_arrays_are_refused():
    with pytest.raises(
        ValueError, match=r"client 0: it sent 2 arrays of float32, float32; federation.payload=float32 is 1 of float32"
    ):
        read_answer({"client": 0}, [row(), row()])


def test_a_client_that_claims_to_hold_nearly_everything_weighs_at_most_ten_median_clients():
    answers = [Answer(0, row(), samples=50), Answer(1, row(), samples=60), Answer(2, row(), samples=10**15)]
    weights = answer_weights(answers, BY_SIZE)
    assert float(weights.sum()) == pytest.approx(1) and float(weights.min()) > 0
    assert float(weights[2] / weights[1]) == pytest.approx(WEIGHT_CAP)
    honest = answer_weights([Answer(0, row(), samples=50), Answer(1, row(), samples=150)], BY_SIZE)
    assert honest.tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize("factor", [1e6, 1e30, 3e38])
def test_an_update_far_longer_than_the_others_is_shortened_and_honest_ones_keep_their_bits(factor):
    starts = torch.zeros(4, 5)
    rows = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    rows[3] = rows[3] / rows[3].abs().max() * factor
    bounded, over = bound_rows(starts, rows)
    assert over == [3] and torch.equal(bounded[:3], rows[:3])
    assert float(bounded[3].norm()) <= 1.0001 * NORM_CAP * float(rows[:3].norm(dim=1).max())


def test_clients_that_did_not_move_do_not_hold_the_others_back():
    starts, rows = torch.ones(3, 2), torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]])
    bounded, over = bound_rows(starts, rows)
    assert torch.equal(bounded, rows) and over == []
