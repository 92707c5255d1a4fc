"""Mutants of dropout, detectors, audit and statement: each is seen by a check that the sound package passes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from mutants import MUTANTS
from tiny import ledger, participants, tiny_engine

from ffalora.audits import sample_canaries
from ffalora.audits.bounds import one_run_bound
from ffalora.privacy.noise import SecureNoise, SeededNoise
from ffalora.privacy.statement import PrivacyStatement
from ffalora.training.detectors import GradientWrong
from ffalora.training.dropout import DropoutKeys
from ffalora.training.sensitivity import probe_sensitivity


def _keys(noise, step):
    return DropoutKeys.of(noise, np.zeros(4, int), np.full(4, step), np.arange(4)).samples


def _trains():
    engine, adapters = tiny_engine()
    engine.train(participants(1), adapters.state()[None], 1)


def _is_raised(patch):
    MUTANTS["backward scaled"](patch)
    try:
        _trains()
    except GradientWrong:
        return True
    return False


def _near_the_bound():
    engine, adapters = tiny_engine()
    return probe_sensitivity(engine, participants(1), adapters.state()[None], 2).largest.ratio > 0.5


def _guesses_right():
    scores = np.arange(200.0)
    return sample_canaries.guess("", "", scores, scores >= 100, 1e-5, 0.05).epsilon_lower > 1


def _says_the_largest():
    both = [ledger(0, 40, 8), ledger(1, 20, 8)]
    for one in both:
        one.charge(5)
    said = PrivacyStatement.from_ledgers(both, "seeded", 1.0)
    return said.max_epsilon >= max(one.epsilon() for one in both)


def test_every_mutant_is_noticed_by_a_test_of_the_record():
    with open(Path(__file__).parents[2] / "benchmarks/data/mutations.csv", newline="", encoding="utf-8") as file:
        noticed = {row["broken"]: int(row["tests that notice"]) for row in csv.DictReader(file)}
    assert set(noticed) == set(MUTANTS) and min(noticed.values()) > 0


CHECKS = {
    "dropout masks repeat every step": lambda _: bool((_keys(SeededNoise(1), 0) != _keys(SeededNoise(1), 1)).all()),
    "secure dropout from a public seed": lambda _: bool((_keys(SecureNoise(), 0) != _keys(SecureNoise(), 0)).all()),
    "gradients are not compared": _is_raised,
    "probe leaves nothing out": lambda _: _near_the_bound(),
    "audit guesses by a coin": lambda _: _guesses_right(),
    "audit ignores delta": lambda _: (
        one_run_bound(1000, 500, 400, 0.0, 0.05) > one_run_bound(1000, 500, 400, 0.1, 0.05)
    ),
    "statement gives the smallest epsilon": lambda _: _says_the_largest(),
}


@pytest.mark.parametrize("mutant", CHECKS)
def test_a_check_passes_in_the_sound_package_and_fails_in_the_mutant(mutant, monkeypatch):
    with pytest.MonkeyPatch.context() as apart:
        assert CHECKS[mutant](apart)
    MUTANTS[mutant](monkeypatch)
    assert not CHECKS[mutant](monkeypatch)
