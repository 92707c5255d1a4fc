"""PEFT's own layers, computing with our product: PEFT keeps its parameters, names, switches and merging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import layer as peft_lora
from torch import Tensor, nn

from .layers import LowRank, head_product
from .trained_layer import TrainedLayer
from .training_pass import PassSlot

#: PEFT's layers that are one product of a low-rank pair, by class name (the quantised ones exist only where installed).
CONVERTIBLE = ("Linear", "Conv2d", "Linear8bitLt", "Linear4bit", "TorchaoLoraLinear")


class FactorView(LowRank):
    """One named adapter of a PEFT layer, seen as a low-rank layer with places in the flat state. It owns nothing."""

    lora_core = None

    def __init__(self, source: Any, adapter: str, name: str, passes: PassSlot):
        self.source, self.adapter = source, adapter
        self.take_place(name, passes)

    @property
    def module(self) -> nn.Module:
        return self.source

    @property
    def base_layer(self) -> nn.Module:
        return self.source.base_layer

    @property
    def lora_A(self) -> Tensor:
        return self.source.lora_A[self.adapter].weight.flatten(1)

    @property
    def lora_B(self) -> Tensor:
        return self.source.lora_B[self.adapter].weight.flatten(1)

    def factors(self) -> dict[str, nn.Parameter]:
        return {"lora_B": self.source.lora_B[self.adapter].weight, "lora_A": self.source.lora_A[self.adapter].weight}

    def train_factors(self, trained: str) -> None:
        self.source.ffalora_trained = trained
        super().train_factors(trained)

    @property
    def scale(self) -> float:  # type: ignore[override]
        return self.source.scaling[self.adapter]

    @property
    def p_dropout(self) -> float:  # type: ignore[override]
        return getattr(self.source.lora_dropout[self.adapter], "p", 0.0)

    @property
    def training(self) -> bool:  # type: ignore[override]
        return self.source.training

    @property
    def is_merged(self) -> bool:  # type: ignore[override]
        return self.source.merged

    @property
    def is_enabled(self) -> bool:
        return not self.source.disable_adapters

    @is_enabled.setter
    def is_enabled(self, value: bool) -> None:
        self.source.enable_adapters(value)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """As PEFT's switch, which unmerges; what was merged before is merged again."""
        source = self.source
        before, merged = self.is_enabled, list(source.merged_adapters)
        if merged:
            source.unmerge()
        self.is_enabled = False
        try:
            yield
        finally:
            if before:
                self.is_enabled = True
            if merged:
                source.merge(adapter_names=merged)

    def check_mergeable(self) -> None:
        """PEFT merges into quantised weights too."""

    def merge(self) -> None:
        self.source.merge(adapter_names=[self.adapter])

    def unmerge(self) -> None:
        if self.source.merged:
            self.source.unmerge()


class Converted:
    """Mixed into a PEFT layer: forward runs our product wherever PEFT's would run exactly one plain adapter.

    Attributes:
        ffalora_trained: which factor of its adapters is trained: 'b', 'a' or 'both'.
        ffalora_views: one :class:`FactorView` a named adapter.
    """

    ffalora_trained: str
    ffalora_views: dict[str, FactorView]
    ffalora_name: str
    ffalora_passes: PassSlot

    def view(self, adapter: str) -> FactorView:
        """The named adapter as a layer of ours (made at first use: adapters can be added later)."""
        if adapter not in self.ffalora_views:
            self.ffalora_views[adapter] = FactorView(self, adapter, self.ffalora_name, self.ffalora_passes)
        return self.ffalora_views[adapter]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        if names and not layer.disable_adapters and not layer.merged:
            reason = _not_ours(layer, names, args, kwargs)
            if reason is None:
                return self.view(names[0]).adapted(x)
            if self.ffalora_passes.current is not None:
                raise RuntimeError(
                    f"{self.ffalora_name}: {reason}, which has no per-sample gradients; train one plain adapter"
                )
        elif self.ffalora_passes.current is not None and layer.merged:
            raise RuntimeError(
                f"{self.ffalora_name} is merged into its base weight and cannot be trained; unmerge it first"
            )
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; the frozen factor stays frozen."""
        super().set_adapter(*args, **kwargs)  # type: ignore[misc]
        self.freeze()

    def set_requires_grad(self, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; the frozen factor stays frozen."""
        super().set_requires_grad(*args, **kwargs)  # type: ignore[misc]
        self.freeze()

    def freeze(self) -> None:
        """Freezes the factor that is not trained, of every adapter of this layer."""
        frozen = {"b": ("lora_A",), "a": ("lora_B",), "both": ()}[self.ffalora_trained]
        for factor in frozen:
            for adapter in getattr(self, factor).values():
                adapter.weight.requires_grad_(False)


def _not_ours(layer: Any, names: list[str], args: tuple, kwargs: dict[str, Any]) -> str | None:
    """Why PEFT's own forward must answer; None where ours does."""
    if len(names) > 1:
        return f"adapters {', '.join(names)} are active at once"
    if kwargs.get("adapter_names") is not None:
        return "the batch mixes adapters (adapter_names)"
    if names[0] in layer.lora_variant:
        return f"adapter {names[0]!r} is a {type(layer.lora_variant[names[0]]).__name__}"
    if layer.lora_bias.get(names[0]):
        return f"adapter {names[0]!r} has a bias of its own (lora_bias)"
    if args or any(value is not None for value in kwargs.values()):
        return f"the layer is called with more than its input ({', '.join(kwargs) or 'positional arguments'})"
    return None


class ConvertedLinear(Converted, peft_lora.Linear):
    """PEFT's Linear, converted."""


class ConvertedConv2d(Converted, peft_lora.Conv2d):
    """PEFT's Conv2d, converted."""


_CLASSES: dict[type, type] = {peft_lora.Linear: ConvertedLinear, peft_lora.Conv2d: ConvertedConv2d}


def converted_class(kind: type) -> type | None:
    """The converted class of a PEFT layer's class (made once for each quantised one); None where there is none."""
    if kind not in _CLASSES and kind.__name__ in CONVERTIBLE and kind.__module__.startswith("peft."):
        _CLASSES[kind] = type(f"Converted{kind.__name__}", (Converted, kind), {})
    return _CLASSES.get(kind)


class HeadView(TrainedLayer):
    """A linear layer of PEFT's ``modules_to_save``, seen as a trained layer with places in the flat state."""

    def __init__(self, source: nn.Linear, name: str, passes: PassSlot):
        self.base_layer = source
        self.take_place(name, passes)

    @property
    def module(self) -> nn.Module:
        return self.base_layer

    def trained(self) -> dict[str, nn.Parameter]:
        return dict(self.base_layer.named_parameters())


class ConvertedHead(nn.Linear):
    """A trained linear layer that writes its segments' gradients in a pass."""

    ffalora_view: HeadView

    def forward(self, x: Tensor) -> Tensor:
        return head_product(self.ffalora_view, x, super().forward)
