"""The layers that replace a model's own, from a projection's input to the operation: adapted linear, trained head.

Three kinds of base layer: *fused* ones (a plain weight: one autograd function owns base product and adapter), ones with
a product of their *own* (quantised or subclassed layers: the base runs as it is, so that the gradient of its input goes
through its own dequantised product), and *convolutions* (a linear layer of unfolded patches).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ffalora_kernels.backward_pass import is_autocast

from .autograd import adapted_linear, trained_linear
from .base_layers import is_fused, plain_weight, unfold, weight_plus
from .dropout import masked_dropout
from .trained_layer import Mergeable, TrainedLayer
from .training_pass import PassSlot, TrainingPass, one_segment


class LowRank(Mergeable):
    """A base layer and its low-rank adapter, wherever the factors live (here, or in a layer of PEFT)."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_core: nn.Parameter | None
    scale: float
    p_dropout: float
    training: bool
    initial: tuple[Tensor, Tensor] | None = None

    def adapted(self, x: Tensor) -> Tensor:
        """The layer's output: base product plus adapter, with the layer's own factors or, in a pass, every client's."""
        current, base = self._passes.current, self.base_layer
        if self.is_merged and current is not None:
            raise RuntimeError(
                f"{self.name} is merged into its base weight and cannot be trained; call unmerge() first"
            )
        if self.is_merged or not self.is_enabled:
            return base(x)
        if is_fused(base):
            w = plain_weight(base)
            return self._product(cast(x, w.dtype), w, base.bias, current)
        y = base(x)
        if isinstance(base, nn.Conv2d):
            tokens = self._product(unfold(base, cast(x, y.dtype)), None, None, current)
            return y + tokens.transpose(-1, -2).reshape(y.shape)
        return y + self._product(cast(x, y.dtype), None, None, current).to(y.dtype)

    def _product(self, x: Tensor, w: Tensor | None, bias: Tensor | None, current: TrainingPass | None) -> Tensor:
        """The adapter's product, and ``x wᵀ + bias`` with it unless ``w`` is None."""
        dropped = None
        if self.p_dropout and (self.training or current is not None):
            dropped = masked_dropout(x, self.p_dropout, None if current is None else current.masks)
        if self.lora_core is not None:
            y = self._core_product(x if dropped is None else dropped, self.lora_core, current)
            return y if w is None else y + linear(x, w, bias)
        if w is None and dropped is not None:
            x, dropped = dropped, None
        if current is None:
            segments, sink, merged = one_segment(x.numel() // x.shape[-1], x.device), None, None
            a, b = self.lora_A, self.lora_B
            b = (b if b.dtype == x.dtype else b.to(torch.promote_types(x.dtype, torch.float32))).unsqueeze(0)
        else:
            segments, sink = current.segments_of(x, self.name, self.folded), self.sink(current, "lora_A", "lora_B")
            merged = None if w is None or current.merged is None else current.merged.get(self.name)
            if "lora_A" in self.places and len(current.state) > 1:
                raise ValueError(
                    f"{self.name}: a pass over {len(current.state)} clients takes one a for all of them, and a is "
                    "trained here; give a state of one row, a pass for each client"
                )
            a = self.from_state(current, "lora_A", self.lora_A)[0]
            b = self.from_state(current, "lora_B", self.lora_B)
        w = w if merged is None else merged
        return adapted_linear(x, w, bias, a, b, self.scale, segments, sink, dropped, merged is not None)

    def _core_product(self, x: Tensor, core: Tensor, current: TrainingPass | None) -> Tensor:
        """``scale · b core_c a`` between frozen factors (LoRA-SB, Fed-SB)."""
        h = linear(x, self.lora_A.to(x.dtype))
        if current is None:
            u = linear(h, core.to(x.dtype))
        else:
            sink = self.sink(current, "lora_core", "none")
            segments = current.segments_of(x, self.name, self.folded)
            u = trained_linear(h, self.from_state(current, "lora_core", core), None, segments, sink)
        return self.scale * linear(u, self.lora_B.to(x.dtype))

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def factors(self) -> dict[str, nn.Parameter]:
        """The factors, ``b`` before ``a``: the order of columns and slots."""
        core = {} if self.lora_core is None else {"lora_core": self.lora_core}
        return {"lora_B": self.lora_B, "lora_A": self.lora_A, **core}

    def trained(self) -> dict[str, nn.Parameter]:
        """The factors that are trained, in the order of their columns and slots."""
        return {name: factor for name, factor in self.factors().items() if factor.requires_grad}

    def train_factors(self, trained: str) -> None:
        """Trains 'b', 'a' or 'both' (with a core: 'core') and freezes the others.

        Raises:
            ValueError: a core is trained alone, and only where there is one.
        """
        if (trained == "core") != (self.lora_core is not None):
            raise ValueError(f"{self.name}: a core is trained alone, where there is one; got trained={trained!r}")
        for name, factor in self.factors().items():
            factor.requires_grad_(trained in ("both", name.removeprefix("lora_").lower()))

    def _left(self) -> Tensor:
        """What multiplies ``a``: ``b``, or ``b core``."""
        return self.lora_B if self.lora_core is None else self.lora_B @ self.lora_core

    def checkpoint(self) -> dict[str, Tensor]:
        """Both factors under the names and in the shapes of PEFT's files (a convolution's are convolutions)."""
        a, b, base = self.lora_A, self._left(), self.base_layer
        if isinstance(base, nn.Conv2d):
            return {"lora_A.weight": a.view(-1, *base.weight.shape[1:]), "lora_B.weight": b.view(*b.shape, 1, 1)}
        return {"lora_A.weight": a, "lora_B.weight": b}

    def delta(self) -> Tensor:
        """``scale · b a`` (``scale · b core a``), float32 ``[N,K]``."""
        return self.scale * (self._left() @ self.lora_A)

    def merged_weight(self, row: Tensor) -> Tensor | None:
        """``w + scale · b a`` with the factors of a row ``[P]`` of the state, ``[N,K]`` in the weight's dtype.

        None for a base layer whose product is its own, and for a core, whose gradient needs ``a x`` anyway.
        """
        if self.lora_core is not None or not is_fused(self.base_layer):
            return None
        b, a = (
            own if name not in self.places else row[self.places[name] : self.places[name] + own.numel()].view(own.shape)
            for name, own in (("lora_B", self.lora_B), ("lora_A", self.lora_A))
        )
        w = self.base_weight()
        return torch.addmm(w.float(), b, a, alpha=self.scale).to(w.dtype)

    def give_up_initial_product(self) -> None:
        """Takes ``scale · b a`` out of the base weight for good: the factors were taken from it (PiSSA, OLoRA)."""
        self.initial = self.lora_A.detach().clone(), self.lora_B.detach().clone()
        self.add_to_base(-self.delta().detach())

    def take_back_initial_product(self) -> None:
        """Gives the base weight back what :meth:`give_up_initial_product` took, unless a merged adapter brings it."""
        if self.initial is not None and not self.is_merged:
            self.check_enabled()
            self.add_to_base(self._initial_delta(*self.initial))
            self.initial = None

    def _initial_delta(self, a: Tensor, b: Tensor) -> Tensor:
        return self.scale * (b.to(self.lora_B.device) @ a.to(self.lora_A.device))

    def without_adapter(self) -> Tensor | None:
        """As for any mergeable layer, with the product that the base gave up at the start."""
        if self.initial is None:
            return super().without_adapter()
        change = self._initial_delta(*self.initial)
        return weight_plus(self.base_layer, change - self.delta().detach() if self.is_merged else change)


class AdaptedLinear(LowRank, nn.Module):
    """A frozen linear layer (Linear, Conv1D, Conv2d, or a subclass with its own product) plus ``scale · b a``.

    Attributes:
        lora_A: ``[R,K]`` and lora_B: ``[N,R]``, float32 (the names PEFT uses).
        lora_core: ``[R,R]``, float32, zero at first, where ``trained`` is 'core': the adapter is then ``b core a``.
        scale: ``alpha/R`` or ``alpha/√R``.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        name: str,
        passes: PassSlot,
        a: Tensor,
        b: Tensor,
        scale: float,
        dropout: float,
        trained: str,
    ):
        nn.Module.__init__(self)
        self.take_place(name, passes)
        self.base_layer = base_layer
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)
        core = nn.Parameter(torch.zeros(len(a), len(a), device=a.device)) if trained == "core" else None
        self.register_parameter("lora_core", core)
        self.train_factors(trained)
        self.scale, self.p_dropout = scale, dropout
        self.is_merged, self.is_enabled = False, True
        self.train(base_layer.training)

    forward = LowRank.adapted

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}, dropout={self.p_dropout:g}"


class TrainedLinear(TrainedLayer, nn.Module):
    """A linear layer that is trained whole (a task head): weight ``[N,K]`` and bias ``[N]``."""

    base_layer: nn.Linear

    def __init__(self, base_layer: nn.Module, name: str, passes: PassSlot):
        nn.Module.__init__(self)
        self.take_place(name, passes)
        self.base_layer = base_layer
        base_layer.requires_grad_(True)
        self.train(base_layer.training)

    def trained(self) -> dict[str, nn.Parameter]:
        """Weight before bias: the order of columns and slots."""
        return dict(self.base_layer.named_parameters())

    def forward(self, x: Tensor) -> Tensor:
        return head_product(self, x, self.base_layer)


def head_product(head: TrainedLayer, x: Tensor, plain: Callable[[Tensor], Tensor]) -> Tensor:
    """The output of a head that is trained whole, in the dtype of ``x`` (the head may be float32 on a bf16 model):
    ``plain`` of the input or, in a pass, ``x wᵀ + bias`` with every client's own tensors.
    """
    current, w, bias = head._passes.current, head.base_layer.weight, head.base_layer.bias
    own = cast(x, w.dtype)
    if current is None:
        return cast(plain(own), x.dtype)
    y = trained_linear(
        own,
        head.from_state(current, "weight", w),
        None if bias is None else head.from_state(current, "bias", bias),
        current.segments_of(x, head.name, head.folded),
        head.sink(current, "weight", "bias"),
    )
    return cast(y, x.dtype)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``; as it is under autocast, which chooses for itself."""
    return x if is_autocast(x) else x.to(dtype)
