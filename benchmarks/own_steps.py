"""Steps with this package's engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from provider import Provider, Sums
from workload import Workload, starting_factors

#: Learning rate of the step that ``sums`` of ours is read off: far enough that rounding of the state does not matter.
_FAR = 2.0**24


class _Draw:
    """Gives the logical batch of the current number to an engine that asks for a Poisson sample."""

    secure = False

    def __init__(self, draws: list[np.ndarray]):
        self.draws, self.number = draws, 0

    def __call__(self, client_id: int, step: int, n: int, rate: float) -> np.ndarray:
        return np.sort(self.draws[self.number % len(self.draws)])


def ours(
    work: Workload,
    trained: str = "b",
    private: bool = True,
    merged: bool = False,
    cut: bool = True,
    compiled: bool = False,
) -> Provider:
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
        model=torch.compile(model, dynamic=True) if compiled else model,
        adapters=adapters,
        data=data,
        losses=work.losses,
        optimizer=OptimizerConfig(lr=work.lr, batch_size=max(1, round(work.expected))),
        privacy=privacy,
        noise=SeededNoise.from_seed(0),
        draw=draw,
        device=work.device,
        token_budget=None if cut else 2**40,
        merge_weights=merged,
    )
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
