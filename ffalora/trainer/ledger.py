"""The ledger of a call of ``PrivateTrainer.train``: what it may spend, after what was spent on the same data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer

from ..data.examples import fingerprint_rows
from ..privacy.accountants import noise_multiplier_for
from ..privacy.accounting import PrivacyBudgetSpent, PrivacyLedger
from ..privacy.ledger_files import LEDGER_FILE, load_ledger
from ..privacy.prior import read_prior
from ..privacy.spent import Spent
from .terms import PUSHES, PrivacyArguments


def new_ledger(
    privacy: PrivacyArguments, dataset: Any, expected_batch: int, steps: int, spent: tuple[Spent, ...]
) -> PrivacyLedger:
    """The ledger of a run that begins.

    Args:
        privacy: what is promised; dataset: what is trained on.
        expected_batch: samples in a logical step, on average; steps: the most that will be taken.
        spent: on this data until then; nothing stands for what ``privacy`` gives as prior.

    Raises:
        PrivacyBudgetSpent: the target allows no further step. ValueError: it cannot be met, or is spent by the prior.
    """
    n, prior, sigma = len(dataset), spent or given(privacy), privacy.noise_multiplier
    rate = min(1.0, expected_batch / n)
    if privacy.target_epsilon is not None:
        try:
            terms = privacy.target_epsilon, privacy.delta, rate, steps, privacy.accountant
            sigma = noise_multiplier_for(*terms, prior=prior)
        except ValueError as error:
            raise PrivacyBudgetSpent(str(error)) if spent else error from None
    return PrivacyLedger(
        0,
        n,
        rate,
        float(sigma or 0.0),
        privacy.delta,
        steps,
        privacy.target_epsilon,
        privacy.accountant,
        prior=prior,
        fingerprint=f"sha256:{fingerprint_rows(dataset)}",
    )


def given(privacy: PrivacyArguments) -> tuple[Spent, ...]:
    """What ``privacy`` says that earlier runs spent."""
    return read_prior(privacy.earlier, privacy.noise == "secure")


def spent_by(ledger: PrivacyLedger | None) -> tuple[Spent, ...]:
    """What was spent on the data of a ledger until now, with its prior; nothing where no step was taken."""
    if ledger is None or not ledger.steps_taken:
        return ()
    return (*ledger.prior, ledger.steps(ledger.steps_taken))


def spent_before(checkpoint: Path, privacy: PrivacyArguments) -> tuple[Spent, ...]:
    """What had been spent when the run of a checkpoint began: by earlier calls of ``train``, after the prior."""
    path, prior = checkpoint / LEDGER_FILE, given(privacy)
    stored = load_ledger(path).prior if path.exists() else ()
    return stored if stored[: len(prior)] == prior else ()


def refuse_push(trainer: Trainer, *positional: Any, **named: Any) -> Any:
    """In the place of ``Trainer.push_to_hub``, which uploads the output folder, its ledger included.

    Raises:
        ValueError: says what to push instead.
    """
    raise ValueError(f"{type(trainer).__name__}.push_to_hub: {PUSHES}")
