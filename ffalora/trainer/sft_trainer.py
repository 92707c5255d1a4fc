"""``PrivateSFTTrainer``: TRL's SFTTrainer with DP-SGD on the adapters, as ``PrivateTrainer`` is transformers' Trainer.

TRL prepares the data (chat templates, masks of completions and of what assistants say) and keeps its logging,
evaluation and checkpoints. A row of the data set is what is protected. A sample's loss is the mean over its own counted
tokens; TRL divides by the tokens of the whole batch, which lets one sample move what another weighs.
"""

from __future__ import annotations

import copy
from typing import Any

from datasets import IterableDataset
from trl import SFTConfig, SFTTrainer

from ..adapters import Adapters
from ..data.tasks import Losses
from .collator import check_collator
from .private_trainer import PrivateTrainer
from .terms import PrivacyArguments
from .trl_checks import check_lengths, problems_of, with_adapters

#: Columns that TRL takes before a column of plain texts, or a formatting function.
_ANSWERS = frozenset({"prompt", "messages", "conversations", "input_ids"})


class PrivateSFTTrainer(PrivateTrainer, SFTTrainer):
    """An SFTTrainer whose updates are differentially private at the level of one row of the data set (zero-out).

    Args:
        model: a PEFT model, one that ``attach`` adapted, or, with ``peft_config``, a plain causal language model.
        args: an ``SFTConfig``.
        privacy: what is promised; or give its fields themselves, such as ``target_epsilon=3``.
        adapters, losses: as for ``PrivateTrainer``.
        peft_config: adapters to make of a plain model.
        others: as for SFTTrainer.

    Raises:
        ValueError: what ``PrivateTrainer`` refuses; packing and padding-free batches, which lay several samples into
            one row; truncation that cuts answers; losses, offloading and data that a private step cannot keep apart; a
            collator that makes of a sample something else where others are beside it.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        privacy: PrivacyArguments | None = None,
        adapters: Adapters | None = None,
        losses: Losses | None = None,
        peft_config: Any = None,
        **others: Any,
    ):
        _check_config(args, others)
        super().__init__(with_adapters(model, peft_config, args.seed), args, privacy, adapters, losses, **others)
        check_collator(self)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """As SFTTrainer's; but it leaves plain texts alone to be cut. An answer that does not fit is refused, where TRL
        cuts it, or drops its row. Rows to evaluate on that are read one by one are TRL's own affair.
        """
        rest = (packing, formatting_func, dataset_name)
        is_read_once = isinstance(dataset, IterableDataset)  # of evaluation alone: rows to train on are counted
        if is_read_once or args.max_length is None or not _ANSWERS.intersection(dataset.column_names):
            return super()._prepare_dataset(dataset, processing_class, args, *rest)
        whole = copy.copy(args)
        whole.max_length = None
        prepared = super()._prepare_dataset(dataset, processing_class, whole, *rest)
        check_lengths([len(ids) for ids in prepared["input_ids"]], args.max_length, dataset_name, "rows")
        return prepared


def _check_config(args: SFTConfig, others: dict[str, Any]) -> None:
    """ValueError names every setting of TRL that would break the promise, and what to set instead."""
    if not isinstance(args, SFTConfig):
        raise ValueError(f"args is a {type(args).__name__}; give an SFTConfig")
    problems = []
    if args.packing or args.eval_packing:
        problems.append("packing=True lays several samples into one row: set packing and eval_packing to False")
    if args.loss_type != "nll":
        problems.append(f"loss_type={args.loss_type!r}: set it to 'nll', or pass a per-sample loss (losses=)")
    problems += problems_of(args, others)
    if problems:
        raise ValueError("PrivateSFTTrainer cannot keep its promise with " + "; ".join(problems))
