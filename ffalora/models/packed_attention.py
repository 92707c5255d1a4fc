"""Attention inside the samples of a packed batch.

On a processor ``packed_attention`` computes it where the tokens lie. Elsewhere, and where weights drop out, samples are
gathered into groups of similar lengths, computed padded, and put back: each is padded to the longest of its group, and
groups are cut so that scores, whose number grows with the square of the length, are mostly real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ffalora_kernels import Segments, dispatch
from ffalora_kernels.attention import packed_attention, packed_attention_gradient
from ffalora_kernels.backward_pass import backward_pass

ATTENTION = "ffalora_packed"
#: A sample shorter than this share of a group's longest begins the next group.
_SHARE = 2 / 3
#: What layers of transformers ask of an attention besides masks and scale.
_OF_SCORES = ("softcap", "s_aux", "position_bias")


class PaddedGroups:
    """Where attention finds a packed batch's tokens: one matrix of places ``[count, longest]`` a group, made when it
    is first asked for.

    Args:
        starts: int32 ``[S+1]``, where each sample's tokens begin; lengths: ``[S]``, how many there are.

    Attributes:
        segments: each sample's tokens.
    """

    def __init__(self, starts: Tensor, lengths: Sequence[int]):
        self._lengths, self._device, self._tokens = lengths, starts.device, sum(lengths)
        self.segments = Segments(starts, torch.zeros_like(starts[1:]), 1, max(lengths, default=0), self._tokens)
        self._sizes: list[tuple[int, int]] = []
        self._hidden: list[Tensor] = []
        self._token: list[Tensor] = []
        self._of_heads: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Samples and longest length of each group, longest samples first."""
        self._make()
        return self._sizes

    @property
    def hidden(self) -> list[Tensor]:
        """bool ``[count, 1, 1, longest]`` a group, True at places that hold no token."""
        self._make()
        return self._hidden

    def _make(self) -> None:
        if self._sizes:
            return
        length = torch.as_tensor(self._lengths, dtype=torch.int64)
        starts = length.cumsum(0) - length
        for members in _similar(length):
            longest = int(length[members[0]])
            column = torch.arange(longest)
            real = column < length[members, None]
            self._sizes.append((len(members), longest))
            self._hidden.append(~real[:, None, None, :].to(self._device))
            self._token.append(torch.where(real, starts[members, None] + column, self._tokens))

    def rows(self, heads: int) -> tuple[Tensor, Tensor]:
        """Both ways between the rows ``[M·H, d]`` of packed tokens and the rows of all groups ``[Σ count·H·longest,
        d]``.

        Returns:
            For each row of the groups the packed row, ``M·H`` at places without a token; for each packed row the
            group's. Both int64.
        """
        if heads not in self._of_heads:
            self._make()
            head = torch.arange(heads)[:, None]
            pairs = [
                torch.where(token[:, None] < self._tokens, token[:, None] * heads + head, self._tokens * heads)
                for token in self._token
            ]
            packed = torch.cat([pair.flatten() for pair in pairs] or [head.new_empty(0)])
            grouped = torch.empty(self._tokens * heads + 1, dtype=torch.int64)
            grouped[packed] = torch.arange(len(packed))
            self._of_heads[heads] = packed.to(self._device), grouped[:-1].to(self._device)
        return self._of_heads[heads]


def _similar(length: Tensor) -> list[Tensor]:
    """Samples by descending length, cut where one falls below a share of its group's longest; empty ones left out."""
    order = length.argsort(descending=True, stable=True)
    groups, start = [], 0
    descending = length[order].tolist()
    for i, n in enumerate(descending):
        if n < _SHARE * descending[start] or n == 0:
            groups.append(order[start:i])
            start = i
        if n == 0:
            break
    else:
        groups.append(order[start:])
    return [group for group in groups if len(group)]


class _Moved(torch.autograd.Function):
    """``rows [n,d]`` with a row of zeros after the last, at ``index``. Each row is wanted in one place, ``back``; what
    is asked of the zeros has no gradient.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, back)
        if len(index) > len(back):
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        index, back = ctx.saved_tensors
        return _Moved.apply(gradient, back, index), None, None


class _InPlace(torch.autograd.Function):
    """``packed_attention`` of ``q [M,H,d]`` and ``k, v [M,G,d]``; keeps no scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, causal: bool) -> Tensor:
        out, normalisers = packed_attention(q, k, v, segments, scale, causal)
        ctx.save_for_backward(q, k, v, normalisers)
        ctx.given = segments, scale, causal
        return out

    @staticmethod
    @backward_pass
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        dout = dout if dout.stride(2) == 1 else dout.contiguous()
        return *packed_attention_gradient(dout, *ctx.saved_tensors, *ctx.given), None, None, None


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_groups: PaddedGroups,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of ``[1,H,M,d]`` within each sample, ``[1,M,H,d]``; under transformers' interface for it.

    Raises:
        ValueError: a sample is longer than the window within which the layer attends, or the layer changes its scores.
    """
    for name in _OF_SCORES:
        if others.get(name) is not None:
            raise ValueError(
                f"the model's attention has {name}, which packed attention has not; set model.packed to false"
            )
    if sliding_window is not None and packed_groups.segments.longest > sliding_window:
        raise ValueError(
            f"a sample has more tokens than the attention's sliding_window={sliding_window}; set model.packed to false"
        )
    heads, tokens = query.shape[1], query.shape[2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = getattr(module, "is_causal", False)
    drops, is_compiled = dropout and module.training, query.device.type == "cpu" and dispatch.load("cpp")[0] is not None
    if is_compiled and not drops and query.dtype in (torch.float32, torch.bfloat16) and query.stride(3) == 1:
        rows = (t[0].transpose(0, 1) for t in (query, key, value))
        return _InPlace.apply(*rows, packed_groups.segments, scale, causal)[None], None
    parts = []
    for (count, longest), hidden, q, k, v in zip(
        packed_groups.sizes,
        packed_groups.hidden,
        *(_grouped(t, packed_groups) for t in (query, key, value)),
        strict=True,
    ):
        k, v = (t.repeat_interleave(heads // t.shape[1], 1) if t.shape[1] < heads else t for t in (k, v))
        if causal:
            column = torch.arange(longest, device=q.device)
            hidden = hidden | (column[None, :] > column[:, None])
        bias = q.new_zeros(hidden.shape).masked_fill_(hidden, torch.finfo(q.dtype).min)
        bias = bias.expand(-1, heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale)
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        weights = nn.functional.dropout(weights, dropout, module.training)
        parts.append(torch.bmm(weights, v.flatten(0, 1)).view(count * heads * longest, -1))
    to_groups, to_packed = packed_groups.rows(heads)
    states = _Moved.apply(torch.cat(parts), to_packed, to_groups)
    return states.view(1, tokens, heads, -1), None


def _grouped(states: Tensor, groups: PaddedGroups) -> list[Tensor]:
    """``[1,H,M,d]`` as ``[count,H,longest,d]`` a group."""
    heads, width = states.shape[1], states.shape[3]
    to_groups, to_packed = groups.rows(heads)
    rows = states[0].transpose(0, 1).reshape(-1, width)
    moved = _Moved.apply(rows, to_groups, to_packed)
    parts = moved.split([count * heads * longest for count, longest in groups.sizes])
    return [part.view(n, heads, longest, width) for part, (n, longest) in zip(parts, groups.sizes, strict=True)]


AttentionInterface.register(ATTENTION, packed_attention_forward)
