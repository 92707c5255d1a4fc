"""One forward and backward pass under Opacus's hooks: PEFT with A frozen against our adapter, interleaved.

``python benchmarks/opacus_bridge.py [repetitions]`` prints medians in milliseconds, on one thread.
"""

from __future__ import annotations

import statistics
import sys
import time

import peft
import torch
from opacus import GradSampleModule
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from ffalora.adapters import AdapterConfig, attach

SAMPLES, LENGTH = 16, 32


class Losses(nn.Module):
    """Per-sample losses of a classifier."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(input_ids=ids).logits, labels, reduction="none")


def build(ours: bool) -> GradSampleModule:
    """BERT with 4 layers of 384, query and value adapted at rank 8."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=500, hidden_size=384, num_hidden_layers=4, num_attention_heads=12, intermediate_size=1536,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model: nn.Module = BertForSequenceClassification(config)
    if ours:
        attach(model, AdapterConfig(rank=8))
    else:
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=["query", "value"]))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_B" in name)
    return GradSampleModule(Losses(model).train(), loss_reduction="sum")


def main(repetitions: int) -> None:
    """Times both in turn."""
    torch.set_num_threads(1)
    ids, labels = torch.randint(0, 500, (SAMPLES, LENGTH)), torch.randint(0, 2, (SAMPLES,))
    modules = {"PEFT, A frozen": build(ours=False), "ours": build(ours=True)}
    times: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(repetitions + 2):
        for name, module in modules.items():
            start = time.perf_counter()
            module(ids, labels).sum().backward()
            times[name].append(1000 * (time.perf_counter() - start))
            for parameter in module.parameters():
                parameter.grad = parameter.grad_sample = None
    for name, measured in times.items():
        print(f"{name}: {statistics.median(measured[2:]):.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
