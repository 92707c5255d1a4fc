"""What a task head reads, whether it is trained, and where it starts: at the texts of its classes, at zero, or at
random.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters.targets import find_head
from ..baselines import class_texts, head_features, prototypes, zero_shot
from ..config import AdapterConfig, Config, ConfigError
from ..data.embedded import EMBEDDED
from ..data.load import LoadedData
from ..data.public_texts import EVERYDAY
from ..models import LoadedModel, MeanPooledClassifier

logger = logging.getLogger(__name__)


def is_head_trained(config: Config, model: nn.Module) -> bool:
    """``adapter.head`` with ``auto`` decided: trained where it is made of linear layers that are nothing else."""
    if config.adapter.head != "auto":
        return config.adapter.head == "trained"
    head = find_head(model)
    return config.data.task != "causal-lm" and bool(head) and all(type(m) is nn.Linear for m in head.values())


def adapter_config(config: Config, model: nn.Module, trained: str) -> AdapterConfig:
    """The adapters of a run whose method trains ``trained``."""
    head = "trained" if is_head_trained(config, model) else "frozen"
    return config.adapter.model_copy(update={"trained": trained, "head": head})


@dataclass(frozen=True)
class LabelTexts:
    """What the texts of the classes say of them: public.

    Attributes:
        directions: float32 ``[L,D]`` of length 1, one a class, in the columns of the last layer: it was trained to
            compare texts. length: of what the head reads there.
    """

    directions: Tensor
    length: float


def head_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of the task head, in their order, with or without adapters attached."""
    found = [getattr(module, "base_layer", module) for module in find_head(model).values()]
    return [layer for layer in dict.fromkeys(found) if type(layer) is nn.Linear]


def label_texts(config: Config, loaded: LoadedModel, data: LoadedData, device: torch.device) -> LabelTexts | None:
    """The classes as the whole frozen model reads their texts; None where there are no such texts.

    Raises:
        ConfigError: ``data.label_texts`` that do not fit the classes.
    """
    head = head_layers(loaded.model)
    if no_class_texts(config, data) is not None or not head:
        return None
    texts = texts_of(config, data)
    encoded = _encoded(config, loaded, device, [text for own in texts for text in own])
    features = head_features(loaded.model, head[0], [encoded])
    layers = len(loaded.model.read) if isinstance(loaded.model, MeanPooledClassifier) else 1
    last = features[:, -(features.shape[1] // layers) :]
    directions = torch.zeros(len(texts), features.shape[1])
    directions[:, -last.shape[1] :] = prototypes(last, [len(own) for own in texts])
    return LabelTexts(directions, float(last.norm(dim=1).mean()))


@torch.inference_mode()
def center_states(config: Config, loaded: LoadedModel, data: LoadedData, device: torch.device) -> None:
    """Takes off the pooled states what they have in common, as far as public texts know it; before anything reads them.
    With one layer alone there is nothing to do: sentence encoders are trained to spread what their last layer says.
    """
    model = loaded.model
    if not isinstance(model, MeanPooledClassifier) or len(model.read) == 1:
        return
    texts = given_texts(config)[1]
    if not texts:
        texts = [*EVERYDAY, *(text for each in texts_of(config, data) for text in each)] if data.label_names else []
        texts = texts or list(EVERYDAY)
    pairs = [texts[1:] + texts[:1]] if len(data.input_columns) == 2 else []
    model.center.copy_(model.means(**_encoded(config, loaded, device, texts, *pairs)).mean(0))


def _encoded(config: Config, loaded: LoadedModel, device: torch.device, *texts: list[str]) -> dict[str, Tensor]:
    """Texts, or pairs of them, as the model takes them: one padded batch on the device."""
    longest = config.data.max_length
    found = loaded.tokenizer(*texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
    return {name: value.to(device) for name, value in found.items()}


@torch.no_grad()
def start_head(
    config: Config, loaded: LoadedModel, data: LoadedData, labels: LabelTexts | None, is_trained: bool
) -> str:
    """Writes the head's first weights into the model, with adapters attached. Nothing of it is private.

    Returns:
        where it starts: 'labels', 'zero' or 'random'.

    Raises:
        ConfigError: ``model.head_start=labels`` where classes have no texts, or the head is not one linear layer.
    """
    asked, head = config.model.head_start, head_layers(loaded.model)
    if asked == "random" or not head or (asked == "auto" and not is_trained):
        return "random"
    if asked == "zero" or len(head) > 1 or labels is None:
        problem = no_class_texts(config, data) or f"the head has {len(head)} linear layers"
        if asked == "labels":
            raise ConfigError(f"model.head_start='labels': {problem}; set it to zero or random")
        if asked == "auto":
            logger.info("the head starts at zero: %s", problem)
        head[-1].weight.zero_()
    else:
        start = zero_shot(labels.directions.to(head[0].weight.device), config.model.head_temperature / labels.length)
        head[0].weight.copy_(start.weight)
    if head[-1].bias is not None:
        head[-1].bias.zero_()
    return "zero" if asked == "zero" or len(head) > 1 or labels is None else "labels"


def given_texts(config: Config) -> tuple[dict[str, list[str]], list[str]]:
    """Texts of classes by name, and texts that look like the data: a run's own, else those of its embedded data."""
    own = EMBEDDED.get(config.data.name)
    labels = config.data.label_texts or (own.label_texts if own else None) or {}
    public = config.data.public_texts or (own.public_texts if own else None) or ()
    return {name: list(texts) for name, texts in labels.items()}, list(public)


def texts_of(config: Config, data: LoadedData) -> list[list[str]]:
    """The texts that stand for each class.

    Raises:
        ConfigError: ``data.label_texts`` that do not fit the classes.
    """
    try:
        return class_texts(data.label_names or [], given_texts(config)[0])
    except ValueError as error:
        raise ConfigError(f"data.label_texts: {error}") from None


def no_class_texts(config: Config, data: LoadedData) -> str | None:
    """Why classes cannot be told by texts of theirs; None where they can."""
    if config.data.task != "classification" or not data.label_names:
        return "there are no classes with names"
    if len(data.input_columns) != 1:
        return "samples are pairs, which no text about one class resembles"
    if not given_texts(config)[0] and not all(any(c.isalpha() for c in name) for name in data.label_names):
        return f"the classes' names ({', '.join(data.label_names[:4])}) are no words"
    return None
