"""Whole training steps, ours and the rivals', each made by a small factory from a ``Workload``.

A provider has ``step(number)``, one optimiser step on a logical batch, and ``sums(number)``, the clipped sum of per-sample
gradients by tensor name (the plain sum where it does not clip), by which results are compared before times are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from harness import Unavailable
from torch import Tensor, nn
from workload import Workload, starting_factors

Sums = dict[str, Tensor]


@dataclass
class Provider:
    """One way to train.

    Attributes:
        step: takes the number of the logical batch.
        sums: gradients by name, before noise; None where there are none to compare (the floor).
        clips: whether ``sums`` are clipped per sample.
        trained: 'b' or 'both'.
        tokens: tokens computed for a batch, padding included.
    """

    step: Callable[[int], None]
    sums: Callable[[int], Sums] | None = None
    clips: bool = True
    trained: str = "b"
    tokens: Callable[[], int] = field(default=lambda: 0)


Factory = Callable[[Workload], Provider]
#: Learning rate of the step that ``sums`` of ours is read off: far enough that rounding of the state does not matter.
_FAR = 2.0**24


# ---- PEFT --------------------------------------------------------------------------------------------------------------


def peft_model(work: Workload, trained: str) -> nn.Module:
    """The model with PEFT's LoRA at the common starting point, in training mode; ``a`` frozen unless trained is 'both'."""
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
        start = starting_factors(_canonical(name).removesuffix(".lora_A"), b.shape[0], a.shape[1], work.rank)
        with torch.no_grad():
            a.copy_(start[0])
            b.copy_(start[1])
        a.requires_grad_(trained == "both")
    return model.train()


def _canonical(name: str) -> str:
    """A parameter's name without what PEFT and Opacus put around it."""
    for wrapping in ("_module.", "base_model.model.", ".default.weight"):
        name = name.replace(wrapping, "")
    return name


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {_canonical(name): p for name, p in model.named_parameters() if p.requires_grad}


def peft(work: Workload, trained: str = "both") -> Provider:
    """PEFT without privacy: mean loss, one backward pass, SGD."""
    model = peft_model(work, trained)
    parameters = _trained(model)
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
    model = work.build(work.dtype, work.attention)
    inner = model.get_submodule(work.root) if work.root else model
    embedding = inner.get_input_embeddings()
    embedding.register_forward_hook(lambda module, given, output: output.detach().requires_grad_())

    def step(number: int) -> None:
        inputs, targets = work.batch(number)
        work.losses(model(**inputs), targets).mean().backward()

    return Provider(step)


# ---- Opacus ------------------------------------------------------------------------------------------------------------


def opacus(work: Workload, mode: str = "hooks", trained: str = "b") -> Provider:
    """Opacus on PEFT: 'hooks' or 'functorch' form per-sample gradients, 'ghost' their norms and a second backward pass."""
    from opacus.grad_sample.utils import prepare_module
    from opacus.optimizers import get_optimizer_class

    if mode == "ghost":
        return _ghost(work, trained)
    model = prepare_module(peft_model(work, trained), mode, strict=False)
    parameters = _trained(model)
    optimizer = get_optimizer_class("flat", False, mode)(
        torch.optim.SGD(parameters.values(), lr=work.lr), noise_multiplier=work.noise_multiplier,
        max_grad_norm=work.max_grad_norm, expected_batch_size=work.expected,
    )  # fmt: skip

    def backward(number: int) -> None:
        inputs, targets = work.batch(number)
        optimizer.zero_grad()
        work.losses(model(**inputs), targets).mean().backward()

    def step(number: int) -> None:
        backward(number)
        optimizer.step()

    def sums(number: int) -> Sums:
        backward(number)
        optimizer.clip_and_accumulate()
        found = {name: p.summed_grad.clone() for name, p in parameters.items()}
        optimizer.zero_grad()
        return found

    return Provider(step, sums, trained=trained)


class _Criterion:
    """The workload's losses in the form that Opacus's loss wrapper asks for."""

    def __init__(self, losses: Callable[[Any, Tensor], Tensor]):
        self.reduction = "mean"
        self._losses = losses

    def __call__(self, output: Any, targets: Tensor) -> Tensor:
        return self._losses(output, targets)


def _ghost(work: Workload, trained: str) -> Provider:
    from opacus.grad_sample.utils import prepare_module
    from opacus.optimizers import get_optimizer_class
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model = prepare_module(peft_model(work, trained), "ghost", strict=False, max_grad_norm=work.max_grad_norm)
    parameters = _trained(model)
    optimizer = get_optimizer_class("flat", False, "ghost")(
        torch.optim.SGD(parameters.values(), lr=work.lr), noise_multiplier=work.noise_multiplier,
        max_grad_norm=work.max_grad_norm, expected_batch_size=work.expected,
    )  # fmt: skip
    criterion = DPLossFastGradientClipping(model, optimizer, _Criterion(work.losses))

    def backward(number: int) -> None:
        inputs, targets = work.batch(number)
        optimizer.zero_grad()
        criterion(model(**inputs), targets).backward()

    def step(number: int) -> None:
        backward(number)
        optimizer.step()

    def sums(number: int) -> Sums:
        backward(number)
        found = {name: p.grad.clone() for name, p in parameters.items()}
        optimizer.zero_grad()
        return found

    return Provider(step, sums, trained=trained)


# ---- ours --------------------------------------------------------------------------------------------------------------


class _Draw:
    """Gives the logical batch of the current number to an engine that asks for a Poisson sample."""

    secure = False

    def __init__(self, draws: list[np.ndarray]):
        self.draws, self.number = draws, 0

    def __call__(self, client_id: int, step: int, n: int, rate: float) -> np.ndarray:
        return np.sort(self.draws[self.number % len(self.draws)])


def ours(
    work: Workload, trained: str = "b", private: bool = True, merged: bool = False, cut: bool = True, compiled: bool = False
) -> Provider:  # fmt: skip
    """The engine of this package.

    Args:
        trained: 'b' (FFA-LoRA) or 'both' (LoRA).
        private: clip per sample and add noise.
        merged: compute on merged weights.
        cut: sort a logical batch by length and cut it; else one physical batch, padded to the longest.
        compiled: compile the model.
    """
    from ffalora.adapters import AdapterConfig, attach
    from ffalora.config import OptimizerConfig, PrivacyConfig
    from ffalora.privacy.accounting import PrivacyLedger
    from ffalora.privacy.engine import Engine, Participant
    from ffalora.privacy.noise import SeededNoise

    model = work.build(work.dtype, work.attention).eval()
    config = AdapterConfig(
        rank=work.rank, alpha=work.rank, target_modules=list(work.targets), trained=trained, head="frozen"
    )
    adapters = attach(model, config)
    with torch.no_grad():
        for name, layer in adapters.layers.items():
            a, b = starting_factors(name, layer.lora_B.shape[0], layer.lora_A.shape[1], work.rank)
            layer.lora_A.copy_(a)
            layer.lora_B.copy_(b)
    draw = _Draw([np.asarray(d) for d in work.draws])
    data = work.data if cut else _EqualLengths(work.data)
    rate = work.expected / len(work.data.lengths)
    terms = dict(unit="sample", noise_multiplier=work.noise_multiplier, max_grad_norm=work.max_grad_norm)
    privacy = PrivacyConfig(**terms) if private else PrivacyConfig(unit="none")
    engine = Engine(
        model=torch.compile(model, dynamic=True) if compiled else model, adapters=adapters, data=data, losses=work.losses,
        optimizer=OptimizerConfig(lr=work.lr, batch_size=max(1, round(work.expected))), privacy=privacy,
        noise=SeededNoise.from_seed(0), draw=draw, device=work.device, token_budget=None if cut else 2**40,
        merge_weights=merged,
    )  # fmt: skip
    if not private:
        engine.sample = lambda participant: draw(0, 0, 0, 0.0)
    samples = np.arange(len(work.data.lengths))

    def participant(sigma: float, lr: float) -> Participant:
        terms = dict(delta=1e-5, max_steps=2**31, accountant="rdp")
        ledger = PrivacyLedger(0, len(samples), min(1.0, rate), sigma, **terms) if private else None
        return Participant(0, samples, ledger, lr=lr)

    trainee, state = participant(work.noise_multiplier, work.lr), adapters.state()[None].to(work.device)
    tokens = [0]

    def step(number: int) -> None:
        draw.number = number
        tokens[0] = engine.train([trainee], state, steps=1).padded_tokens

    def sums(number: int) -> Sums:
        draw.number = number
        size = len(draw(0, 0, 0, 0.0)) if not private else work.expected
        after = state.clone()
        engine.train([participant(0.0, _FAR * size)], after, steps=1)
        total = (state.double() - after.double())[0] / _FAR
        return {
            place.name: total[place.start : place.start + place.size].view(place.shape)
            for place in adapters.layout.places
        }

    return Provider(step, sums, clips=private, trained=trained, tokens=lambda: tokens[0])


class _EqualLengths:
    """The data as an engine sees it that does not look at lengths: a logical batch stays whole."""

    def __init__(self, data: Any):
        self.lengths = np.full_like(data.lengths, int(data.lengths.max()))
        self.collate = data.collate


# ---- opake -------------------------------------------------------------------------------------------------------------


def opake(work: Workload, trained: str = "both") -> Provider:
    """opake's vmap-based clipped gradient and noise, with its patches for the models it names (not the encoders)."""
    try:
        from opake.dpsgd.clipping import clipped_grad
        from opake.dpsgd.noise import gaussian_noise
        from opake.patches import apply_model_patches, apply_runtime_patches
        from opake.random import key
    except ImportError as missing:
        raise Unavailable(f"opake is not installed ({missing})") from None
    apply_runtime_patches()
    model = peft_model(work, trained)
    apply_model_patches(model)
    model.train()
    names = {name: _canonical(name) for name, p in model.named_parameters() if p.requires_grad}
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


# ---- all of them -------------------------------------------------------------------------------------------------------

STEPS: dict[str, Factory] = {
    "floor": floor,
    "peft": peft,
    "peft, a frozen": lambda work: peft(work, "b"),
    "opacus hooks": lambda work: opacus(work, "hooks", "both"),
    "opacus hooks, a frozen": lambda work: opacus(work, "hooks", "b"),
    "opacus functorch, a frozen": lambda work: opacus(work, "functorch", "b"),
    "opacus ghost, a frozen": lambda work: opacus(work, "ghost", "b"),
    "opake": opake,
    "opake, a frozen": lambda work: opake(work, "b"),
    "ours": ours,
    "ours, merged": lambda work: ours(work, merged=True),
    "ours, a and b trained": lambda work: ours(work, trained="both"),
    "ours, not private": lambda work: ours(work, private=False),
}


def expected_sums(work: Workload, number: int, trained: str, clips: bool) -> Sums:
    """The definition: one sample at a time through PEFT, each gradient clipped by its norm, added up in float64."""
    model = peft_model(replace(work, dtype=torch.float32, attention="eager"), trained)
    parameters = _trained(model)
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
