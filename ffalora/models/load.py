"""Pretrained models: embedded, local or from the hub; with the model's own head, or a linear head on pooled states."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..adapters.init import generator_for
from ..config import ConfigError, ModelConfig
from ..data.asset_table import ASSETS
from ..data.hub import cache_alone_without_network
from .pooled import MeanPooledClassifier
from .shards import in_parts


@dataclass
class LoadedModel:
    """A model ready for adapters.

    Attributes:
        model: takes the tokenizer's tensors by name; its output has ``logits``.
        tokenizer: of the same checkpoint; None for images.
        root: dotted name of the transformers model inside ``model`` ('' where that is the whole of it): what PEFT
            wraps.
    """

    model: nn.Module
    tokenizer: Any
    root: str


def _asks_the_hub_once(load: Callable[..., LoadedModel]) -> Callable[..., LoadedModel]:
    @wraps(load)
    def loaded(config: ModelConfig, *others: Any, **named: Any) -> LoadedModel:
        with cache_alone_without_network(resolve(config.name)):
            return load(config, *others, **named)

    return loaded


@_asks_the_hub_once
def load_model(
    config: ModelConfig, task: str, labels: int, seed: int, device: torch.device, shard: bool = False
) -> LoadedModel:
    """The model that ``config`` names, in evaluation mode, with its frozen base in the chosen number format.

    Args:
        shard: leave this process its part of the base (see ``shards``); a head of classes or numbers stays whole.

    Raises:
        ConfigError: the model cannot be loaded, or does not fit the task.
    """
    read = partial(_read, config, task, labels, seed, device)
    loaded = in_parts(read, partial(_base_of, task=task), device) if shard else read()
    loaded.model.to(device)
    return loaded


def _read(config: ModelConfig, task: str, labels: int, seed: int, device: torch.device) -> LoadedModel:
    """The model as it is trained on ``device``, still in the memory of the machine."""
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    source = resolve(config.name)
    seed = seed if config.head_seed is None else config.head_seed
    dtype = base_dtype(config.dtype, device)
    attention = config.attention if config.attention != "auto" else ("eager" if device.type == "cpu" else "sdpa")
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention, **gguf_file(source)}
    pooled = config.pooling == "mean" and task in ("classification", "regression")
    info: dict[str, Any] = {}
    try:
        if task == "causal-lm":
            model = AutoModelForCausalLM.from_pretrained(source, **options)
        elif task == "image-classification":
            model, info = AutoModelForImageClassification.from_pretrained(
                source, num_labels=labels, ignore_mismatched_sizes=True, output_loading_info=True, **options
            )
        elif pooled:
            model = MeanPooledClassifier(
                AutoModel.from_pretrained(source, **options),
                labels,
                config.head_std,
                config.head_scale,
                seed,
                config.pooled_layers,
            )
        else:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source, num_labels=labels, output_loading_info=True, **options
            )
        tokenizer = (
            None if task == "image-classification" else AutoTokenizer.from_pretrained(source, **gguf_file(source))
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ConfigError(_not_loaded(config.name, task, source, error)) from error
    _seed_missing(model, sorted(info.get("missing_keys", ())), seed)
    if tokenizer is not None and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    cast_base(model, dtype)
    return LoadedModel(model.eval(), tokenizer, "encoder" if pooled else "")


def _base_of(loaded: LoadedModel, task: str) -> nn.Module:
    """The part of a model that may be cut: all but a head of classes or numbers."""
    model = loaded.model
    return model if task == "causal-lm" else getattr(model, loaded.root or "base_model")


def _not_loaded(name: str, task: str, source: str, error: Exception) -> str:
    """What is to be done about a model that could not be loaded."""
    said = f"model.name={name!r} cannot be loaded for task {task}"
    near = difflib.get_close_matches(name, ASSETS, n=1, cutoff=0.75)
    if near and name not in ASSETS:
        return f"{said}: there is no such model; did you mean {near[0]}?"
    if gguf_file(source) and isinstance(error, ImportError):
        return f"{said}: its weights are a GGUF file; install what reads it with `pip install ffalora[gguf]`"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    kind = "; its architecture does not do this task" if "Unrecognized configuration class" in reason else ""
    return (
        f"{said}: {reason}{kind}. Give an embedded model (ffalora data list), a local folder with config.json and "
        "safetensors, or a hub name (with a network)"
    )


def resolve(name: str) -> str:
    """The folder of an embedded model (fetched if need be), or the name itself: a local path or a hub name."""
    from ..data import assets

    return str(assets.path(name)) if name in ASSETS else name


def gguf_file(source: str) -> dict[str, str]:
    """The option that makes transformers read a folder which holds a GGUF file instead of safetensors."""
    folder = Path(source)
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    return {"gguf_file": files[0].name} if files and not list(folder.glob("*.safetensors")) else {}


def base_dtype(choice: str, device: torch.device) -> torch.dtype:
    """The number format of the frozen base: bfloat16 where the device computes in it fast, unless chosen."""
    if choice != "auto":
        return getattr(torch, choice)
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def cast_base(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts the base once; the task head stays float32 (unless its weights are also the base's), so that the loss and
    its gradient are computed in float32.
    """
    from ..adapters.targets import find_head

    heads = find_head(model)
    inside = {id(p) for module in heads.values() for p in module.parameters(recurse=False)}
    tied = {id(p) for name, m in model.named_modules() if name not in heads for p in m.parameters(recurse=False)}
    for parameter in model.parameters():
        if (id(parameter) not in inside or id(parameter) in tied) and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for module in heads.values():
        module.register_forward_pre_hook(_cast_input)


def _cast_input(module: nn.Module, arguments: tuple) -> tuple:
    """The narrow base's states in the format of the head that takes them."""
    first, *rest = arguments
    return (first.to(next(module.parameters(recurse=False)).dtype), *rest)


def compile_model(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as one compiled graph for all lengths; itself, with one warning, where there is no compiler."""
    from torch._inductor import cpp_builder

    if device.type == "cpu":
        try:
            cpp_builder.get_cpp_compiler()
        except RuntimeError as error:
            warnings.warn(f"model.compile: no C++ compiler was found ({error}); running eagerly", stacklevel=2)
            return model
    return cast(nn.Module, torch.compile(model, dynamic=True))


def choose_device(name: str) -> torch.device:
    """'auto' takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r}: {error}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}, but this machine has no CUDA device; use cpu")
    return device


@torch.no_grad()
def _seed_missing(model: nn.Module, missing: list[str], seed: int) -> None:
    """Draws tensors that the checkpoint lacks (a fresh head) again from the seed, so that runs and clients agree."""
    parameters = dict(model.named_parameters())
    for name in missing:
        parameter = parameters[name]
        value = torch.randn(parameter.shape, generator=generator_for(seed, name)) * getattr(
            model.config, "initializer_range", 0.02
        )
        parameter.copy_(value if parameter.dim() > 1 else torch.zeros_like(value))
