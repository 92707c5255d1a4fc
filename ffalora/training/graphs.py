"""Physical batches of one shape as one launch: forward, backward and clipping, recorded once as a CUDA graph.

A step of a transformer is thousands of launches; where a layer's own work takes microseconds, a GPU waits for its host.
A recorded pass is replayed with one call, and it reads nothing back: inputs are copied into its own buffers through
pinned memory, results stay on the device, and whether every trained tensor received its gradients is a flag there: a
step whose flag is raised changes nothing, and the host reads it while the next step's passes are under way.

Poisson batches have a different size each time, and their longest texts another length. A recording is for so many
samples of so many tokens or fewer, at most an eighth more (up to seven tokens, and up to seven samples where a size is
rare): the rest are padding, and copies of the last sample whose loss is multiplied by zero, so that they add exactly
nothing. Passes that cannot be recorded (dropout, packed samples, merged weights, a model that reads from the device)
are run as they are; a model that turns out to be one is said once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from weakref import proxy

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import Adapters, TrainingPass
from ..adapters.dropout import DropoutMasks
from ..data.tasks import Losses
from ..models import without_masks
from ..models.frozen_head import head_left_out
from .admission import check_batch
from .arena import UNWRITTEN, Arena
from .common_shapes import OF_A_WHOLE_TEXT, shared_size, widened, without_idle_mask
from .detectors import Standing
from .dropout import DrawsAtRandom, drops_out, keyed_dropout, nothing_drawn
from .gradients import Clipping, SegmentGradients, look_at
from .independence import check_losses
from .probe import Probe
from .recorder import Record
from .transfer import copy_

log = logging.getLogger(__name__)

#: Recordings that are kept; then the one that was not used for longest goes.
MOST_RECORDINGS = 128
#: Samples that a batch of a size without a recording may be filled up with.
_SPARE = 7


class PassGraphs:
    """The recorded passes of one model, by shape.

    Args:
        model, adapters, losses, arena, probe: of the training; a model that draws random numbers is refused.
        record: how a pass is recorded.
        longest: tokens of the longest sample; nothing is padded beyond.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Adapters,
        losses: Losses,
        arena: Arena,
        probe: Probe,
        record: Record,
        longest: int,
    ):
        self.model, self.adapters, self.losses, self.record = model, adapters, losses, record
        self.arena, self.probe, self.longest = arena, probe, longest
        self._passes: dict[tuple[tuple, int], _SharedPass] = {}  # the one that was used last is the last
        self._common: dict[torch.Size, tuple[Tensor, Tensor]] = {}
        self._seen: set[tuple] = set()
        self._run: set[tuple] = set()  # as the model stands: what these passes make at first use is there
        self._arena: tuple = ()
        self._standing: Standing | None = None
        self._unwritten: Tensor | None = None
        self.refused = ""

    def run(
        self,
        inputs: Mapping[str, Tensor],
        targets: Tensor,
        rows: np.ndarray,
        state: Tensor,
        total: Tensor,
        clipping: Clipping,
        apart: bool = True,
    ) -> tuple[Tensor, Tensor] | None:
        """Adds the clipped gradients of a batch to its clients' sums: by a recording where one of its shape was seen
        before.

        Args:
            inputs, targets: of the samples, ``[S, ...]``, on the CPU for nobody to wait; rows: ``[S]``, whose each is.
            state: float32 ``[C,P]``; total: float64 ``[C,P]``, changed in place.
            apart: every sample has a gradient of its own; False wants one client's sum alone.

        Returns:
            losses and norms before clipping, ``[S]`` on the device (where samples are not kept apart, that of the sum);
            None where the pass has to be run as it is.
        """
        if self.refused or not len(rows) or not (apart or (rows == rows[0]).all()):
            return None
        check_batch(inputs, targets, len(rows))
        self.probe.check_length(inputs)
        as_given = inputs, targets
        inputs = without_idle_mask(self.model, inputs)
        inputs, targets = widened(inputs, targets, self.longest)
        room = min(shared_size(len(rows)), max(self.arena.most_rows, len(rows)))
        shape = (
            _shapes(inputs),
            tuple(targets.shape[1:]),
            targets.dtype,
            state.shape,
            clipping.max_grad_norm.shape,
            clipping.mode,
            apart,
        )
        self.forget_moved()
        is_new = (shape, room) not in self._passes and (shape, room) not in self._seen
        if is_new or (self.probe.private and self.probe.padding.wants(as_given[0])):
            look_at(self.probe, self.model, self.losses, *as_given, len(rows), state.device)
        if is_new:
            self._seen.add((shape, room))
            room = self._room_to_spare(room, shape) or room
        try:
            found = self._passes.pop((shape, room), None) or self._made(room, inputs, targets, state, clipping, apart)
            if (shape, room) in self._run:
                found.record()
            done = found.run(inputs, targets, rows, state, total, clipping)
        except RuntimeError as error:
            if "captur" not in str(error).lower() and not isinstance(error, torch.OutOfMemoryError | DrawsAtRandom):
                raise
            self._refuse((str(error).splitlines() or [""])[0])
            return None
        self._run.add((shape, room))
        if found.is_recorded:
            self._passes[shape, room] = found
        if len(self._passes) > MOST_RECORDINGS:
            del self._passes[next(iter(self._passes))]
        return done

    def _room_to_spare(self, room: int, shape: tuple) -> int | None:
        """The least room of a recording of this shape that has a little more: a size that is rare is not recorded, and
        copies of a few samples cost less than a pass that is run.
        """
        found = (other for kind, other in self._passes if kind == shape and room < other <= room + _SPARE)
        return min(found, default=None)

    def common(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """What recordings read the state from, like ``state``, and write sums into, float64: all the same, for they are
        replayed one after another.
        """
        if state.shape not in self._common:
            total = torch.zeros(state.shape, dtype=torch.float64, device=state.device)
            self._common[state.shape] = state.clone(), total
        return self._common[state.shape]

    def unwritten(self) -> Tensor | None:
        """Which trained tensors did not receive their gradients in a pass since the last call, bool ``[slots]`` on the
        device; None where there was no pass.
        """
        if self._unwritten is None:
            return None
        found = self._unwritten.clone()
        self._unwritten.zero_()
        return found

    def _made(
        self, room: int, inputs: Mapping[str, Tensor], targets: Tensor, state: Tensor, clipping: Clipping, apart: bool
    ) -> _SharedPass:
        """A pass for ``room`` samples of this shape."""
        self.arena.rows(room if apart else 1)
        self.forget_moved()  # an arena that grew just now leaves older recordings behind
        if self._unwritten is None:
            self._unwritten = torch.zeros(self.adapters.layout.slots, dtype=torch.bool, device=state.device)
        return _SharedPass(self, room, inputs, targets, state, clipping, apart, self._unwritten)

    def _refuse(self, reason: str) -> None:
        """No recordings of this model from here on (they have memory of their own beside that of passes that are run);
        says so once.
        """
        self.refused = reason
        self._passes.clear()
        self._common.clear()
        log.warning("passes of this model are not recorded as CUDA graphs: %s", reason)

    def forget_moved(self, standing: Standing | None = None) -> None:
        """Drops recordings whose addresses are not those of the arena (and of the model, as it stands now) any more."""
        arena = (id(self.adapters.layout), self.arena.gradients.data_ptr(), self.arena.squares.data_ptr())
        standing = standing or self._standing
        if (arena, standing) != (self._arena, self._standing):
            if self._arena and arena[0] != self._arena[0]:
                self._unwritten = None  # of other tensors
            if standing != self._standing:
                self._run.clear()
            self._arena, self._standing = arena, standing
            self._passes.clear()
            self._common.clear()


class _SharedPass:
    """A pass for batches of one shape, and the buffers that it reads and writes."""

    def __init__(
        self,
        owner: PassGraphs,
        room: int,
        inputs: Mapping[str, Tensor],
        targets: Tensor,
        state: Tensor,
        clipping: Clipping,
        apart: bool,
        unwritten: Tensor,
    ):
        device, segments = state.device, room if apart else 1
        gradients, squares = owner.arena.rows(segments)
        self.inputs = {name: _room_for(value, room, device) for name, value in inputs.items()}
        self.targets = _room_for(targets, room, device)
        self.live = torch.zeros(room, device=device)
        self.nobody = torch.zeros(room, dtype=torch.int64, device=device)  # keys of masks that no pass may take
        common, self.total = owner.common(state)
        norms, groups = clipping.max_grad_norm.clone(), clipping.group_columns.clone()
        self.clipping = clipping._replace(max_grad_norm=norms, group_columns=groups)
        self.current = TrainingPass(
            state=common,
            arena=gradients,
            squares=squares,
            client=torch.zeros(segments, dtype=torch.int32, device=device),
            sample_offsets=torch.arange(0, room + 1, room // segments, dtype=torch.int32, device=device),
            samples=room,
            longest=room // segments,
        )
        self.losses = torch.zeros(room, device=device)
        self.norms = torch.zeros(segments, dtype=torch.float64, device=device)
        self._owner, self._unwritten = proxy(owner), unwritten  # which goes, with its recordings, when its owner does
        self._replay: Callable[[], None] | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether it is replayed from here on."""
        return self._replay is not None

    def record(self) -> None:
        """Records it, once."""
        self._replay = self._replay or self._owner.record(self._compute)

    def run(
        self,
        inputs: Mapping[str, Tensor],
        targets: Tensor,
        rows: np.ndarray,
        state: Tensor,
        total: Tensor,
        clipping: Clipping,
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`PassGraphs.run`."""
        self._fill(inputs, targets, rows)
        with torch.no_grad():
            self.current.state.copy_(state)
        self.clipping.max_grad_norm.copy_(clipping.max_grad_norm)
        (self._replay or self._compute)()
        norms = self.norms if len(self.norms) == len(self.live) else self.norms.expand(len(rows))
        done = self.losses[: len(rows)].clone(), norms[: len(rows)].clone()
        total += self.total  # the last thing that may fail: whoever runs the pass again must not find it there
        return done

    def _fill(self, inputs: Mapping[str, Tensor], targets: Tensor, rows: np.ndarray) -> None:
        """The batch into the buffers; what room is left gets copies of its last sample, which do not count."""
        room = len(self.live)
        at = torch.arange(room).clamp_(max=len(rows) - 1)
        client = torch.from_numpy(np.asarray(rows, dtype=np.int32))
        for buffer, value in [
            *((self.inputs[name], value) for name, value in inputs.items()),
            (self.targets, targets),
            (self.current.client, client),
        ]:
            copy_(buffer, value[at[: len(buffer)]] if len(value) != len(buffer) else value)
        copy_(self.live, (torch.arange(room) < len(rows)).float())

    def _compute(self) -> None:
        """What is run and recorded."""
        owner, squares = self._owner, self.current.squares
        owner.arena.prepare(self.current.arena, squares)
        self.total.zero_()
        head = head_left_out(owner.model) if owner.probe.head_apart else nullcontext()
        idle = without_masks() if set(self.inputs) <= OF_A_WHOLE_TEXT else nullcontext()
        masks = self.current.masks = DropoutMasks(self.nobody)
        passes, keyed = owner.adapters.training_pass(self.current), keyed_dropout(owner.model, masks)
        with passes, head, idle, keyed, nothing_drawn():
            found = owner.losses(owner.model(**self.inputs), self.targets)
            check_losses(found, len(self.live))
            if found.requires_grad:  # no trained layer took part otherwise
                torch.where(self.live > 0, found, 0.0).sum().backward()
        left_out = {name for name, uses in owner.probe.uses.items() if uses} - self.current.used
        if masks.drew or (left_out and drops_out(owner.model, owner.adapters)):
            raise DrawsAtRandom(
                "the model drops out, or leaves layers out, which a recording would do alike every time"
            )
        self._unwritten.logical_or_((squares == UNWRITTEN).any(0))
        done = SegmentGradients(self.current.arena, squares, self.current.client, found.detach())
        self.norms.copy_(done.clip_into_(self.total, *self.clipping))
        self.losses.copy_(done.losses)


def _shapes(inputs: Mapping[str, Tensor]) -> tuple:
    return tuple((name, tuple(value.shape[1:]), value.dtype) for name, value in inputs.items())


def _room_for(value: Tensor, room: int, device: torch.device) -> Tensor:
    return torch.zeros((room, *value.shape[1:]), dtype=value.dtype, device=device)
