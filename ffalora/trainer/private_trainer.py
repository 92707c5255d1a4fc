"""``PrivateTrainer``: transformers' Trainer with DP-SGD on the adapters. Everything else of the Trainer stays.

A *logical batch* is one Poisson sample of the training set, of expected size ``per_device_train_batch_size ×
gradient_accumulation_steps`` times the number of processes (torchrun, ``accelerate launch``), which share it; it is
computed in physical batches of at most ``per_device_train_batch_size`` samples.
Each update the Trainer asks for is one logical step: its noisy mean gradient is put into ``.grad``, and the Trainer's
own optimiser, schedule, callbacks, logging, evaluation and checkpoints take it from there.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from ..adapters import Adapters
from ..adapters.conversion import ConvertedAdapters
from ..data.tasks import Losses
from ..privacy.accounting import PrivacyLedger
from ..privacy.accounts import Accounts
from ..privacy.ledger_files import LEDGER_FILE, LEDGER_NAME, load_ledger
from ..privacy.noise import NoiseSource, SecureNoise, SeededNoise
from ..privacy.sampling import Draw, SeededDraw, SystemDraw
from ..privacy.spent import Spent
from ..privacy.statement import PrivacyStatement
from ..training.admission import check_trained_tensors
from ..training.private_gradient import Batches, PrivateGradient
from ..training.reading import read
from ..training.sensitivity import NARROW_LIMIT, Sensitivity, extremes, limit_of, probe_gradient, secret_noise
from ..training.workers import drawn_alike, find_workers
from .collator import source_of
from .ledger import accounts_of, end_where_spent, new_ledger, refuse_push, spent_before, spent_by
from .own_loss import check_samples, check_trainer
from .steps import LogicalSteps, check_optimizer, classes_of, cut, lengths_of, save_adapter, without_targets
from .terms import PrivacyArguments, check_arguments, check_distribution, default_losses, promised

#: Logs that are computed on private data without noise.
PRIVATE_LOGS = ("loss", "train_loss")
#: Records among which an audit looks for the longest, the shortest, and one of the rarest class.
_DESCRIBED = 1000

__all__ = ["LEDGER_FILE", "PrivacyArguments", "PrivateTrainer", "default_losses"]


class PrivateTrainer(Trainer):
    """A Trainer whose updates are differentially private at the level of one training sample (zero-out).

    Args:
        model: with adapters: a PEFT model (converted in place, A frozen), or one that ``attach`` adapted.
        args: as for Trainer. Steps or epochs fix how many steps are accounted for; an epoch is 1/q steps.
        privacy: what is promised; or give its fields themselves, such as ``target_epsilon=3``.
        adapters: the handle, for a model that ``attach`` adapted.
        losses: (outputs, labels) -> one loss a sample ``[S]``, from its own tokens only; default: cross-entropy of
            classes, of a sample's own next tokens (mean), or squared error, by the model's class.
        others: as for Trainer.

    Raises:
        ValueError: something that would break the promise: trainable tensors outside the adapters, several devices in
            one process, a sharded model, fp16 loss scaling, label smoothing, batch-level losses, a data set without
            length.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Any,
        privacy: PrivacyArguments | None = None,
        adapters: Adapters | None = None,
        losses: Losses | None = None,
        **others: Any,
    ):
        check_trainer(type(self), model, losses)
        privacy = promised(privacy, others, type(self))
        if adapters is None:
            from ..adapters import convert

            adapters = convert(model)
        check_trained_tensors(list(model.named_modules()), adapters, private=True)
        check_arguments(args, others)
        self.privacy, self.adapters = privacy, adapters
        self.expected_batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        own = copy.copy(args)
        own.gradient_accumulation_steps, own.max_grad_norm = 1, 0.0
        super().__init__(model=model, args=own, **others)
        check_distribution(self.accelerator)
        self.workers = find_workers()
        self._losses, self._losses_are_given = losses or default_losses(model), losses is not None
        self._secure = privacy.noise == "secure"
        self._reading_seed = None if self._secure else args.seed  # see ``read``
        self._draw: Draw = SystemDraw() if self._secure else SeededDraw(args.seed)
        self.ledger: PrivacyLedger | None = None
        self._first = 0  # step of this data that a call of ``train`` begins with: no seeded noise is drawn twice
        self._private: PrivateGradient | None = None
        self._accounts: Accounts | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, **others: Any) -> Any:
        """As Trainer's; a resumed run takes over the checkpoint's ledger, a second call adds to what the first spent.

        With secure noise the training loss, which is private data without noise, is neither logged nor returned.

        Raises:
            PrivacyBudgetSpent: earlier calls spent the target, or the steps asked for exceed what was calibrated.
            LedgerMismatch: a checkpoint of other data, or under other terms.
        """
        check_samples(self)
        self._draw = drawn_alike(self._draw, self.workers)
        spent = spent_by(self.ledger)
        if resume_from_checkpoint:
            last = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else None
            spent = spent_before(Path(last or str(resume_from_checkpoint)), self.privacy)
        ledger = self.ledger = self._new_ledger(spent)
        self._first = sum(part.steps * part.trial_steps for part in ledger.prior)
        if self._secure:
            is_new = not resume_from_checkpoint
            ledger = self.ledger = self.workers.from_lead(partial(self._open_accounts, ledger, is_new))
        noise = SecureNoise() if self._secure else SeededNoise.from_seed(self.args.seed)
        self.model.train()
        charged = None if self._accounts is None else partial(self._accounts.charge, {LEDGER_NAME: ledger})
        self._private = self._gradient(ledger, noise, self.privacy.check_gradients, charged)
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **others)
        if not self._secure:
            return result
        kept = {name: value for name, value in result.metrics.items() if name not in PRIVATE_LOGS}
        return result._replace(training_loss=math.nan, metrics=kept)

    def statement(self) -> PrivacyStatement:
        """What has been spent so far, and under which assumptions."""
        if self.ledger is None:
            raise RuntimeError("nothing has been spent yet: call train() first")
        return PrivacyStatement.from_ledgers([self.ledger], self.privacy.noise, self.privacy.max_grad_norm)

    def audit(self, records: int = 6) -> Sensitivity:
        """What one record moves the clipped sum by, on this model, data set, collator and losses, before any noise.

        Nothing is trained, written, logged or charged. The result is computed on private data without noise: it is for
        the owner of the data alone.

        Args:
            records: random records left out of a batch, beside chosen ones.

        Returns:
            ``holds`` says whether clipping bounds every record; ``str()`` is a report.

        Raises:
            ValueError: whatever training itself refuses.
        """
        check_samples(self)
        ledger, started, mode = self._new_ledger(()), self.adapters.state(), self.model.training
        some = np.random.default_rng().permutation(ledger.dataset_size)[:_DESCRIBED]
        features = read(self.train_dataset, some, 0, seed := int.from_bytes(os.urandom(8), "little"))
        chosen = extremes(some, np.array(lengths_of(features)), classes_of(features, self._label_name))
        try:
            self.model.train()
            with self.compute_loss_context_manager():
                private = self._gradient(ledger, secret_noise(), compares=False)
                limit = NARROW_LIMIT if self.args.bf16 else limit_of(self.model, private.device)
                physical, lr = partial(self._physical, seed=seed), self.args.learning_rate
                return probe_gradient(private, physical, chosen, records, lr, limit)
        finally:
            self.model.train(mode)
            self.adapters.load_state_(started)

    def _gradient(
        self, ledger: PrivacyLedger, noise: NoiseSource, compares: bool, charged: Callable[[], None] | None = None
    ) -> PrivateGradient:
        norm = self.privacy.max_grad_norm
        return PrivateGradient(
            *self._trained(), self._losses, ledger, norm, noise, compares, self.workers, charged=charged,
            cuda_graphs=self.privacy.cuda_graphs,
        )  # fmt: skip

    def _trained(self) -> tuple[nn.Module, Adapters]:
        """What takes the inputs of a batch, and the adapters in it."""
        return self.model, self.adapters

    push_to_hub = refuse_push

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; of a model that ``attach`` adapted, its adapter in PEFT's files (checkpoints hold it all)."""
        if _internal_call or isinstance(self.adapters, ConvertedAdapters):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            save_adapter(self.adapters, output_dir or self.args.output_dir, self.processing_class)

    def get_train_dataloader(self) -> DataLoader:
        """One item a logical step; the sample itself is drawn in the step."""
        return DataLoader(LogicalSteps(self._steps_per_epoch()), batch_size=1)

    def num_examples(self, dataloader: DataLoader) -> int:
        return (
            len(self.train_dataset)
            if isinstance(dataloader.dataset, LogicalSteps)
            else super().num_examples(dataloader)
        )

    def _run_epoch(self, *positional: Any, **named: Any) -> None:
        """As Trainer's, which takes a step more where a run is resumed that is over."""
        self._end_where_spent(self.state.global_step)
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*positional, **named)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One logical step: draws the sample, writes its noisy gradient to ``.grad``, returns the mean loss."""
        if self._private is None or self.ledger is None:
            raise RuntimeError("training_step belongs to train()")
        check_optimizer(self.optimizer, self.adapters.layout)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # of those that evaluate averages (schedule-free)
            self.optimizer.train()
        step = self._first + self.state.global_step
        drawn = self._draw(0, step, self.ledger.dataset_size, self.ledger.sample_rate)
        mine = self._share(drawn, step)
        with self.compute_loss_context_manager():
            gradient, loss = self._private.step(step, self._physical(mine, step, self._reading_seed), model)
        self._private.write(gradient)
        self._end_where_spent(self.state.global_step + 1)
        part = len(mine) * self.workers.size / max(1, len(drawn))
        return torch.tensor(loss * part if part else 0.0, device=self.args.device)  # Trainer averages over processes

    def _end_where_spent(self, steps: int) -> None:
        if self.ledger is not None:
            end_where_spent(self.state, self.ledger, self.workers.same_for_all(self.ledger.steps_left), steps)

    def log(self, logs: dict[str, float], *rest: Any, **others: Any) -> None:
        """As Trainer's, with ε so far. With secure noise the training loss (private, without noise) is left out."""
        if self._secure and self._private is not None:
            logs = {name: value for name, value in logs.items() if name not in PRIVATE_LOGS}
        if "train_samples_per_second" in logs:  # a logical step is one item of the loader
            logs = {**logs, "train_samples_per_second": logs["train_steps_per_second"] * self.expected_batch}
        if self.ledger is not None and self.ledger.steps_taken:
            logs = {**logs, "epsilon": self.ledger.epsilon(), "delta": self.ledger.delta}
        super().log(logs, *rest, **others)

    def _share(self, drawn: np.ndarray, step: int) -> np.ndarray:
        """This process's part of a logical batch, by lengths that one process read: they may vary at random."""
        if self.workers.size == 1:
            return drawn
        reading = partial(read, self.train_dataset, drawn, step, self._reading_seed)
        return drawn[self.workers.share(np.array(self.workers.from_lead(lambda: lengths_of(reading()))))]

    def _physical(self, drawn: np.ndarray, step: int = 0, seed: int | None = None) -> Batches:
        """Physical batches of some samples; ``step`` and ``seed``: see ``read``."""
        dataset, collate = source_of(self)
        features = read(dataset, drawn, step, seed)
        parts = cut(features, self.args.per_device_train_batch_size)
        return [(drawn[rows], *self._batch(collate([features[i] for i in rows]))) for rows in parts]

    def _batch(self, collated: Any) -> tuple[dict[str, Tensor], Tensor]:
        """Inputs and targets, a row a sample, of what the collator made of some."""
        return without_targets(self._prepare_inputs(collated), self._label_name)

    def _apart(self, collated: Any) -> Any:
        """What the collator made, with a row a sample in every tensor."""
        return collated

    def _records(self) -> Any:
        """The training set, without what is computed of it: its rows tell which data was spent on."""
        return self.train_dataset

    @property
    def _label_name(self) -> str:
        return self.label_names[0] if self.label_names else "labels"

    def _steps_per_epoch(self) -> int:
        return max(1, math.ceil(len(self.train_dataset) / self.expected_batch))

    def _new_ledger(self, spent: tuple[Spent, ...]) -> PrivacyLedger:
        epochs = math.ceil(self.args.num_train_epochs * self._steps_per_epoch())
        steps = self.args.max_steps if self.args.max_steps > 0 else epochs
        return new_ledger(self.privacy, self._records(), self.expected_batch, steps, spent)

    def _open_accounts(self, ledger: PrivacyLedger, is_new: bool) -> PrivacyLedger:
        self._accounts = accounts_of(self, ledger, is_new)
        return ledger

    def _save_checkpoint(self, *positional: Any, **named: Any) -> None:
        super()._save_checkpoint(*positional, **named)
        if self.ledger is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
            self.ledger.save(folder / LEDGER_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        path = Path(resume_from_checkpoint) / LEDGER_FILE
        if self.ledger is not None:
            if not path.exists():
                raise ValueError(f"{path} is missing: without its ledger a checkpoint's ε is unknown; start a new run")
            self.ledger.resume(load_ledger(path).state_dict())
