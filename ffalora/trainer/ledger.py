"""The ledger of a call of ``PrivateTrainer.train``: what it may spend, after what was spent on the same data."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState

from ..data.examples import fingerprint_rows
from ..privacy.accountants import noise_multiplier_for
from ..privacy.accounting import PrivacyBudgetSpent, PrivacyLedger
from ..privacy.accounts import Accounts, open_accounts
from ..privacy.data_ledger import find_data_ledger
from ..privacy.ledger_files import LEDGER_FILE, LEDGER_NAME, load_ledger
from ..privacy.prior import read_prior
from ..privacy.spent import Spent
from .terms import PUSHES, PrivacyArguments, feature_digests

logger = logging.getLogger(__name__)
#: What columns of labels are called where collators rename them: no part of the record that a ledger knows again.
LABEL_COLUMNS = ("labels", "label", "label_ids")


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


def accounts_of(trainer: Any, ledger: PrivacyLedger, is_new: bool) -> Accounts:
    """What the output folder and the data set's ledger say was spent, and where a private Trainer goes on. A new run
    begins its own file, which holds as its prior what an earlier call of ``train`` spent.

    Args:
        ledger: of the call of ``train`` that begins, which takes over what a resumed run was charged.
        is_new: whether it resumes none.

    Raises:
        ValueError: a new run in the folder of another. Others: see ``open_accounts``.
    """
    durable = Path(trainer.args.output_dir) / LEDGER_FILE
    if durable.exists() and is_new and trainer._private is None:
        raise ValueError(
            f"{durable} says that this data was trained on already; resume that run, or start in another "
            "output_dir with PrivacyArguments(prior=…) naming that file"
        )
    account = durable.with_name("privacy_account")
    if is_new:
        for file in (account, durable):
            file.unlink(missing_ok=True)
    labels = sorted({*(trainer.label_names or ()), *LABEL_COLUMNS})
    return open_accounts(
        {LEDGER_NAME: ledger},
        durable.parent,
        resume=not is_new,
        is_secure=True,
        data_ledger=find_data_ledger(trainer.privacy.ledger, "trainer"),
        records={LEDGER_NAME: partial(feature_digests, trainer._records(), labels)},
        account=account,
        run=f"PrivateTrainer, {durable.parent.resolve()}",
        before=trainer._accounts,
    )


def end_where_spent(state: TrainerState, ledger: PrivacyLedger, steps_left: int, steps: int) -> None:
    """Has a training end after ``steps`` steps, as one that was planned for so many, where its ledger allows no other:
    steps of a secure run whose results a kill took were charged, and are taken again; or other runs spent the budget of
    the data set.

    Args:
        state: of the Trainer, whose ``max_steps`` changes; steps_left: of the ledger, the same in all processes.
    """
    if steps_left == 0 and steps < state.max_steps:
        logger.warning(
            "training ends after step %d of %d: its ledger has counted %d steps (those that an interruption lost, too) "
            "and allows no more, or the budget of its data set does not",
            *(steps, state.max_steps, ledger.steps_taken),
        )
        state.max_steps = steps


def refuse_push(trainer: Trainer, *positional: Any, **named: Any) -> Any:
    """In the place of ``Trainer.push_to_hub``, which uploads the output folder, its ledger included.

    Raises:
        ValueError: says what to push instead.
    """
    raise ValueError(f"{type(trainer).__name__}.push_to_hub: {PUSHES}")
