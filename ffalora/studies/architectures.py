"""The shapes of the models that studies name, so that they can be built where their weights are not at hand: in full on
the meta device, where tensors have shapes and no memory, and as small ones of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..config import Config, ConfigError

#: What every small model has in place of its own sizes. Its width carries the largest rank of any study.
_SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "initializer_range": 0.2}


@dataclass(frozen=True)
class Architecture:
    """A model without its weights.

    Attributes:
        kind: its ``model_type`` in transformers.
        published: what its checkpoint holds beside the encoder: nothing, or the head of a language model.
        shape: the keys of its configuration that decide the shapes of its layers.
        small: those that differ in the small model, beside width and heads.
    """

    kind: str
    published: Literal["encoder", "masked-lm", "causal-lm"]
    shape: Mapping[str, Any]
    small: Mapping[str, Any]

    def config(self, is_small: bool = False, **changes: Any) -> Any:
        """Its transformers configuration."""
        from transformers import AutoConfig

        own = {**self.shape, **_SMALL, **self.small} if is_small else dict(self.shape)
        return AutoConfig.for_model(self.kind, **own | changes)


ARCHITECTURES: dict[str, Architecture] = {
    "all-MiniLM-L6-v2": Architecture(
        "bert",
        "encoder",
        {
            "vocab_size": 30522,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
        },
        {},  # studies name its layers by number
    ),
    "FacebookAI/roberta-large": Architecture(
        "roberta",
        "masked-lm",
        {
            "vocab_size": 50265,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        {"num_hidden_layers": 2},
    ),
    "huggyllama/llama-7b": Architecture(
        "llama",
        "causal-lm",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "intermediate_size": 11008,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        {"num_hidden_layers": 2},
    ),
    "google/vit-base-patch16-224-in21k": Architecture(
        "vit",
        "encoder",
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "image_size": 224,
            "patch_size": 16,
            "num_channels": 3,
        },
        {"num_hidden_layers": 2, "image_size": 32},
    ),
}


def find_architecture(name: str) -> Architecture:
    """The architecture of the model ``name``.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"model.name={name!r}: its shapes are not known without its weights; a dry run can be had with "
            f"{', '.join(ARCHITECTURES)}, or with a model in a local folder"
        )
    return ARCHITECTURES[name]


def build_published(name: str, **changes: Any) -> nn.Module:
    """A small model of random weights with what the checkpoint ``name`` holds; ``changes`` are keys of its shape.

    Raises:
        ConfigError: the model is not in the table.
    """
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    architecture = find_architecture(name)
    kinds: dict[str, Any] = {
        "encoder": AutoModel,
        "masked-lm": AutoModelForMaskedLM,
        "causal-lm": AutoModelForCausalLM,
    }
    return kinds[architecture.published].from_config(architecture.config(is_small=True, **changes))


def _with_head(task: str, config: Any) -> nn.Module:
    """A model with the head that a task needs, from its transformers configuration."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    heads: dict[str, Any] = {
        "causal-lm": AutoModelForCausalLM,
        "image-classification": AutoModelForImageClassification,
    }
    return heads.get(task, AutoModelForSequenceClassification).from_config(config)


@dataclass(frozen=True)
class FullSize:
    """What a method trains and sends of a model in full size.

    Attributes:
        parameters: of the base model, with its task head.
        layers: adapted ones; trained: numbers that a client trains; bytes_up: that it sends in a round.
    """

    parameters: int
    layers: int
    trained: int
    bytes_up: int


def full_size(config: Config, labels: int) -> FullSize:
    """Counts on the meta device, with the adapters attached that ``config`` asks for.

    Args:
        config: of one method; its model is in :data:`ARCHITECTURES`.
        labels: outputs of the task head.

    Raises:
        ConfigError: the model is not in the table.
    """
    from ..adapters import attach
    from ..federated.checks import find_strategy

    shape = find_architecture(config.model.name).config(num_labels=labels)
    with torch.device("meta"):
        model = _with_head(config.data.task, shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    strategy_class = find_strategy(config.federation.strategy)
    # Where the factors come from does not change their number.
    changes = {"trained": strategy_class.trained, "init": "kaiming"}
    adapters = attach(model, config.adapter.model_copy(update=changes))
    strategy = strategy_class(adapters, config, len(config.clients.proportions or ()) or config.clients.count or 3)
    return FullSize(parameters, len(adapters.layers), adapters.layout.size, strategy.wire.bytes_up(strategy.begin()))
