"""Is the model that trains the model that is read? Storage that parted, and steps that changed nothing.

Frameworks lose a training run without a word: a model that was copied after adapters were attached, a parameter that
shares its memory with another, an update written into a copy. Each of these is an error here. None of them mistakes a
learning rate of zero or a zero gradient for a fault.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..adapters import Adapters, TrainingPass
from ..config import OptimizerConfig

#: Changes below this share of a parameter may vanish in its float32 rounding (2⁻²⁴); smaller ones are not expected.
_VISIBLE = 2.0**-16


class StorageParted(RuntimeError):
    """What is trained and what the model's forward pass reads are not the same tensors."""


class UpdateLost(RuntimeError):
    """The optimiser had a gradient and a learning rate, and a trained tensor stayed as it was."""


def check_attached(model: nn.Module, adapters: Adapters, device: torch.device) -> None:
    """The adapters' layers are the modules inside ``model``, and their parameters are float32, here, and nobody else's.

    Raises:
        StorageParted: names the layer or the tensor, what happened to it, and what to do.
    """
    inside = {id(module) for module in model.modules()}
    for layer in adapters.trained_layers():
        if id(layer.module) not in inside:
            raise StorageParted(
                f"{layer.name} of these adapters is not a module of this model: the model was copied, or the layer was "
                "replaced, after the adapters were attached; attach to the model that is trained"
            )
        if layer._passes is not adapters._passes:
            raise StorageParted(
                f"{layer.name} looks for its training pass somewhere else than these adapters put it (a copied layer); "
                "attach adapters to the copy"
            )
    holders = _holders(model)
    for place in adapters.layout.places:
        parameter = adapters.layout.parameter(place)
        if parameter.dtype != torch.float32:
            raise StorageParted(
                f"{place.name} is {parameter.dtype}, but trained tensors are float32 (a cast of the whole model rounds "
                "every update): cast the base before attaching, or this tensor back with .float()"
            )
        if parameter.device.type != device.type:
            raise StorageParted(
                f"{place.name} is on {parameter.device} and the engine on {device}: the model was moved after the "
                "engine was made; move it first"
            )
        names = holders.get(parameter.data_ptr(), [])
        if len(names) > 1:
            raise StorageParted(
                f"{place.name} is trained, and its memory is also that of {names[1]} (tied, or a view): that use would "
                "follow it without being clipped; give each its own memory (.clone()), or leave it out"
            )


def _holders(model: nn.Module) -> dict[int, list[str]]:
    """Names of the parameters and buffers at each address; a module that hangs in several places counts once."""
    found: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.numel() and tensor.device.type != "meta":
                found.setdefault(tensor.data_ptr(), []).append(f"{prefix}.{name}" if prefix else name)
    return found


def check_reads_state(current: TrainingPass, state: Tensor) -> None:
    """The state that the forward pass reads is the memory that the optimiser updates.

    Raises:
        StorageParted: it is a copy, so that training would never move what the model computes with.
    """
    if current.state.data_ptr() != state.data_ptr() or current.state.stride() != state.stride():
        raise StorageParted("the training pass reads a copy of the state, not the state that the optimiser updates")


class UpdateWatch:
    """Looks at one logical step: every tensor that had to move, moved.

    A tensor of a client had to move where its clipped sum, before noise, times the learning rate is large enough to be
    seen in float32. A zero learning rate, a zero gradient (an ``a`` whose ``b`` is still zero), and columns that a
    client does not have ask for nothing.
    """

    def __init__(
        self, adapters: Adapters, optimizer: OptimizerConfig, state: Tensor, total: Tensor, denominator: Tensor,
        lr: Tensor, fresh: Tensor, mask: Tensor | None,
    ):  # fmt: skip
        """Args:
        state: float32 ``[C,P]`` before the step; total: float64 ``[C,P]``, clipped sums before noise.
        denominator, lr: float64 ``[C]``.
        fresh: bool ``[C]``, rows whose moments are zero; mask: bool ``[C,P]``, columns that a client has, or None.
        """
        self._layout, self._before, self._state = adapters.layout, state.clone(), state
        gradient = total.abs() / denominator[:, None]
        if optimizer.name == "adamw":
            gradient = gradient / (gradient + optimizer.eps) * fresh[:, None]
        driven = lr[:, None] * gradient > _VISIBLE * state.abs() + 1e-30
        self._driven = self._by_tensor(driven if mask is None else driven & mask)

    def check(self) -> None:
        """After the step.

        Raises:
            UpdateLost: names the tensors that stayed as they were.
        """
        lost = (self._driven & ~self._by_tensor(self._state != self._before)).any(0)
        if bool(lost.any()):
            names = [self._layout.places[i].name for i in lost.nonzero().flatten().tolist()]
            raise UpdateLost(
                f"the optimiser left {len(names)} of {len(self._layout.places)} trained tensors as they were although "
                f"they have gradients (first: {names[0]}); the state it updates is not the one that it was given"
            )

    def _by_tensor(self, columns: Tensor) -> Tensor:
        """bool ``[C,P]`` to bool ``[C, slots]``: any column of the tensor."""
        found = torch.zeros(len(columns), self._layout.slots, dtype=torch.bool, device=columns.device)
        for place in self._layout.places:
            found[:, place.slot] = columns[:, place.start : place.start + place.size].any(1)
        return found
