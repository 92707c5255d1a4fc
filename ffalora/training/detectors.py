"""Is the model that trains the model that is read, and are gradients the gradients? Storage that parted, steps that
changed nothing, operations that compute something else.

Frameworks lose a training run without a word: a model that was copied after adapters were attached, a parameter that
shares its memory with another, an update written into a copy. Each of these is an error here. None of them mistakes a
learning rate of zero or a zero gradient for a fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn

from ..adapters import Adapters, Layout, TrainingPass
from ..config import OptimizerConfig
from .transfer import Sent, to_device

#: Changes below this share of a parameter may vanish in its float32 rounding (2⁻²⁴); smaller ones are not expected.
_VISIBLE = 2.0**-16
#: Largest error of a trained tensor's gradient, relative to its size, in float32 and in narrower formats; and the share
#: of the whole gradient below which a tensor's own size does not count.
_FLOAT32_ERROR, _NARROW_ERROR, _SMALL_PART = 1e-3, 0.5, 1e-3


#: How an adapted layer adds to its base.
_OF_LAYERS = attrgetter("is_merged", "is_enabled", "scale")


class StorageParted(RuntimeError):
    """What is trained and what the model's forward pass reads are not the same tensors."""


class UpdateLost(RuntimeError):
    """The optimiser had a gradient and a learning rate, and a trained tensor stayed as it was."""


class GradientWrong(RuntimeError):
    """A sample's gradient in the arena is not the one that ordinary autograd finds for that sample alone."""


#: Each module of a model once, with its name there.
Modules = Sequence[tuple[str, nn.Module]]


def each_module(model: nn.Module) -> list[nn.Module]:
    """A model's modules, each once, in no promised order: as ``model.modules()``, in a third of its time (for
    what is asked in every step; names are asked for where something changed, and come from ``named_modules``).
    """
    seen, found = {id(model)}, [model]
    for module in found:  # which grows on the way
        if parts := module._modules:
            for part in parts.values():
                if part is not None and id(part) not in seen:
                    seen.add(id(part))
                    found.append(part)
    return found


#: What modules keep beside their tensors that changes what a pass computes, or what is asked of its samples.
_READ = (
    *("track_running_stats", "forward", "rope_type", "original_max_seq_len"),
    *("p", "dropout_prob", "drop_prob", "dropout", "attention_dropout", "activation_dropout", "layerdrop"),
)
#: Where torch keeps the hooks of a module.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, eq=False)
class Standing:
    """What a model with adapters was when it was looked at: two looks that are equal saw the same modules, in the same
    mode, with the same tensors at the same places, and the same ones of them trained.

    Attributes:
        layout: of the trained tensors.
        modules, tensors: what was there; held, so that nothing new can take their places in memory.
        mode: of each module whether it trains, what hooks it, what replaces its forward pass, whether it keeps running
            statistics, its kind of rotary embeddings, and how much it drops out; of each adapted layer how it adds to
            its base; of each configuration its attention.
        places: of each tensor: which it is, its address, number format and whether it is trained.
        drops_out: whether a pass may draw masks, as ``dropout.drops_out``.
    """

    layout: Layout
    modules: list[nn.Module]
    tensors: list[Tensor]
    mode: list[tuple]
    places: list[tuple]
    drops_out: bool

    @classmethod
    def of(cls, model: nn.Module, adapters: Adapters) -> Standing:
        """One walk over the model."""
        modules = each_module(model)
        own = list(map(vars, modules))
        training = [module.training for module in modules]  # a compiled one asks the one inside
        mode: list[tuple] = [("_hf_hook" in of, *map(of.get, _READ)) for of in own]
        for kind in _HOOKS:
            mode += [(id(of), *of[kind].values()) for of in own if of[kind]]
        configs = {id(of["config"]): of["config"] for of in own if "config" in of}
        mode += [(getattr(config, "_attn_implementation", None),) for config in configs.values()]
        dropout = [getattr(layer, "p_dropout", 0.0) for layer in adapters.layers.values()]
        mode += [_OF_LAYERS(layer) for layer in adapters.layers.values()]
        held = [of for each in own for of in (each["_parameters"], each["_buffers"]) if of]
        tensors = [tensor for of in held for tensor in of.values() if tensor is not None]
        places = [(id(t), t.data_ptr(), t.dtype, t.requires_grad) for t in tensors]
        mode += [tuple(training), tuple(dropout)]
        return cls(adapters.layout, modules, tensors, mode, places, any(training) or any(dropout))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Standing):
            return NotImplemented
        mine, theirs = (list(map(id, [one.layout, *one.modules])) for one in (self, other))
        return (mine, self.mode, self.places) == (theirs, other.mode, other.places)


def check_attached(modules: Modules, adapters: Adapters, device: torch.device) -> None:
    """The adapters' layers are among a model's modules, and their parameters are float32, here, and nobody else's.

    Raises:
        StorageParted: names the layer or the tensor, what happened to it, and what to do.
    """
    inside = {id(module) for _, module in modules}
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
    holders = _holders(modules)
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


def _holders(modules: Modules) -> dict[int, list[str]]:
    """Names of the parameters and buffers at each address; a module that hangs in several places counts once."""
    found: dict[int, list[str]] = {}
    for prefix, module in modules:
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


def check_gradients(adapters: Adapters, gradients: Tensor, expected: Mapping[int, tuple[Tensor, bool]]) -> None:
    """Compares rows of the arena with what plain torch found for their samples alone.

    Each trained tensor is compared by itself, against its own size; what is below a thousandth of the whole gradient is
    rounding of larger numbers.

    Args:
        gradients: float32 ``[S,P]``.
        expected: by row, of some of the samples, float32 ``[P]``, and whether all is computed in float32: elsewhere
            only gross errors can be told from rounding.

    Raises:
        GradientWrong: names the tensor and the size of the error.
    """
    for row, (reference, is_exact) in expected.items():
        most = _FLOAT32_ERROR if is_exact else _NARROW_ERROR
        found, reference = gradients[row].double(), reference.double()
        if not bool(found.isfinite().all() and reference.isfinite().all()):
            continue  # counts as zero in the sum, whatever it is
        whole = float(reference.norm())
        for place in adapters.layout.places:
            size = max(float(reference[place.columns].norm()), _SMALL_PART * whole)
            error = float((found[place.columns] - reference[place.columns]).norm())
            if error > most * size + 1e-30:
                raise GradientWrong(
                    f"sample {row} of a private batch: the gradient of {place.name} differs by "
                    f"{error / max(size, 1e-30):.2g} of its size from the same sample alone under ordinary autograd "
                    f"(rounding allows {most:g}): clipping would bound something else. Either the losses or the model "
                    "let other samples of the batch into a sample's loss (negatives in the batch, means over it): use "
                    "each sample's own alone; or an operation computes wrongly: reinstall ffalora (make build), and if "
                    "it stays, report it. "
                    "privacy.check_gradients=false turns this comparison off"
                )


class UpdateWatch:
    """Looks at one logical step: every tensor that had to move, moved.

    A tensor of a client had to move where its clipped sum (with the noise, where that is secure), times the learning
    rate, is large enough to be seen in float32. A zero learning rate, a zero gradient (an ``a`` whose ``b`` is still
    zero), and columns that a client does not have ask for nothing.
    """

    def __init__(
        self,
        adapters: Adapters,
        optimizer: OptimizerConfig,
        state: Tensor,
        total: Tensor,
        denominator: Tensor,
        lr: Tensor,
        fresh: Tensor,
        mask: Tensor | None,
    ):
        """Args:
        state: float32 ``[C,P]`` before the step; total: float64 ``[C,P]``, clipped sums.
        denominator, lr: float64 ``[C]``.
        fresh: bool ``[C]``, rows whose moments are zero; mask: bool ``[C,P]``, columns that a client has, or None.
        """
        self._layout, self._before, self._state = adapters.layout, state.clone(), state
        bounds = torch.tensor([(place.start, place.start + place.size) for place in self._layout.places])
        self._first, self._end = to_device(bounds, state.device).view(-1, 2).unbind(1)
        gradient = total.abs() / denominator[:, None]
        if optimizer.name == "adamw":
            gradient = gradient / (gradient + optimizer.eps) * fresh[:, None]
        driven = lr[:, None] * gradient > _VISIBLE * state.abs() + 1e-30
        self._driven = self._by_tensor(driven if mask is None else driven & mask)

    def look(self) -> None:
        """Right after the step."""
        self._lost = Sent((self._driven & ~self._by_tensor(self._state != self._before)).any(0))

    def check(self) -> None:
        """Reads what was seen.

        Raises:
            UpdateLost: names the tensors that stayed as they were.
        """
        (lost,) = self._lost.read()
        if bool(lost.any()):
            names = [self._layout.places[i].name for i in lost.nonzero().flatten().tolist()]
            raise UpdateLost(
                f"the optimiser left {len(names)} of {len(self._layout.places)} trained tensors as they were although "
                f"they have gradients (first: {names[0]}); the state it updates is not the one that it was given"
            )

    def _by_tensor(self, columns: Tensor) -> Tensor:
        """bool ``[C,P]`` to bool ``[C, slots]``: any column of the tensor."""
        counts = torch.nn.functional.pad(columns.cumsum(1, dtype=torch.int32), (1, 0))
        return counts[:, self._end] > counts[:, self._first]
