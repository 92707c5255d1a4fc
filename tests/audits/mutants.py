"""The package broken on purpose, one way at a time: what is left of privacy when somebody gets it wrong.

A test takes a mutant from ``MUTANTS`` and applies it with pytest's monkeypatch. As a plugin (``pytest -p mutants`` with
``FFALORA_MUTANT`` set) this module breaks the package for a whole test session.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.sampling import SeededDraw, SystemDraw
from ffalora.training import gradients
from ffalora.training import step as step_module
from ffalora.training.engine import Engine
from ffalora.training.participant import Participant
from ffalora.training.step import LogicalStep


def noise_halved(patch) -> None:
    real = Participant.noise_std
    patch.setattr(Participant, "noise_std", lambda *arguments: real(*arguments) / 2)


def clipping_removed(patch) -> None:
    real = gradients.clip_reduce_

    def unclipped(total, arena, client, max_grad_norm, *rest, **options):
        return real(
            total, arena, client, torch.full_like(max_grad_norm, torch.inf), *rest, **options | {"mode": "flat"}
        )

    patch.setattr(gradients, "clip_reduce_", unclipped)


def head_without_noise(patch) -> None:
    real_update, real_step = LogicalStep._update, step_module.privatize_step_

    def update(self, *arguments):
        head = torch.zeros(self.setup.adapters.layout.width, dtype=torch.bool)
        for place in self.setup.adapters.layout.places:
            head[place.start : place.start + place.size] = place.tensor in ("weight", "bias")
        exact = self.total.clone()

        def step(state, total, **options):
            silent = state.clone()
            fresh = {k: v if v is None else v.clone() for k, v in options.items() if k in ("exp_avg", "exp_avg_sq")}
            real_step(silent, exact, **options | fresh | {"noise_std": torch.zeros_like(options["noise_std"])})
            real_step(state, total, **options)
            state[:, head] = silent[:, head]

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(step_module, "privatize_step_", step)
            real_update(self, *arguments)

    patch.setattr(LogicalStep, "_update", update)


def accounting_reset_each_round(patch) -> None:
    real = Engine.train

    def train(self, cohort, *arguments, **options):
        for participant in cohort:
            if participant.ledger is not None:
                participant.ledger.steps_taken = 0
        return real(self, cohort, *arguments, **options)

    patch.setattr(Engine, "train", train)


def poisson_replaced_by_a_fixed_batch(patch) -> None:
    for draw in (SeededDraw, SystemDraw):
        patch.setattr(draw, "__call__", lambda self, client, step, n, rate: np.arange(max(1, round(n * rate))))


def steps_are_not_charged(patch) -> None:
    patch.setattr(PrivacyLedger, "charge", lambda self, steps=1: None)


def empty_draws_add_no_noise(patch) -> None:
    real = LogicalStep._update

    def update(self, drawn, *rest):
        if sum(drawn):
            real(self, drawn, *rest)

    patch.setattr(LogicalStep, "_update", update)


MUTANTS = {
    mutant.__name__.replace("_", " "): mutant
    for mutant in (
        noise_halved, clipping_removed, head_without_noise, accounting_reset_each_round,
        poisson_replaced_by_a_fixed_batch, steps_are_not_charged, empty_draws_add_no_noise,
    )
}  # fmt: skip


def pytest_configure() -> None:
    """Breaks the package for the whole session, when loaded as a plugin with a mutant's name in the environment."""
    if name := os.environ.get("FFALORA_MUTANT"):
        MUTANTS[name](pytest.MonkeyPatch())
