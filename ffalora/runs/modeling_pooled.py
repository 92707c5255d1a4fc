"""An encoder with a linear head on the mean states of some of its layers.

Needs torch and transformers, and peft for adapters that are not merged:

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import cached_file

_FOR_LOADING = ("dtype", "torch_dtype", "device_map", "attn_implementation", "cache_dir", "token", "local_files_only")


class PooledConfig(PretrainedConfig):
    """What the head reads, and where the encoder comes from.

    Args:
        encoder: configuration of an encoder whose weights lie beside this file, merged with the adapters.
        base_model, base_revision: of an encoder that lies elsewhere, with adapters in the folder ``adapter``.
        layers: numbers of the layers whose states are read, from 1; the last is the encoder's output.
        hidden_size: width of these states; head_scale: length to which what is read is normalised.
    """

    model_type = "pooled-classifier"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        base_model: str | None = None,
        base_revision: str | None = None,
        layers: list[int] | None = None,
        depth: int = 1,
        hidden_size: int = 1,
        head_scale: float = 1.0,
        **others: Any,
    ):
        self.encoder = encoder
        self.base_model, self.base_revision = base_model, base_revision
        self.layers, self.depth = layers or [depth], depth
        self.hidden_size, self.head_scale = hidden_size, head_scale
        super().__init__(**others)


class PooledClassifier(PreTrainedModel):
    """Means of states over real tokens, centred, normalised, side by side, and a linear layer."""

    config_class = PooledConfig
    base_model_prefix = "encoder"

    def __init__(self, config: PooledConfig, encoder: nn.Module | None = None):
        super().__init__(config)
        if encoder is None:
            own = dict(config.encoder or {})
            encoder = AutoModel.from_config(AutoConfig.for_model(own.pop("model_type"), **own))
        self.encoder = encoder
        self.classifier = nn.Linear(len(config.layers) * config.hidden_size, config.num_labels)
        self.center = nn.Parameter(torch.zeros(len(config.layers), config.hidden_size), requires_grad=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *arguments: Any, config: Any = None, **options: Any) -> Any:
        """As transformers', from a merged checkpoint, or from a base model and adapters."""
        config = config or PooledConfig.from_pretrained(name)
        if config.base_model is None:
            return super().from_pretrained(name, *arguments, config=config, **options)
        from peft import PeftModel

        known = {key: value for key, value in options.items() if key in _FOR_LOADING}
        encoder = AutoModel.from_pretrained(config.base_model, revision=config.base_revision or "main", **known)
        model = cls(config, encoder)
        model.encoder = PeftModel.from_pretrained(encoder, name, subfolder="adapter")
        model.load_state_dict(load_file(cached_file(name, "head.safetensors")), strict=False)
        return model.to(encoder.device).eval()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput:
        """Logits ``[S, labels]`` float32 of a padded batch, and the loss where there are ``labels``."""
        inputs.pop("return_dict", None)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        layers, depth = self.config.layers, self.config.depth
        output = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=len(layers) > 1, **inputs
        )
        states = [output.hidden_states[layer - depth - 1] for layer in layers[:-1]] + [output.last_hidden_state]
        mask = attention_mask.unsqueeze(-1).float()
        means = torch.stack([(each.float() * mask).sum(1) / mask.sum(1).clamp(min=1) for each in states], 1)
        read = F.normalize(means - self.center, dim=-1).flatten(1) * (self.config.head_scale / len(layers) ** 0.5)
        logits = self.classifier(read.to(self.classifier.weight.dtype)).float()
        loss = None
        if labels is not None:
            is_number = self.config.num_labels == 1
            loss = F.mse_loss(logits[:, 0], labels.float()) if is_number else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
