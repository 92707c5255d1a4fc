"""``PrivateDPOTrainer``: TRL's DPOTrainer with DP-SGD on the adapters.

What is protected is a preference pair: a prompt with its chosen and its rejected answer. The pair's two rows are one
segment, whose loss is the pair's own; its gradient is clipped as a whole. The reference is the model with its adapter
off. TRL prepares the data and keeps its logging, evaluation and checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer

from ..adapters import Adapters
from .collator import check_collator
from .preferences import LOSSES, PairModel, as_pairs, pair_losses, targets_of
from .private_trainer import PrivateTrainer
from .steps import lengths_of
from .terms import PrivacyArguments
from .trl_checks import check_lengths, problems_of, with_adapters

_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


class PrivateDPOTrainer(PrivateTrainer, DPOTrainer):
    """A DPOTrainer whose updates are differentially private at the level of one preference pair (zero-out).

    A physical batch holds at most ``per_device_train_batch_size`` pairs. The reference's log-likelihoods are computed
    beside each batch, or once before training with ``precompute_ref_log_probs=True``.

    Args:
        model: a plain causal language model with ``peft_config``, or a PEFT model whose adapter is not trained yet.
        args: a ``DPOConfig``.
        privacy: what is promised; or give its fields themselves, such as ``target_epsilon=3``.
        peft_config: adapters to make of a plain model.
        others: as for DPOTrainer.

    Raises:
        ValueError: what ``PrivateTrainer`` refuses; losses that compare pairs with each other; a reference other than
            the model without its adapter; answers that do not fit ``max_length``; a collator that makes of a pair
            something else where others are beside it.
    """

    def __init__(
        self,
        model: Any,
        args: DPOConfig,
        privacy: PrivacyArguments | None = None,
        peft_config: Any = None,
        **others: Any,
    ):
        _check_config(args, others)
        model = with_adapters(model, peft_config, args.seed)
        _check_untrained(model)
        super().__init__(model, args, privacy, losses=pair_losses(args), **others)
        if "ref" in self.model.peft_config:  # TRL's copy of the adapter, which has answered as the model without one
            self.model.delete_adapter("ref")
        self._pairs = PairModel(self.model, self.adapters)
        check_collator(self)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As ``PrivateTrainer``'s, of pairs."""
        return super().training_step(self._pairs, inputs, num_items_in_batch)

    def _trained(self) -> tuple[nn.Module, Adapters]:
        adapters = copy.copy(self.adapters)
        adapters.model = self._pairs
        return self._pairs, adapters

    def _batch(self, collated: Any) -> tuple[dict[str, Tensor], Tensor]:
        given = self._prepare_inputs(collated)
        inputs = as_pairs(given)
        if self.precompute_ref_logps:
            reference = torch.stack([given[name] for name in _REFERENCE], dim=1)
        else:
            reference = self._reference(inputs)
        return inputs, targets_of(inputs, reference)

    @torch.no_grad()
    def _reference(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Log-likelihoods ``[S,2]`` by the model without its adapter, and without dropout."""
        self._pairs.eval()
        try:
            with self.model.disable_adapter():
                self._pairs.look(inputs)
                return self._pairs(**inputs).logits
        finally:
            self._pairs.train()

    def _apart(self, collated: Mapping[str, Any]) -> dict[str, Any]:
        """Rows of chosen answers apart from those of rejected ones; what belongs to pairs stays."""
        found = {name: collated[name] for name in collated if name in _REFERENCE}
        for name, value in collated.items():
            if name not in _REFERENCE:
                chosen, rejected = value.chunk(2) if isinstance(value, Tensor) and value.dim() else (value, value)
                found |= {f"{name} (chosen)": chosen, f"{name} (rejected)": rejected}
        return found

    def _records(self) -> Any:
        computed = [name for name in _REFERENCE if name in self.train_dataset.column_names]
        return self.train_dataset.remove_columns(computed)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        """As DPOTrainer's; but an answer that does not fit is refused, where TRL cuts it, or drops its pair."""
        whole = copy.copy(args)
        whole.max_length = None
        prepared = super()._prepare_dataset(dataset, processing_class, whole, dataset_name)
        if args.max_length is not None:
            check_lengths(lengths_of(list(prepared)), args.max_length, dataset_name, "pairs")
        return prepared


def _check_config(args: DPOConfig, others: Mapping[str, Any]) -> None:
    """ValueError names every setting of TRL that would break the promise, and what to set instead."""
    if not isinstance(args, DPOConfig):
        raise ValueError(f"args is a {type(args).__name__}; give a DPOConfig")
    problems = [
        f"loss_type={name!r}, which compares the pairs of a batch with each other: choose {', '.join(LOSSES)}"
        for name in args.loss_type
        if name not in LOSSES
    ]
    if args.f_divergence_type != "reverse_kl":
        problems.append(f"f_divergence_type={args.f_divergence_type!r}: only 'reverse_kl' is there per pair")
    if args.ld_alpha is not None:
        problems.append(f"ld_alpha={args.ld_alpha}: answers count whole per pair, set it to None")
    if args.use_weighting:
        problems.append("use_weighting=True: weights of pairs are not there per pair, set it to False")
    if args.sync_ref_model:
        problems.append("sync_ref_model=True: the reference is the model without its adapter, set it to False")
    for name in ("ref_model", "adapters", "losses"):
        if others.get(name) is not None:
            problems.append(
                f"{name}=…: the reference is the model without its adapter, the loss loss_type's: leave it out"
            )
    if args.torch_compile:
        problems.append("torch_compile=True is not taken by pairs: set it to False")
    problems += problems_of(args, others)
    if problems:
        raise ValueError("PrivateDPOTrainer cannot keep its promise with " + "; ".join(problems))


@torch.no_grad()
def _check_untrained(model: Any) -> None:
    """ValueError where the model without its adapter is not the model that training begins with."""
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"model is a {type(model).__name__} without PEFT's adapters; give peft_config=LoraConfig(…): the reference "
            "is the model without its adapter"
        )
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and any(bool(part.weight.any()) for part in layer.lora_B.values()):
            raise ValueError(
                f"{name}: lora_B is not zero, so that the model without its adapter, the reference of DPO, is not the "
                "one that training begins with; merge what is trained (model = model.merge_and_unload()) and give "
                "peft_config, with an init that leaves lora_B zero"
            )
