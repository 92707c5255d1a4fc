"""A training pass: what the adapted layers read their parameters from and write their gradients to.

Outside a pass a layer uses its own parameters and autograd. Inside one it reads ``b`` of every client from the state
and writes the gradient of every segment to the arena, so that a whole cohort trains in one forward and one backward
pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ffalora_kernels import Segments

from .dropout import DropoutMasks


@dataclass(eq=False)
class TrainingPass:
    """One forward and backward pass over a batch of samples, each of one padded length.

    Attributes:
        state: float32 ``[C,P]``, the parameters of every client. The pass keeps an alias of it that requires grad, so
            that autograd visits every trained layer; the gradients themselves go to the arena.
        arena: float32 ``[S,P]``, receives one row of gradients a segment.
        squares: float64 ``[S, slots]``, receives squared norms by trained tensor.
        client: int32 ``[S]``, the row of the state that each segment uses.
        sample_offsets: int32 ``[S+1]``; segment i owns samples ``sample_offsets[i] … sample_offsets[i+1]-1``. One
            sample a segment under sample-level privacy; neighbours may share one where their sum is all that is wanted.
        samples: how many samples the batch holds.
        longest: samples in the largest segment.
        merged: for each layer's name, ``w + scale · b a`` of the one client, where the pass uses merged weights.
        mixes: for each layer's name two matrices, float32 ``[R,R]``, that its gradients of ``b`` (from the right) and
            of ``a`` (from the left) are multiplied with on their way into the arena; None leaves them as they are.
        packed: segments of the tokens where the batch is one row of tokens without padding.
        masks: of the adapters' dropout, which is on in a pass; None draws them by position.
        used: names of the layers that the forward pass went through; those of compiled parts of a model are not known.
        writes: int32 ``[slots]``, how often compiled code has written each trained tensor's gradients.
    """

    state: Tensor
    arena: Tensor
    squares: Tensor
    client: Tensor
    sample_offsets: Tensor
    samples: int
    longest: int = 1
    merged: dict[str, Tensor] | None = None
    mixes: Mapping[str, tuple[Tensor, Tensor]] | None = None
    packed: Segments | None = None
    masks: DropoutMasks | None = None
    used: set[str] = field(default_factory=set)
    writes: Tensor = field(init=False)
    _written: set[int] = field(default_factory=set)
    _by_length: dict[int, Segments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = self.state.detach().requires_grad_()
        self.writes = torch.zeros(self.squares.shape[1], dtype=torch.int32, device=self.squares.device)
        # The compiler takes an integer attribute for a constant and the size of a tensor for a variable.
        self._counts = torch.zeros(()).expand(self.samples), torch.zeros(()).expand(self.longest)

    @property
    def written(self) -> set[int] | None:
        """Slots whose gradients the backward pass has written, to which a layer's next use adds; None in a compiled
        pass, where layers add to zeros if they were counted more than once.
        """
        return None if torch.compiler.is_compiling() else self._written

    def overwritten(self) -> list[int]:
        """Slots that compiled code has written more than once in this pass: unless their layers accumulate, only their
        last use is in the arena.
        """
        if len(self._written) == len(self.writes):  # all of it ran as it is written, and nothing has to be read
            return []
        return (self.writes > 1).nonzero().flatten().tolist()

    def begin(self) -> None:
        """Nothing is used or written yet; a recorded pass begins more than once."""
        self.used.clear()
        self._written.clear()

    def segments_of(self, x: Tensor, name: str, folded: bool = False) -> Segments:
        """The segments of a layer's input ``x [..., K]``, found from its leading dimensions.

        Raises:
            ValueError: the input does not lead with the batch (nor hold the packed tokens): its samples cannot be told
                apart.
        """
        if not torch.compiler.is_compiling():
            self.used.add(name)
        tokens = x.numel() // x.shape[-1]
        if self.packed is not None and tokens == self.packed.n_tokens:
            return self.packed
        samples = self._counts[0].shape[0]
        leads = x.shape[0] % samples == 0 if folded and samples else x.shape[0] == samples
        if x.dim() < 2 or not leads:
            raise ValueError(
                f"{name}: input of shape {tuple(x.shape)} does not lead with the {self.samples} samples of the batch, "
                "nor with windows of one sample after another (count_uses finds those), so its per-sample gradients "
                "are undefined; leave the layer out (exclude_modules)"
            )
        length = tokens // samples if samples else 0
        if torch.compiler.is_compiling():
            return self._segments(length)
        if length not in self._by_length:
            self._by_length[length] = self._segments(length)
        return self._by_length[length]

    def _segments(self, length: int) -> Segments:
        samples, longest = (count.shape[0] for count in self._counts)
        return Segments(
            self.sample_offsets * length, self.client, self.state.shape[0], longest * length, samples * length
        )


def one_segment(tokens: int, device: torch.device) -> Segments:
    """All tokens as one segment of one client: ordinary training. Made without checks, which would not compile."""
    offsets = torch.arange(2, dtype=torch.int32, device=device) * tokens
    return Segments(offsets, torch.zeros(1, dtype=torch.int32, device=device), 1, tokens, tokens)


class PassSlot:
    """The place where all layers of one model look for the current pass; None outside training."""

    current: TrainingPass | None = None
