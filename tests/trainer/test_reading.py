"""Samples that are augmented where they are read: each by random numbers of its own."""

import os
import random

import numpy as np
import pytest
import torch
from ranks import on_ranks
from test_private_trainer import N, StopAt, data, state, trainer
from test_trainer_processes import _as_launched
from transformers import set_seed

from ffalora.privacy.noise import SeededNoise
from ffalora.trainer import PrivacyArguments
from ffalora.training.reading import read

DRAWS = {
    "torch": lambda low, high, count: torch.randint(low, high, (count,)).tolist(),
    "numpy": lambda low, high, count: np.random.randint(low, high, count).tolist(),
    "random": lambda low, high, count: [random.randrange(low, high) for _ in range(count)],
}


class Augmented:
    """Samples of as many tokens, or of more where ``longer``, drawn by a generator of the process."""

    def __init__(self, draws, longer=0):
        self.draws, self.longer = draws, longer

    def __len__(self):
        return N

    def __getitem__(self, i):
        row = data()[i]
        count = len(row["input_ids"]) + (self.draws(0, self.longer + 1, 1)[0] if self.longer else 0)
        return row | {"input_ids": self.draws(5, 35, count)}


@pytest.fixture(params=DRAWS.values(), ids=DRAWS)
def draws(request):
    return request.param


def secure(folder, rows, **changes):
    run = trainer(folder, PrivacyArguments(noise_multiplier=1.0, max_grad_norm=1e-4), **changes)
    run.train_dataset = rows
    return run


def test_what_a_sample_draws_does_not_depend_on_who_is_read_before_it(draws):
    rows = Augmented(draws)
    whole = read(rows, np.arange(6), 3, 7)
    assert read(rows, np.array([1, 4]), 3, 7) == [whole[1], whole[4]]
    assert all(read(rows, np.arange(6), *other) != whole for other in ((4, 7), (3, 8)))


def test_the_operating_system_s_numbers_are_never_the_same_and_leave_no_trace(draws):
    readings = []
    for _ in range(2):
        set_seed(42)  # what the Trainer begins with
        expected = draws(0, 2**31 - 1, 4)
        set_seed(42)
        readings.append(read(Augmented(draws), np.arange(4), 0, None))
        assert draws(0, 2**31 - 1, 4) == expected
    assert all(first != second for first, second in zip(*readings, strict=True))


def test_an_item_that_fails_leaves_the_generators_as_they_were(draws):
    set_seed(1)
    expected = draws(0, 100, 8)
    set_seed(1)
    with pytest.raises(IndexError):
        read([], np.array([0]), 0, 5)
    assert draws(0, 100, 8) == expected


def test_one_record_moves_the_sum_of_augmented_samples_by_at_most_c(tmp_path, draws):
    run = secure(tmp_path, Augmented(draws))
    private = run._gradient(run._new_ledger(()), SeededNoise(0), False)
    everybody = np.arange(12)

    def clipped(samples):
        return private.clipped_sum(0, run._physical(samples, 0, 11))[0] / run.privacy.max_grad_norm

    moved = [float((clipped(everybody) - clipped(np.delete(everybody, out))).norm()) for out in (0, 5, 11)]
    assert max(moved) <= 1 + 1e-3 and min(moved) > 0.9  # every gradient is longer than C


def test_an_audit_finds_generators_that_samples_share_and_nothing_where_they_have_their_own(tmp_path, draws):
    assert secure(tmp_path, Augmented(draws)).audit(records=2).holds
    drawn = np.random.default_rng(0).integers
    shared = secure(tmp_path, Augmented(lambda low, high, count: drawn(low, high, count).tolist()))
    assert not shared.audit(records=2).holds


@pytest.mark.parametrize("noise", ["secure", "seeded"])
def test_steps_read_with_the_seed_of_a_simulation_and_no_other_noise_with_none(tmp_path, monkeypatch, noise):
    asked = []
    monkeypatch.setattr(
        "ffalora.trainer.private_trainer.read",
        lambda rows, samples, step, seed: (asked.append((step, seed)), [rows[int(i)] for i in samples])[1],
    )
    run = trainer(tmp_path, PrivacyArguments(noise_multiplier=1.0, noise=noise), max_steps=2)
    run.train()
    in_steps = asked[-2:]
    assert in_steps == ([(0, None), (1, None)] if noise == "secure" else [(0, 7), (1, 7)])


@pytest.mark.long
def test_a_resumed_simulation_reads_what_it_would_have_read(tmp_path, draws):
    def simulated(folder):
        run = trainer(tmp_path / folder, save_strategy="steps", save_steps=2, remove_unused_columns=False)
        run.train_dataset = Augmented(draws)
        return run

    whole, halted, resumed = simulated("whole"), simulated("halted"), simulated("halted")
    whole.train()
    halted.add_callback(StopAt(2))
    halted.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "halted" / "checkpoint-2"))
    assert torch.equal(state(resumed.model), state(whole.model))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_share_samples_whose_lengths_vary_from_reading_to_reading(tmp_path):
    def ended(folder, **changes):
        run = trainer(tmp_path / folder, PrivacyArguments(noise_multiplier=1.0, noise="seeded"), **changes)
        run.train_dataset = Augmented(DRAWS["torch"], longer=6)
        run.train()
        return state(run.model)

    def train(workers):
        _as_launched(workers)
        return ended("shared", gradient_accumulation_steps=1)

    alone = ended("alone")
    for theirs in on_ranks(2, train):
        torch.testing.assert_close(theirs, alone, rtol=1e-4, atol=1e-6)
