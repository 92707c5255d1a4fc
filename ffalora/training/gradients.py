"""The gradient of every segment of a batch, from one forward and one backward pass: the one way to get them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ffalora_kernels import clip_reduce_

from ..adapters import Adapters, TrainingPass
from ..data.tasks import Losses
from ..models.frozen_head import head_left_out
from ..models.packing import pack, packed_attention, packed_segments, padded_outputs
from .admission import check_batch, check_formats, check_trained_tensors
from .arena import UNWRITTEN, Arena
from .coordinates import ProductCoordinates
from .detectors import check_gradients, check_reads_state
from .dropout import DropoutKeys, drops_out, keyed_dropout
from .independence import check_losses
from .plain import plain_gradient
from .probe import Probe


class Clipping(NamedTuple):
    """How the gradients of a pass become sums.

    Attributes:
        max_grad_norm: float64 ``[C, groups]``; infinite ones clip nothing.
        group_columns: int32 ``[groups+1]``, where each group of columns starts that is clipped by itself.
        mode: 'flat', or 'automatic' (AUTO-S: Bu et al. 2023).
        by_tensor: the groups are the trained tensors one by one, whose squared norms a pass keeps, so that none is
            computed again.
    """

    max_grad_norm: Tensor
    group_columns: Tensor
    mode: str
    by_tensor: bool = False


@dataclass(frozen=True)
class SegmentGradients:
    """What a pass leaves behind. The tensors are the arena's own: the next pass overwrites them.

    Attributes:
        gradients: float32 ``[S,P]``, a row of the arena for each segment.
        squares: float64 ``[S, slots]``, squared norms by trained tensor.
        client: int32 ``[S]``, the row of the state that each segment used.
        losses: float32 ``[samples]``, detached, in the order of the batch.
        drew: whether the pass drew masks of dropout, or anything else at random.
    """

    gradients: Tensor
    squares: Tensor
    client: Tensor
    losses: Tensor
    drew: bool = False

    def clip_into_(
        self,
        total: Tensor,
        max_grad_norm: Tensor | float,
        group_columns: Tensor | None = None,
        mode: str = "flat",
        by_tensor: bool = False,
    ) -> Tensor:
        """Clips every segment's gradient and adds it to its client's sum.

        Args:
            total: float64 ``[C,P]``, changed in place.
            max_grad_norm, group_columns, mode, by_tensor: as in :class:`Clipping`; by default one C for all, and one
                group. Those that lie on a device are taken as they are: a look at them would wait for it.

        Returns:
            The norms before clipping, float64 ``[S]``; computed on private data.

        Raises:
            ValueError: a norm that is negative or not a number, or groups that leave columns out.
        """
        _check_clipping(max_grad_norm, group_columns, total.shape[1])
        if not isinstance(max_grad_norm, Tensor):
            shape = (len(total), 1)
            max_grad_norm = torch.full(shape, max_grad_norm, dtype=torch.float64, device=total.device)
        if group_columns is None:
            group_columns = torch.tensor([0, total.shape[1]], dtype=torch.int32, device=total.device)
        squares = self.squares if by_tensor else None
        if max_grad_norm.shape[1] == 1:
            squares = self.squares.sum(1, keepdim=True)
        _, norms = clip_reduce_(
            total, self.gradients, self.client, max_grad_norm, group_columns, squares=squares, mode=mode
        )
        return norms.square().sum(1).sqrt()

    def mean_losses(self, together: np.ndarray) -> Tensor:
        """The mean loss of each segment, ``[S]``; ``together`` as it was given."""
        segment = torch.from_numpy(_segments(together, len(self.losses))).to(self.losses.device)
        total = self.losses.new_zeros(len(self.client)).index_add_(0, segment, self.losses)
        return total / torch.bincount(segment, minlength=len(self.client))


def segment_gradients(
    model: nn.Module,
    adapters: Adapters,
    losses: Losses,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    *,
    state: Tensor | None = None,
    rows: np.ndarray | None = None,
    together: np.ndarray | None = None,
    arena: Arena | None = None,
    probe: Probe | None = None,
    dropout: Callable[[], DropoutKeys] | None = None,
    packed: bool = False,
    merged: dict[str, Tensor] | None = None,
    views: int = 1,
    coordinates: ProductCoordinates | None = None,
) -> SegmentGradients:
    """Differentiates one physical batch, each segment apart.

    Args:
        model, adapters: with adapters attached, and their handle.
        losses: takes the model's output and targets, returns one loss a sample, ``[S]``, from its own tokens only.
        inputs, targets: keyword arguments of the model, a row a sample (a view); ``[S, ...]``.
        state: float32 ``[C,P]``, parameters of every client; None for the model's own, as one client.
        rows: ``[S]``, which row of the state each sample uses, equal ones side by side; None for the first. Its length
            is how many samples there are, whatever a collator made of them.
        together: ``[S]``, equal where samples, side by side, are one segment: those of a user whose sum is clipped, or
            of a client where nothing is clipped; None keeps every sample apart. Segments are in the order of the batch.
        arena, probe: buffers, and what is known of the model; None makes and looks afresh (some forward passes more).
        dropout: gives what the masks are made from, where anything drops out; None takes fresh keys from the operating
            system.
        packed: lay the samples end to end instead of padding them.
        merged: for each layer's name the base weight with the adapter added, where the pass serves one client.
        views: rows that each sample has, one sample after another; its loss is the mean of theirs.
        coordinates: what the gradients are given in, of one client; None for the trained numbers themselves.

    Raises:
        ValueError: not one row and one loss a sample; samples of a segment that lie apart; a layer of float64; or a
            trained tensor that is not the adapters', whose gradient no segment would hold.
        SamplesNotIndependent: the model or the loss mixes samples.
        GradientMissing: a trained tensor received no gradient. StorageParted: the pass reads a copy of the state.
        GradientWrong: the probe compares, and a gradient is not that of its sample alone.
    """
    state = adapters.state()[None] if state is None else state
    rows = np.zeros(len(targets), dtype=np.int64) if rows is None else rows
    samples, device = len(rows), state.device
    _check_rows(rows, len(state))
    seen = probe or Probe(adapters, packed=packed)
    if not seen.has_looked:
        check_formats(adapters)
        check_trained_tensors(list(model.named_modules()), adapters, seen.private)
    inputs, targets = look_at(seen, model, losses, inputs, targets, samples * views, device)
    arena = arena or Arena(adapters)
    segment = np.arange(samples) if together is None else _segments(together, samples)
    keys = None
    if drops_out(model, adapters):
        keys = DropoutKeys.fresh(samples * views) if dropout is None else dropout()

    def take_pass() -> tuple[TrainingPass, Tensor]:
        current = _training_pass(state, arena, rows, segment, merged, views)
        current.mixes = None if coordinates is None else coordinates.mixes
        check_reads_state(current, state)
        if keys is not None:
            current.masks = keys.masks(device, inputs)
        taken = pack(inputs) if packed else inputs
        if packed:
            current.packed = packed_segments(taken, current)
            if current.masks is not None:
                current.masks.starts = taken["cu_seq_lens_q"]
        attention = packed_attention(model) if packed else nullcontext()
        head = head_left_out(model) if seen.head_apart else nullcontext()
        with adapters.training_pass(current), attention, head, keyed_dropout(model, current.masks):
            outputs = model(**taken)
            found = losses(padded_outputs(outputs, inputs["attention_mask"].bool()) if packed else outputs, targets)
            check_losses(found, samples * views)
            found = found.view(samples, views).mean(1)
            if found.requires_grad:  # no trained layer took part otherwise
                found.sum().backward()
        return current, found

    current, found = take_pass()
    if accumulate_where_overwritten(adapters, current):
        current, found = take_pass()
    if keys is not None:  # layers that are skipped at random, for all samples alike (LayerDrop)
        arena.leave_out(current.arena, current.squares, {name for name in seen.uses if seen.uses[name]} - current.used)
    arena.check_written((current.squares == UNWRITTEN).any(0))
    if probe is not None and samples and probe.is_to_compare(state):
        for i in (0, int(segment[-1])):  # as many passes whatever the batch: processes may hold parts of the base
            first, last = np.searchsorted(segment, [i, i + 1]).tolist()
            own = slice(views * first, views * last)
            one = {name: value[own] for name, value in inputs.items()}, targets[own]
            row = state[rows[first]]
            alone, is_exact = plain_gradient(model, adapters, losses, *one, row, keys and keys.only(own), views)
            alone = alone if coordinates is None else coordinates.turned(alone)
            check_gradients(adapters, current.arena, {i: (alone, is_exact)})
    drew = current.masks is not None and current.masks.drew
    return SegmentGradients(current.arena, current.squares, current.client, found.detach(), drew)


def accumulate_where_overwritten(adapters: Adapters, current: TrainingPass) -> bool:
    """Has layers accumulate that compiled code used more often in this pass than in the batch in which uses were
    counted; whether there were any, so that the pass must be taken again.
    """
    layout = adapters.layout
    layers = [layout.layers[layout.places[slot].layer] for slot in current.overwritten()]
    lost = [layer for layer in layers if not layer.shared_use]
    for layer in lost:
        layer.shared_use = True
    return bool(lost)


def look_at(
    probe: Probe,
    model: nn.Module,
    losses: Losses,
    inputs: Mapping[str, Tensor],
    targets: Tensor,
    samples: int,
    device: torch.device,
) -> tuple[dict[str, Tensor], Tensor]:
    """A batch as the model takes it, on the device, once the probe has looked at it.

    Raises:
        ValueError: not one row a sample, or packing changes outputs. SamplesNotIndependent: the model or the loss mixes
            samples.
    """
    check_batch(inputs, targets, samples)
    inputs, targets = {name: value.to(device) for name, value in inputs.items()}, targets.to(device)
    probe.look(model, losses, inputs, targets)
    return inputs, targets


def _segments(together: np.ndarray, samples: int) -> np.ndarray:
    """Which segment each sample belongs to, int64 ``[samples]``: 0, 1 and so on, in the order of the batch.

    Raises:
        ValueError: not one entry a sample, or samples of a segment that do not lie side by side.
    """
    together = np.asarray(together)
    if together.shape != (samples,):
        raise ValueError(f"together has shape {together.shape} for {samples} samples; give one entry a sample")
    begins = np.append(True, together[1:] != together[:-1])[:samples]
    heads = together[begins]
    if len(np.unique(heads)) < len(heads):
        raise ValueError(
            "together has equal entries that do not lie side by side, and each part of a segment would be clipped "
            "apart; sort the samples of the batch by it"
        )
    return begins.cumsum() - 1


def _check_clipping(max_grad_norm: Tensor | float, group_columns: Tensor | None, width: int) -> None:
    """What is on the processor of a call's clipping bounds every column.

    Raises:
        ValueError: a norm that is negative or not a number, or groups that are not all ``width`` columns.
    """
    norms = max_grad_norm
    if not isinstance(norms, Tensor) or norms.device.type == "cpu":
        found = np.asarray(norms.numpy() if isinstance(norms, Tensor) else norms, dtype=np.float64)
        if not (found >= 0).all():
            worst = found[~(found >= 0)].flat[0]
            raise ValueError(f"max_grad_norm={worst:g} bounds nothing; give a positive number, or inf not to clip")
    if group_columns is not None and group_columns.device.type == "cpu":
        starts = group_columns.numpy()
        if starts[0] != 0 or starts[-1] != width or (np.diff(starts) <= 0).any():
            raise ValueError(
                f"group_columns={starts.tolist()} must rise from 0 to the {width} columns of the state: columns that "
                "are left out would not be clipped"
            )


def _check_rows(rows: np.ndarray, clients: int) -> None:
    """Kernels follow these numbers, and so would leave the state."""
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or (len(rows) and not 0 <= rows.min() <= rows.max() < clients):
        raise ValueError(f"rows={rows!r}: give whole numbers, one a sample, from 0 to {clients - 1}: rows of the state")


def _training_pass(
    state: Tensor, arena: Arena, rows: np.ndarray, segment: np.ndarray, merged: dict[str, Tensor] | None, views: int
) -> TrainingPass:
    """The pass of samples, of ``views`` rows each, that use ``rows [S]`` of the state and go into ``segment [S]``: 0, 1
    and so on, neighbours equal.
    """
    starts = np.flatnonzero(np.diff(segment, prepend=-1))
    offsets = views * np.append(starts, len(rows))
    gradients, squares = arena.rows(len(starts))
    return TrainingPass(
        state=state,
        arena=gradients,
        squares=squares,
        client=torch.as_tensor(rows[starts], dtype=torch.int32).to(state.device),
        sample_offsets=torch.as_tensor(offsets, dtype=torch.int32).to(state.device),
        samples=views * len(rows),
        longest=int(np.diff(offsets).max(initial=1)),
        merged=merged,
    )
