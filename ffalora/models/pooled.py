"""A task head that reads the mean states of several layers of an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.init import generator_for
from .packing import mean_of_samples


class MeanPooledClassifier(nn.Module):
    """A linear head on means of an encoder's states over real tokens, centred and normalised to a fixed length.

    Sentence encoders are trained with mean pooling, and their [CLS] pooler is not: with a frozen head the mean is the
    better feature. The last layer keeps what the encoder was trained to tell apart; with ``pooled_layers`` above 1 the
    head also reads the means of layers below, evenly spaced, side by side. Means of all texts have a large part in
    common (0.8 of their length in MiniLM), which hides what differs from a clipped and noisy head: ``center`` is taken
    off before each is normalised. Normalising all to ``head_scale`` sets the size of per-sample gradients, which a
    frozen random head fixes for good.

    Attributes:
        read: numbers of the layers whose states are read, from 1, ascending; the last is the encoder's output.
        center: float32 ``[len(read), D]``; zero until it is set.
        kept: the means of the first of these layers, where they are computed no more.
        unread: modules of the encoder whose output is thrown away.
    """

    center: Tensor
    unread = ("encoder.pooler",)

    def __init__(
        self, encoder: nn.Module, labels: int, head_std: float, head_scale: float, seed: int, pooled_layers: int = 1
    ):
        super().__init__()
        self.encoder = encoder
        self.config = encoder.config
        self.head_scale = head_scale
        self.depth = getattr(encoder.config, "num_hidden_layers", 1)
        count = min(pooled_layers, self.depth)
        self.read = [self.depth * (i + 1) // count for i in range(count)]
        self.kept: KeptMeans | None = None
        width = encoder.config.hidden_size
        self.classifier = nn.Linear(count * width, labels)
        self.register_buffer("center", torch.zeros(count, width), persistent=False)
        weight = torch.randn(self.classifier.weight.shape, generator=generator_for(seed, "classifier.weight"))
        with torch.no_grad():
            self.classifier.weight.copy_(weight * head_std)
            self.classifier.bias.zero_()

    def means(self, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        """The mean state of each layer that is read, before centring: float32 ``[S, len(read), D]``."""
        kept = [] if self.kept is None else [*self.kept.of(inputs).unbind(1)]
        missing = self.read[len(kept) : -1]
        output = self.encoder(attention_mask=attention_mask, output_hidden_states=bool(missing), **inputs)
        states = [output.hidden_states[layer - self.depth - 1] for layer in missing] + [output.last_hidden_state]
        return torch.stack(kept + [_mean(each.float(), attention_mask, inputs) for each in states], 1)

    def forward(self, attention_mask: Tensor | None = None, **inputs: Any) -> SimpleNamespace:
        """Logits ``[S, labels]`` float32, of a packed batch or a padded one (no mask: nothing is padding)."""
        centred = F.normalize(self.means(attention_mask, **inputs) - self.center, dim=-1)
        return SimpleNamespace(logits=self.classifier(centred.flatten(1) * (self.head_scale / len(self.read) ** 0.5)))


@dataclass(frozen=True)
class KeptMeans:
    """Means of layers that are computed no more, for inputs whose tokens are rows of a table.

    Attributes:
        means: float32 ``[n, layers, D]``, one row a sample; first_rows: int64 ``[n]``, ascending, of its first token:
            any of its tokens names the sample.
    """

    means: Tensor
    first_rows: Tensor

    def of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The means of a padded or packed batch's samples: ``[S, layers, D]``."""
        ids = inputs["input_ids"]
        first = ids[0, inputs["cu_seq_lens_q"][:-1].long()] if "cu_seq_lens_q" in inputs else ids[:, 0]
        return self.means[torch.searchsorted(self.first_rows, first.contiguous(), right=True) - 1]


def _mean(states: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Tensor]) -> Tensor:
    """The mean over each sample's real tokens: ``[S,D]``."""
    if "cu_seq_lens_q" in inputs:
        return mean_of_samples(states, inputs["cu_seq_lens_q"])
    return states.mean(1) if attention_mask is None else mean_of_real(states, attention_mask)


def mean_of_real(states: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean over the real tokens of a padded batch: ``[S,T,D]`` and ``[S,T]`` to ``[S,D]``."""
    mask = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)
