"""Is each sample's output and loss a function of that sample alone? Without it, per-sample clipping bounds nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..adapters import Adapters
from ..adapters.uses import with_another_first_sample
from ..data.tasks import Losses, causal_losses, logits_of
from ..models.frozen_head import can_leave_head_out
from ..models.packing import check_packing

#: Largest change of another sample's output, relative to the outputs' root mean square (half a batch may round
#: differently, and is given fifty times as much), and largest relative change of another sample's loss.
_OUTPUT_CHANGE, _LOSS_CHANGE = 1e-3, 1e-4


class SamplesNotIndependent(ValueError):
    """The model or the loss mixes samples: changing one changes what others contribute."""


@dataclass
class Probe:
    """Looks at the first batches of a training, and no more once they have told.

    Attributes:
        adapters: of the model that is trained.
        private: samples are protected, and must not be mixed.
        packed: samples are laid end to end; the model must give the same outputs as for padded ones.
        recomputes: compare gradients with ordinary autograd's, in the first batch and once more when the state has
            moved (with ``b`` zero and all clients alike, half of what can be wrong does not show).
        head_apart: whether the losses can be computed without the logits of a language model's frozen head.
    """

    adapters: Adapters
    private: bool = True
    packed: bool = False
    recomputes: bool = False
    head_apart: bool = field(default=False, init=False)
    _open: set[str] = field(default_factory=lambda: {"uses", "head", "packing", "independence"}, init=False, repr=False)
    _compared: list[float] = field(default_factory=list, init=False, repr=False)

    def look(self, model: nn.Module, losses: Losses, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Counts how often layers are used, sees whether the head can be left out, compares packed with padded outputs,
        and checks that neither the model nor the loss mixes samples; each once, on the first batch that can tell.

        Raises:
            SamplesNotIndependent: see :func:`check_independence`. ValueError: see ``check_packing``.
        """
        if "uses" in self._open:
            self.adapters.count_uses(inputs)
            self._open.remove("uses")
        if "head" in self._open and len(targets):
            self.head_apart = losses is causal_losses and can_leave_head_out(model, inputs)
            self._open.remove("head")
        if not self.packed or ("packing" in self._open and check_packing(model, inputs)):
            self._open.discard("packing")
        if not self.private:
            self._open.discard("independence")
        elif "independence" in self._open and len(targets) > 1:
            has_told = check_independence(model, inputs, logits_of)
            with torch.no_grad():
                logits = logits_of(model(**inputs))
            check_losses_independence(losses, logits, targets)
            if has_told:
                self._open.remove("independence")

    @property
    def has_looked(self) -> bool:
        """Whether batches have told everything that outputs and losses can tell."""
        return not self._open

    @property
    def is_satisfied(self) -> bool:
        """Whether nothing is left to look at."""
        return not self._open and not (self.private and self.recomputes and len(self._compared) < 2)

    def is_to_compare(self, state: Tensor) -> bool:
        """Whether gradients at this state, float32 ``[C,P]``, are to be compared: in two batches of different ones."""
        if not (self.private and self.recomputes) or len(self._compared) == 2:
            return False
        size = float(state.double().square().sum())
        if size in self._compared:
            return False
        self._compared.append(size)
        return True


@torch.no_grad()
def check_independence(model: nn.Module, inputs: Mapping[str, Tensor], logits: Callable[..., Tensor]) -> bool:
    """Changes one sample of a batch, then leaves half of it out, and compares the outputs of all others.

    Models that draw random numbers (dropout) are judged by the first alone: with another batch they draw others.

    Args:
        model: in the mode that it is trained in.
        inputs: a batch of samples, leading dimension first.
        logits: takes the model's output and returns ``[S, ...]``.

    Returns:
        Whether this batch could tell: it takes two samples, and one that can be changed.

    Raises:
        SamplesNotIndependent: another sample's output changed (batch normalisation, capacity-limited routing, leaky
            packing).
    """
    size = next(iter(inputs.values())).shape[0]
    if size < 2:
        return False
    changed = with_another_first_sample(inputs)
    if changed is None:
        return False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = logits(model(**inputs)).float()
        torch.manual_seed(0)
        after = logits(model(**changed)).float()
        rms = before.square().mean().sqrt()
        _refuse_change(f"changing sample 0 of a batch of {size}", after[1:] - before[1:], rms, _OUTPUT_CHANGE)
        if torch.equal(before, logits(model(**inputs)).float()):
            half = logits(model(**{name: value[size // 2 :] for name, value in inputs.items()})).float()
            _refuse_change(
                f"leaving out half of a batch of {size}", half - before[size // 2 :], rms, 50 * _OUTPUT_CHANGE
            )
    return True


def _refuse_change(what: str, difference: Tensor, rms: Tensor, tolerance: float) -> None:
    change = difference.abs().max()
    if not bool(change <= tolerance * rms):
        raise SamplesNotIndependent(
            f"{what} moved another sample's output by {float(change):.3g} (outputs have root mean square "
            f"{float(rms):.3g}): this model mixes samples, so that per-sample clipping does not bound what one sample "
            "can do. Replace batch normalisation by layer or group normalisation, and turn off capacity-limited "
            "routing or packing"
        )


@torch.no_grad()
def check_losses_independence(losses: Losses, logits: Tensor, targets: Tensor) -> None:
    """Takes one sample out of a batch, and changes it, and compares the losses of all others.

    Args:
        losses: takes an output with ``logits`` and the targets, returns one loss a sample.
        logits: ``[S, ...]``; targets: ``[S, ...]``, S at least 2.

    Raises:
        ValueError: there is not one loss a sample. SamplesNotIndependent: the loss is a mean over the batch, or
            compares samples with each other.
    """
    whole = losses(SimpleNamespace(logits=logits), targets)
    check_losses(whole, len(targets))
    whole = whole[1:].double()
    shorter = losses(SimpleNamespace(logits=logits[1:]), targets[1:]).double()
    other = logits.clone()
    other[0] = -logits[0] + 1.0
    changed = losses(SimpleNamespace(logits=other), targets)[1:].double()
    limit = _LOSS_CHANGE * whole.abs() + 1e-6 * (1.0 + whole.abs().max())
    for what, found in (("leaving sample 0 out of", shorter), ("changing the output of sample 0 in", changed)):
        moved = (found - whole).abs()
        if bool((whole.isfinite() & found.isfinite() & (moved > limit)).any()):
            raise SamplesNotIndependent(
                f"{what} a batch of {len(targets)} moved another sample's loss by "
                f"{float(moved.nan_to_num().max()):.3g}: the loss averages over the batch or compares samples. Use "
                "reduction='none', without weights that depend on the batch"
            )


def check_losses(losses: Tensor, samples: int) -> None:
    """One loss a sample: a mean over the batch would let its size, and every other sample, into each gradient."""
    if tuple(losses.shape) != (samples,):
        raise ValueError(
            f"losses returned shape {tuple(losses.shape)} for {samples} samples, but one loss a sample is needed, [S]; "
            "use reduction='none', and average over a sample's own tokens only"
        )
