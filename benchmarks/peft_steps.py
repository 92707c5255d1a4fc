"""Steps with PEFT's LoRA and without privacy, the floor under all of them, and the definition of a private gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from harness import Unavailable
from provider import Provider, Sums, canonical, trained_parameters
from torch import nn
from workload import Workload, starting_factors


def peft_model(work: Workload, trained: str) -> nn.Module:
    """The model with PEFT's LoRA at the common starting point, in training mode; ``a`` frozen unless trained is
    'both'.
    """
    from peft import LoraConfig, get_peft_model

    model = work.build(work.dtype, work.attention)
    config = LoraConfig(r=work.rank, lora_alpha=work.rank, target_modules=list(work.targets), lora_dropout=0.0)
    wrapped = get_peft_model(model.get_submodule(work.root) if work.root else model, config)
    if work.root:
        setattr(model, work.root, wrapped)
    else:
        model = wrapped
    named = dict(model.named_parameters())
    for name in [n for n in named if "lora_A" in n]:
        a, b = named[name], named[name.replace("lora_A", "lora_B")]
        start = starting_factors(canonical(name).removesuffix(".lora_A"), b.shape[0], a.shape[1], work.rank)
        with torch.no_grad():
            a.copy_(start[0])
            b.copy_(start[1])
        a.requires_grad_(trained == "both")
    return model.train()


def peft(work: Workload, trained: str = "both") -> Provider:
    """PEFT without privacy: mean loss, one backward pass, SGD."""
    model = peft_model(work, trained)
    parameters = trained_parameters(model)
    optimizer = torch.optim.SGD(parameters.values(), lr=work.lr)

    def step(number: int) -> None:
        inputs, targets = work.batch(number)
        work.losses(model(**inputs), targets).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def sums(number: int) -> Sums:
        inputs, targets = work.batch(number)
        work.losses(model(**inputs), targets).sum().backward()
        found = {name: p.grad.clone() for name, p in parameters.items()}
        optimizer.zero_grad()
        return found

    return Provider(step, sums, clips=False, trained=trained)


def floor(work: Workload) -> Provider:
    """Forward pass and input gradients of the frozen model without adapters: no training can cost less."""
    model = frozen_model(work)

    def step(number: int) -> None:
        inputs, targets = work.batch(number)
        work.losses(model(**inputs), targets).mean().backward()

    return Provider(step)


def frozen_model(work: Workload) -> nn.Module:
    """The model without adapters, whose embeddings want gradients."""
    model = work.build(work.dtype, work.attention)
    inner = model.get_submodule(work.root) if work.root else model
    embedding = inner.get_input_embeddings()
    embedding.register_forward_hook(lambda module, given, output: output.detach().requires_grad_())
    return model


class RecordedFloor:
    """The floor as one CUDA graph, as passes of ours are: the least that a device has to do, whatever its host does.
    For batches of one shape without padding.
    """

    def __init__(self, work: Workload):
        from ffalora.training.recorder import CudaRecorder

        if work.device.type != "cuda":
            raise Unavailable("CUDA graphs need a GPU")
        self.work, self.model = work, frozen_model(work)
        inputs, self.targets = work.batch(0)
        self.input_ids = inputs["input_ids"]
        self._compute()  # what is made at first use is not recorded
        self.replay = CudaRecorder(work.device)(self._compute)

    def _compute(self) -> None:
        from ffalora.models import without_masks

        with without_masks():
            self.work.losses(self.model(input_ids=self.input_ids), self.targets).mean().backward()

    def step(self, number: int) -> None:
        """One step; as a bound method it keeps what the graph reads."""
        inputs, targets = self.work.batch(number)
        self.input_ids.copy_(inputs["input_ids"])
        self.targets.copy_(targets)
        self.replay()


def expected_sums(work: Workload, number: int, trained: str, clips: bool) -> Sums:
    """The definition: one sample at a time through PEFT, each gradient clipped by its norm, added up in float64."""
    model = peft_model(replace(work, dtype=torch.float32, attention="eager"), trained)
    parameters = trained_parameters(model)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    for sample in work.draws[number % len(work.draws)]:
        inputs, targets = work.data.collate(np.array([sample]))
        inputs = {name: t.to(work.device) for name, t in inputs.items()}
        loss = work.losses(model(**inputs), targets.to(work.device)).sum()
        gradients = [g.double() for g in torch.autograd.grad(loss, list(parameters.values()))]
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        factor = min(1.0, work.max_grad_norm / float(norm)) if clips else 1.0
        for name, g in zip(total, gradients, strict=True):
            total[name] += factor * g
    return total
