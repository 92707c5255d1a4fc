"""Put adapters into a model."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .base_layers import check_unshared, has_plain_weight, plain_weight, size_of
from .handle import Adapters, replace_modules
from .init import FROM_BASE, factors_from_base, initial_a
from .layers import AdaptedLinear, TrainedLinear
from .opacus_bridge import register_if_loaded
from .targets import find_head, find_targets, head_names, not_compiled, pattern_value
from .torch_layers import leave_fast_path
from .trained_layer import TrainedLayer
from .training_pass import PassSlot
from .variants import VARIANTS

if TYPE_CHECKING:
    from ..config.adapter import AdapterConfig


def attach(model: nn.Module, config: AdapterConfig | Any = None) -> Adapters:
    """Puts adapters on the linear layers that ``config`` names and freezes everything else.

    ``a`` depends on ``config.seed`` and the layer's name alone and ``b`` is zero (inits taken from the base weight: the
    base gives up their product), so the model's outputs do not change.

    Args:
        model: any transformers model (or torch module with linear layers), compiled or not; changed in place.
        config: defaults to FFA-LoRA of rank 8 on query and value projections. Any object with the attributes of
            :class:`~ffalora.config.adapter.AdapterConfig` does (a dataclass, a ``SimpleNamespace``), unchecked; and a
            ``peft.LoraConfig``, of which ``b`` is trained, and the task head where ``modules_to_save`` names it.

    Returns:
        The handle to the adapters.

    Raises:
        ValueError: no layer matches, the model has adapters already, a trained head holds something other than
            linear layers, or a key of a ``peft.LoraConfig`` cannot be honoured. The model is unchanged then.
    """
    model = not_compiled(model)
    config = _settings(model, config)
    _check_plain(model)
    targets, head = find_targets(model, config), find_head(model)
    _check_targets(targets, config)
    if config.head == "trained":
        _check_head(head, model)
    bases = _base_factors(model, config, targets) if config.init in FROM_BASE else {}
    model.requires_grad_(False)
    passes, layers = PassSlot(), []
    for name, base in targets.items():
        layer = _make_layer(config, name, base, passes, bases.get(name))
        if name in bases:
            layer.give_up_initial_product()
        layers.append(layer)
    heads = []
    if config.head == "trained":
        heads = [TrainedLinear(base, name, passes) for name, base in head.items() if name not in targets]
    leave_fast_path(model, targets.values())
    replace_modules(model, {layer.base_layer: layer for layer in [*layers, *heads]})
    register_if_loaded()
    return Adapters(model, config, layers, heads, passes)


def _check_plain(model: nn.Module) -> None:
    """ValueError where a model has adapters, ours or PEFT's."""
    if any(isinstance(module, TrainedLayer) for module in model.modules()):
        raise ValueError("this model has adapters already; call detach() on their handle before attaching new ones")
    if "peft" in sys.modules:
        from peft.tuners.tuners_utils import BaseTunerLayer

        if theirs := [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]:
            raise ValueError(
                f"this model has PEFT's adapters already ({theirs[0]}): convert(model) takes them over, or give the "
                "model without them (peft_model.unload())"
            )


def _settings(model: nn.Module, config: Any) -> AdapterConfig:
    """The configuration as it is, ours of a ``peft.LoraConfig``, or the default."""
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(config, peft.PeftConfig):
        from ..config.adapter import AdapterConfig

        heads = head_names(model)
        wanted = getattr(config, "modules_to_save", None) or []
        if others := [w for w in wanted if not any(h == w or h.endswith(f".{w}") for h in heads)]:
            raise ValueError(
                f"modules_to_save={others!r} is not this model's task head ({', '.join(heads) or 'it has none'}), "
                "which alone can be trained whole; leave it out"
            )
        ours = AdapterConfig.from_peft(config)
        return ours.model_copy(update={"head": "trained" if wanted else "frozen"})
    if config is None:
        from ..config.adapter import AdapterConfig

        return AdapterConfig()
    return config


def _make_layer(
    config: AdapterConfig, name: str, base: nn.Module, passes: PassSlot, factors: tuple[Tensor, Tensor] | None
) -> Any:
    rank, scale = _rank_and_scale(config, name)
    if config.method != "lora":
        return VARIANTS[config.method](base, name, passes, config.seed, rank, scale)
    (n, k), device = size_of(base), base.weight.device
    a, b = factors or (initial_a(rank, k, config.init, config.seed, name), torch.zeros(n, rank))
    if config.trained == "core":
        b = initial_a(rank, n, config.init, config.seed, f"{name}.lora_B").T.contiguous()
    return AdaptedLinear(base, name, passes, a.to(device), b.to(device), scale, config.dropout, config.trained)


def _rank_and_scale(config: AdapterConfig, name: str) -> tuple[int, float]:
    """R, and ``alpha/R`` or ``alpha/√R`` (rsLoRA; Kalajdzievski 2023)."""
    rank = pattern_value(config.rank_pattern, name, config.rank)
    alpha = pattern_value(config.alpha_pattern, name, config.alpha)
    return rank, alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _base_factors(
    model: nn.Module, config: AdapterConfig, targets: dict[str, nn.Module]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors taken from the base weights, all of them before any weight changes."""
    factors = {}
    for name, base in targets.items():
        if not has_plain_weight(base):
            raise ValueError(
                f"init={config.init!r} changes base weights, but the weight of {name} is quantised, or computed from "
                "others (a parametrisation); use a random init"
            )
        check_unshared(model, base, name, f"init={config.init!r}", "use a random init")
        rank, scale = _rank_and_scale(config, name)
        factors[name] = factors_from_base(plain_weight(base), rank, config.init, scale)
    return factors


def _check_targets(targets: dict[str, nn.Module], config: AdapterConfig) -> None:
    for name, base in targets.items():
        if not name:
            raise ValueError(
                f"the model is a {type(base).__name__} that nothing holds, so that no adapter can take its place; give "
                "torch.nn.Sequential(model)"
            )
        size_of(base)
        if config.method != "lora" and isinstance(base, nn.Conv2d):
            raise ValueError(
                f"method={config.method!r} adapts linear layers, but {name} is a Conv2d; use method='lora'"
            )


def _check_head(head: dict[str, nn.Module], model: nn.Module) -> None:
    if not head:
        raise ValueError("head='trained', but this model has no task head that was recognised; use head='frozen'")
    for name, module in head.items():
        if type(module) is not nn.Linear:
            raise ValueError(
                f"head='trained' trains linear layers, but {name} is a {type(module).__name__}; use head='frozen'"
            )

    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tied = [name for name, module in head.items() if id(module.weight) in embedded]
    if tied:
        raise ValueError(
            f"head='trained', but {tied[0]} shares its weight with the input embeddings, whose gradient is not "
            "computed per sample; use head='frozen', or untie them"
        )
