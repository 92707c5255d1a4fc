"""Private steps with opake, where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from harness import Unavailable
from peft_steps import peft_model
from provider import Provider, Sums, canonical
from torch import Tensor
from workload import Workload


def opake(work: Workload, trained: str = "both") -> Provider:
    """opake's vmap-based clipped gradient and noise, with its patches for the models it names (not the encoders)."""
    try:
        from opake.dpsgd.clipping import clipped_grad
        from opake.dpsgd.noise import gaussian_noise
        from opake.exceptions import ConfigurationError
        from opake.patches import apply_model_patches, apply_runtime_patches
        from opake.random import key
    except ImportError as missing:
        raise Unavailable(f"opake is not installed ({missing})") from None
    apply_runtime_patches()
    model = peft_model(work, trained)
    try:
        apply_model_patches(model)
    except ConfigurationError as refusal:
        raise Unavailable(str(refusal).splitlines()[0][:160]) from None
    model.train()
    names = {name: canonical(name) for name, p in model.named_parameters() if p.requires_grad}
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in names}

    def loss_of_one(values: Sums, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        inputs = {"input_ids": ids[None], "attention_mask": mask[None]}
        output = torch.func.functional_call(model, values, (), inputs)
        return work.losses(output, target[None])[0]

    gradient, clip_state = clipped_grad(loss_of_one, clipping_norm=work.max_grad_norm, batch_argnums=(1, 2, 3))
    add_noise, noise_state = gaussian_noise(noise_multiplier=work.noise_multiplier, key=key(0))
    kept = {"clip": clip_state, "noise": noise_state}

    def clipped(number: int) -> Any:
        inputs, targets = work.batch(number)
        given = inputs["input_ids"], inputs["attention_mask"], targets
        found, kept["clip"] = gradient(parameters, *given, state=kept["clip"])
        return found

    def step(number: int) -> None:
        noisy, kept["noise"] = add_noise(clipped(number), kept["noise"])
        for name, value in noisy.pytree.items():
            parameters[name] -= work.lr / work.expected * value

    def sums(number: int) -> Sums:
        return {names[name]: value for name, value in clipped(number).pytree.items()}

    return Provider(step, sums, trained=trained)
