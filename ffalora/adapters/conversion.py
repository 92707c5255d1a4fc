"""PEFT models in place: ``convert`` makes PEFT's LoRA layers compute with our product and freezes a factor.

Nothing is copied or renamed: parameters, names, saving, switching and merging stay PEFT's, so whatever was written for
a PEFT model keeps working. The handle that comes back is the one that training passes, engines and strategies use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as peft_lora
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..config.adapter import AdapterConfig
from ..config.peft_names import refusals
from .base_layers import size_of
from .handle import Adapters
from .init import initial_a
from .peft_layers import Converted, ConvertedHead, FactorView, HeadView, converted_class
from .targets import not_compiled
from .torch_layers import leave_fast_path, unread_outputs
from .training_pass import PassSlot


class ConvertedAdapters(Adapters):
    """The handle of one named adapter of a PEFT model."""

    def __init__(self, peft_model: nn.Module, adapter: str, config: AdapterConfig, *parts: Any):
        super().__init__(_inner(peft_model), config, *parts)
        self.peft_model, self.adapter = peft_model, adapter

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block the model answers as without PEFT's adapters, trained copies (``modules_to_save``) among
        them; after it, as before. As with PEFT's own switch, a product that a base gave up (PiSSA) stays out.
        """
        wrappers = [m for m in self.model.modules() if isinstance(m, ModulesToSaveWrapper) and not m.disable_adapters]
        trained = [(p, p.requires_grad) for p in self.model.parameters()]
        try:
            with super().disabled():
                for wrapper in wrappers:
                    wrapper.enable_adapters(False)
                yield
        finally:
            for wrapper in wrappers:
                wrapper.enable_adapters(True)
            for parameter, is_trained in trained:
                parameter.requires_grad_(is_trained)

    def detach(self) -> nn.Module:
        """Gives every layer back to PEFT, both factors trainable again, and returns the PEFT model."""
        for layer in self.layers.values():
            source = layer.module
            if isinstance(source, Converted):
                source.ffalora_trained = "both"
                for factor in layer.factors().values():
                    factor.requires_grad_(True)
                source.__class__ = type(source).__mro__[2]
                for attribute in ("views", "name", "passes", "trained"):
                    delattr(source, f"ffalora_{attribute}")
        for head in self.heads.values():
            head.module.__class__ = nn.Linear
            del head.module.ffalora_view
        return self.peft_model

    def save(self, folder: str | Path, root: str = "") -> None:
        """Writes PEFT's files, through PEFT itself where the model is a PeftModel (which puts an adapter that is not
        called 'default' into a folder of its name there).
        """
        if isinstance(self.peft_model, PeftModel) and not root:
            self.peft_model.save_pretrained(str(folder), selected_adapters=[self.adapter])
        else:
            super().save(folder, root)


def convert(model: nn.Module, trained: str = "b", adapter_name: str | None = None) -> ConvertedAdapters:
    """Turns the LoRA layers of a PEFT model into ours, in place. Converting again returns a handle and changes nothing.

    Args:
        model: a ``PeftModel``, or any model with PEFT's LoRA layers in it (``model.add_adapter(LoraConfig(...))``).
        trained: 'b' freezes every A (FFA-LoRA), 'both' keeps both factors trained, 'a' freezes every B.
        adapter_name: the adapter that the handle is for; default: the active one.

    Returns:
        The handle; ``model`` itself goes on being what it was. ``handle.detach()`` turns it back.

    Raises:
        ValueError: nothing to convert, or an adapter that cannot be honoured (each reason by name). No weight has
            changed.
    """
    if trained not in ("b", "a", "both"):
        raise ValueError(f"trained must be 'b', 'a' or 'both', got {trained!r}")
    model = not_compiled(model)
    inner = _inner(model)
    found = {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}
    if not found:
        raise ValueError(
            "this model has no PEFT LoRA layers; make them with get_peft_model, or use attach(), whose handle is what "
            "training takes as adapters"
        )
    adapter = adapter_name or _active(found)
    configs = getattr(model, "peft_config", None) or {}
    config = configs.get(adapter)
    _check(inner, found, adapter, config)
    passes = next((m.ffalora_passes for m in found.values() if isinstance(m, Converted)), None) or PassSlot()
    layers = [
        _convert_layer(module, name, adapter, trained, passes)
        for name, module in found.items()
        if not isinstance(module, peft_lora.Embedding) and adapter in module.lora_A
    ]
    for module in found.values():
        if isinstance(module, peft_lora.Embedding) and adapter in module.lora_embedding_A:
            _freeze_embedding(module, adapter, trained)
    leave_fast_path(inner, (layer.module for layer in layers))
    heads = _convert_heads(inner, adapter, passes)
    own = _own_config(config, layers, trained, bool(heads))
    return ConvertedAdapters(model, adapter, own, layers, heads, passes)


def get_peft_model(
    model: nn.Module,
    peft_config: LoraConfig,
    adapter_name: str = "default",
    trained: str = "b",
    seed: int = 0,
    **options: Any,
) -> PeftModel:
    """PEFT's ``get_peft_model``, converted: the one line that changes in a PEFT script.

    With a random init the frozen A is drawn from ``seed`` and the layer's name, so that every client has the same one;
    ``init_lora_weights='orthogonal'`` gives A orthonormal rows and leaves B zero (PEFT makes both non-zero).

    Args:
        model, peft_config, adapter_name, options: as PEFT's function takes them.
        trained: 'b' (FFA-LoRA), 'both' (LoRA) or 'a'.
        seed: of the frozen factor.

    Raises:
        ValueError: a key of ``peft_config`` that cannot be honoured, by name; the model is unchanged then.
    """
    import peft

    if not isinstance(peft_config, LoraConfig):
        raise ValueError(
            f"peft_config must be a LoraConfig, got {type(peft_config).__name__}; other methods stay with PEFT"
        )
    problems = refusals(peft_config.to_dict())
    if problems:
        raise ValueError("; ".join(problems))
    wrapped = peft.get_peft_model(model, peft_config, adapter_name=adapter_name, **options)
    adapters = convert(wrapped, trained, adapter_name)
    init = {True: "kaiming", "gaussian": "gaussian", "orthogonal": "orthonormal"}.get(peft_config.init_lora_weights)
    if init is not None and trained != "both":
        with torch.no_grad():
            for name, layer in adapters.layers.items():
                a, b = layer.factors()["lora_A"], layer.factors()["lora_B"]
                a.copy_(initial_a(len(a), a[0].numel(), init, seed, name).view(a.shape))
                b.zero_()
    adapters.config = adapters.config.model_copy(update={"seed": seed})
    return wrapped


def _inner(model: nn.Module) -> nn.Module:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _active(found: dict[str, Any]) -> str:
    names = {name for module in found.values() for name in module.active_adapters}
    if len(names) != 1:
        raise ValueError(f"active adapters: {sorted(names)}; name the one to convert (adapter_name)")
    return names.pop()


def _check(inner: nn.Module, found: dict[str, Any], adapter: str, config: Any) -> None:
    """Every reason not to convert, before anything changes."""
    problems = refusals({k: v for k, v in config.to_dict().items() if k != "bias"}) if config is not None else []
    known = {name for module in found.values() for name in (*module.lora_A, *module.lora_embedding_A)}
    if adapter not in known:
        raise ValueError(f"adapter_name={adapter!r} is not in this model, which has {', '.join(sorted(known))}")
    unread = unread_outputs(inner)
    for name, module in found.items():
        if name in unread:
            problems.append(unread[name])
        if isinstance(module, peft_lora.Conv2d):
            problems += _problems_of_convolution(name, module.base_layer)
        if adapter in module.lora_variant:
            problems.append(f"{name}: adapter {adapter!r} is a {type(module.lora_variant[adapter]).__name__}")
        if not isinstance(module, (Converted, peft_lora.Embedding)) and converted_class(type(module)) is None:
            problems.append(
                f"{name}: a LoRA {type(module).__name__} cannot be converted; leave it out (exclude_modules)"
            )
        if module.merged:
            problems.append(f"{name} is merged; call unmerge_adapter() first")
    if problems:
        raise ValueError("; ".join(problems))


def _problems_of_convolution(name: str, base: nn.Module) -> list[str]:
    try:
        size_of(base)
    except ValueError as error:
        return [f"{name}: {error}"]
    return []


def _convert_layer(module: Any, name: str, adapter: str, trained: str, passes: PassSlot) -> FactorView:
    if not isinstance(module, Converted):
        module.ffalora_views, module.ffalora_name, module.ffalora_passes = {}, name, passes
        module.__class__ = converted_class(type(module))
    view = module.view(adapter)
    view.train_factors(trained)
    module.freeze()
    return view


def _freeze_embedding(module: Any, adapter: str, trained: str) -> None:
    """An embedding's adapter stays PEFT's; its zero factor (A) is trained, the random one (B) frozen."""
    if trained != "both":
        module.lora_embedding_B[adapter].requires_grad_(False)
        module.lora_embedding_A[adapter].requires_grad_(True)


def _convert_heads(inner: nn.Module, adapter: str, passes: PassSlot) -> list[HeadView]:
    """The linear layers of trained copies; a copy that holds anything else stays as it is (private runs refuse it)."""
    heads = []
    for name, wrapper in inner.named_modules():
        if not isinstance(wrapper, ModulesToSaveWrapper) or adapter not in wrapper.modules_to_save:
            continue
        copies = wrapper.modules_to_save[adapter]
        for part, module in copies.named_modules():
            if type(module) in (nn.Linear, ConvertedHead) and all(p.requires_grad for p in module.parameters()):
                if not isinstance(module, ConvertedHead):
                    module.ffalora_view = HeadView(module, f"{name}.{part}".rstrip("."), passes)
                    module.__class__ = ConvertedHead
                heads.append(module.ffalora_view)
    return heads


def _own_config(config: Any, layers: list[FactorView], trained: str, has_head: bool) -> AdapterConfig:
    """Our configuration that describes the same adapters."""
    names = [layer.name for layer in layers]
    if config is None:
        rank = layers[0].rank
        values = AdapterConfig(rank=rank, alpha=layers[0].scale * rank, target_modules=names, trained=trained)
    else:
        known = {
            **config.to_dict(),
            "bias": "none",
            "init_lora_weights": True,
            "target_modules": names,
            "exclude_modules": None,
        }
        values = AdapterConfig.from_peft({**known, "layers_to_transform": None, "layers_pattern": None}, trained)
    return values.model_copy(update={"head": "trained" if has_head else "frozen"})
