"""Preference pairs: how likely a model finds both answers of each, and the loss of each pair alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ..adapters import Adapters
from ..data.examples import IGNORE_INDEX
from ..data.tasks import Losses, logits_of, token_losses
from ..models.frozen_head import can_leave_head_out, head_left_out


class PairModel(nn.Module):
    """A causal language model as a model of pairs: its output for a pair is the log-likelihoods of its two answers.

    Args:
        policy: the language model; adapters: in it.
    """

    def __init__(self, policy: nn.Module, adapters: Adapters):
        super().__init__()
        self.policy, self._passes = policy, adapters._passes
        self._head_apart: bool | None = None

    def look(self, inputs: Mapping[str, Tensor]) -> None:
        """Finds out once, with a batch's inputs, whether the frozen head's logits need not be formed."""
        if self._head_apart is None:
            self._head_apart = can_leave_head_out(self.policy, _rows(inputs))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> SimpleNamespace:
        """The sum of log-probabilities of each answer's tokens.

        Args:
            input_ids, attention_mask: int64 ``[S,2,T]``, the prompt with the chosen and with the rejected answer.
            labels: int64 ``[S,2,T]``, the tokens of the answers, and IGNORE_INDEX elsewhere.

        Returns:
            ``logits`` float32 ``[S,2]``.
        """
        # gradients outside a pass are those that the pass is held to: they go through the logits
        apart = self._head_apart and (self._passes.current is not None or not torch.is_grad_enabled())
        with head_left_out(self.policy) if apart else nullcontext():
            rows = _rows({"input_ids": input_ids, "attention_mask": attention_mask})
            outputs = self.policy(**rows, use_cache=False)
        sums, _, _ = token_losses(outputs, labels.flatten(0, 1))
        return SimpleNamespace(logits=-sums.view(-1, 2))


def _rows(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a language model takes of pairs: each answer a row, those of a pair side by side, ``[2S,T]``."""
    return {name: inputs[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}


def as_pairs(collated: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of :class:`PairModel` of what TRL's collator makes: first all chosen rows, then all rejected ones."""
    labels = collated["input_ids"].masked_fill(collated["completion_mask"] == 0, IGNORE_INDEX)
    rows = {"input_ids": collated["input_ids"], "attention_mask": collated["attention_mask"], "labels": labels}
    return {name: torch.stack(value.chunk(2), dim=1) for name, value in rows.items()}


def targets_of(inputs: Mapping[str, Tensor], reference: Tensor) -> Tensor:
    """What the losses compare with: of each answer the reference's log-likelihood ``[S,2]``, and its tokens.

    Returns:
        float32 ``[S,2,2]``.
    """
    counts = (inputs["labels"][..., 1:] != IGNORE_INDEX).sum(-1)
    return torch.stack([reference.float(), counts.float()], dim=-1)


class _Pairs(NamedTuple):
    """Of each pair ``[S]``: log-likelihood ratios to the reference and tokens of both answers; then the settings."""

    chosen: Tensor
    rejected: Tensor
    tokens_chosen: Tensor
    tokens_rejected: Tensor
    said_chosen: Tensor
    beta: float
    smoothing: float
    tau: float

    @property
    def margin(self) -> Tensor:
        return self.beta * (self.chosen - self.rejected)

    @property
    def of_tokens(self) -> Tensor:
        """The margin of the means over tokens, without β."""
        return self.chosen / self.tokens_chosen - self.rejected / self.tokens_rejected


def _exo(p: _Pairs) -> Tensor:
    up, down = logsigmoid(p.margin), logsigmoid(-p.margin)
    right = torch.tensor(p.smoothing, device=up.device)
    return up.exp() * (up - (-right).log1p()) + down.exp() * (down - right.log())


def _robust(p: _Pairs) -> Tensor:
    flipped = p.smoothing * logsigmoid(-p.margin) - (1 - p.smoothing) * logsigmoid(p.margin)
    return flipped / (1 - 2 * p.smoothing)


def _nca(p: _Pairs) -> Tensor:
    chosen, rejected = p.beta * p.chosen, p.beta * p.rejected
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def _discopop(p: _Pairs) -> Tensor:
    share = torch.sigmoid(p.margin / p.tau)
    return (share - 1) * logsigmoid(p.margin) + share * torch.exp(-p.margin)


#: TRL's names of losses that are of one pair; their papers are those of TRL's ``DPOConfig``.
LOSSES: dict[str, Callable[[_Pairs], Tensor]] = {
    "sigmoid": lambda p: -logsigmoid(p.margin),
    "hinge": lambda p: torch.relu(1 - p.margin),
    "ipo": lambda p: (p.of_tokens - 1 / (2 * p.beta)) ** 2,
    "exo_pair": _exo,
    "nca_pair": _nca,
    "robust": _robust,
    "bco_pair": lambda p: -logsigmoid(p.beta * p.chosen) - logsigmoid(-p.beta * p.rejected),
    "sppo_hard": lambda p: (p.chosen - 0.5 / p.beta) ** 2 + (p.rejected + 0.5 / p.beta) ** 2,
    "apo_zero": lambda p: 1 - torch.sigmoid(p.beta * p.chosen) + torch.sigmoid(p.beta * p.rejected),
    "apo_down": lambda p: torch.sigmoid(p.beta * p.chosen) + 1 - torch.sigmoid(p.margin),
    "discopop": _discopop,
    "sft": lambda p: -p.said_chosen / p.tokens_chosen,
    "sigmoid_norm": lambda p: -logsigmoid(p.beta * p.of_tokens),
}


def pair_losses(args: Any) -> Losses:
    """(output of :class:`PairModel`, :func:`targets_of`) -> float32 ``[S]``: the weighted losses of a ``DPOConfig``."""
    weights = args.loss_weights or [1.0] * len(args.loss_type)

    def losses(outputs: Any, targets: Tensor) -> Tensor:
        said = logits_of(outputs)
        ratios, tokens = said - targets[..., 0], targets[..., 1].clamp(min=1)
        answers = ratios[:, 0], ratios[:, 1], tokens[:, 0], tokens[:, 1], said[:, 0]
        pairs = _Pairs(*answers, args.beta, args.label_smoothing, args.discopop_tau)
        return sum(
            (weight * LOSSES[name](pairs) for name, weight in zip(args.loss_type, weights, strict=True)),
            start=torch.zeros_like(said[:, 0]),
        )

    return losses
