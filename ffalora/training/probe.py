"""What is looked at in the first batches of a training: how the model uses its layers, and whether it, and the losses,
keep samples apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..adapters import Adapters
from ..adapters.uses import telling_head
from ..data.tasks import Losses, causal_losses
from ..models.frozen_head import can_leave_head_out
from ..models.packing import check_packing
from .independence import check_buffers, check_independence, check_losses_independence
from .padding import PaddingWatch, check_length, longest_apart


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
        padding: whether padding changes losses, which takes batches of two lengths to tell.
        uses: how often a pass in evaluation mode goes through each trained layer, by name.
    """

    adapters: Adapters
    private: bool = True
    packed: bool = False
    recomputes: bool = False
    head_apart: bool = field(default=False, init=False)
    padding: PaddingWatch = field(default_factory=PaddingWatch, init=False, repr=False)
    uses: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _rotary: tuple[str, str, int] | None = field(default=None, init=False, repr=False)
    _open: set[str] = field(
        default_factory=lambda: {"uses", "buffers", "head", "packing", "independence"}, init=False, repr=False
    )
    _compared: list[float] = field(default_factory=list, init=False, repr=False)

    def look(self, model: nn.Module, losses: Losses, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Counts how often layers are used, sees whether the head can be left out, compares packed with padded outputs,
        and checks that the model keeps nothing of its samples, and neither it nor the loss mixes them; each once, on
        the first batch that can tell. Of every batch it asks how long it is.

        Raises:
            SamplesNotIndependent: see ``check_buffers``, ``check_independence``, ``PaddingWatch.look`` and
                ``check_length``. ValueError: see ``check_packing``.
        """
        if "uses" in self._open:
            self.uses = self.adapters.count_uses(inputs)
            self._rotary = longest_apart(model)
            self._open.remove("uses")
        self.check_length(inputs)
        if "buffers" in self._open and (len(targets) or not self.private):
            if self.private:
                check_buffers(model, inputs)
            self._open.remove("buffers")
        if "head" in self._open and len(targets):
            self.head_apart = losses is causal_losses and can_leave_head_out(model, inputs)
            self._open.remove("head")
        if not self.packed or ("packing" in self._open and check_packing(model, inputs)):
            self._open.discard("packing")
        if not self.private:
            self._open.discard("independence")
        elif "independence" in self._open and len(targets) > 1:
            with telling_head(model), torch.no_grad():
                has_told = check_independence(model, inputs)
                check_losses_independence(losses, model(**inputs), targets)
            if has_told:
                self._open.remove("independence")
        if self.private:
            self.padding.look(model, losses, inputs, targets)

    def check_length(self, inputs: Mapping[str, Tensor]) -> None:
        """Asks of a batch how long it is.

        Raises:
            SamplesNotIndependent: see ``padding.check_length``.
        """
        if self.private and "input_ids" in inputs:
            check_length(self._rotary, inputs["input_ids"].shape[-1])

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
