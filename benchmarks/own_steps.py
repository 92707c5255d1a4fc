"""Steps with this package's engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from provider import Provider, Sums
from workload import Workload, starting_factors, token_losses

#: Learning rate of the step that ``sums`` of ours is read off: far enough that rounding of the state does not matter.
_FAR = 2.0**24
#: Steps after which a pass of their shape is recorded.
_UNTIL_RECORDED = 4


def make_engine(
    work: Workload,
    trained: str = "b",
    private: bool = True,
    merged: bool = False,
    cut: bool = True,
    compiled: bool = False,
    packed: bool = False,
    token_budget: int | None = None,
    graphs: bool = True,
) -> Any:
    """The engine on a workload, its adapters at the common starting point; arguments as in :func:`ours`."""
    from ffalora.adapters import AdapterConfig, attach
    from ffalora.config import OptimizerConfig, PrivacyConfig
    from ffalora.data.tasks import causal_losses
    from ffalora.models import compile_model
    from ffalora.privacy.noise import SeededNoise
    from ffalora.privacy.sampling import SeededDraw
    from ffalora.training.engine import Engine

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
    data = work.data if cut else _EqualLengths(work.data)
    terms = dict(unit="sample", noise_multiplier=work.noise_multiplier, max_grad_norm=work.max_grad_norm)
    privacy = PrivacyConfig(**terms) if private else PrivacyConfig(unit="none")
    return Engine(
        model=compile_model(model, work.device) if compiled else model,
        adapters=adapters,
        data=data,
        losses=causal_losses if work.losses is token_losses else work.losses,  # the same, as a run computes it
        optimizer=OptimizerConfig(lr=work.lr, normalize=False, batch_size=max(1, round(work.expected))),
        privacy=privacy,
        noise=SeededNoise.from_seed(0),
        draw=SeededDraw(0),
        device=work.device,
        token_budget=token_budget if cut else 2**40,
        merge_weights=merged,
        packed=packed,
        cuda_graphs=graphs,
    )


def ours(
    work: Workload,
    trained: str = "b",
    private: bool = True,
    merged: bool = False,
    cut: bool = True,
    compiled: bool = False,
    packed: bool = False,
    token_budget: int | None = None,
    graphs: bool = True,
) -> Provider:
    """The engine of this package.

    Args:
        trained: 'b' (FFA-LoRA) or 'both' (LoRA).
        private: clip per sample and add noise.
        merged: compute on merged weights.
        cut: sort a logical batch by length and cut it; else one physical batch, padded to the longest.
        compiled: compile the model.
        packed: lay samples end to end instead of padding them.
        token_budget: most tokens of a physical batch; None takes what suits model and memory.
        graphs: on a GPU, replay recorded passes.
    """
    from ffalora.privacy.accounting import PrivacyLedger
    from ffalora.training.participant import Participant

    engine = make_engine(work, trained, private, merged, cut, compiled, packed, token_budget, graphs)
    adapters = engine.adapters
    upcoming: list[int] = []
    engine.sample = lambda participant: np.sort(work.draws[upcoming.pop() % len(work.draws)])
    samples = np.arange(len(work.data.lengths))
    rate = work.expected / len(samples)

    def participant(sigma: float, lr: float) -> Participant:
        terms = dict(delta=1e-5, max_steps=2**31, accountant="rdp")
        ledger = PrivacyLedger(0, len(samples), min(1.0, rate), sigma, **terms) if private else None
        return Participant(0, samples, ledger, lr=lr)

    trainee, state = participant(work.noise_multiplier, work.lr), adapters.state()[None].to(work.device)
    tokens = [0]

    def several(number: int, count: int) -> None:
        upcoming[:] = range(number + count - 1, number - 1, -1)
        tokens[0] = engine.train([trainee], state, steps=count).padded_tokens

    def sums(number: int) -> Sums:
        if engine.graphs is not None:  # the gradients that are compared are those of the passes that are timed
            for each in range(len(work.draws)):
                upcoming[:] = [each] * _UNTIL_RECORDED
                engine.train([trainee], state.clone(), steps=_UNTIL_RECORDED)
        upcoming[:] = [number]
        size = work.expected if private else len(work.draws[number % len(work.draws)])
        after = state.clone()
        engine.train([participant(0.0, _FAR * size)], after, steps=1)
        total = (state.double() - after.double())[0] / _FAR
        return {place.name: total[place.columns].view(place.shape) for place in adapters.layout.places}

    return Provider(
        lambda number: several(number, 1), sums, clips=private, trained=trained, tokens=lambda: tokens[0],
        several=several,
    )  # fmt: skip


class _EqualLengths:
    """The data as an engine sees it that does not look at lengths: a logical batch stays whole."""

    def __init__(self, data: Any):
        self.lengths = np.full_like(data.lengths, int(data.lengths.max()))
        self.collate = data.collate


def cohort(work: Workload, clients: int, one_pass: bool) -> Provider:
    """One step of every client of a cohort, each with its own Poisson batch, in one pass or one after another.

    The workload's logical batches are dealt to the clients in turn.
    """
    from ffalora.privacy.accounting import PrivacyLedger
    from ffalora.training.participant import Participant

    engine = make_engine(work, packed=True)
    number_of_step = [0]
    engine.sample = lambda p: np.sort(work.draws[(number_of_step[0] * clients + p.client_id) % len(work.draws)])
    samples = np.arange(len(work.data.lengths))
    rate, terms = work.expected / len(samples), dict(delta=1e-5, max_steps=2**31, accountant="rdp")
    trainees = [
        Participant(i, samples, PrivacyLedger(i, len(samples), rate, work.noise_multiplier, **terms))
        for i in range(clients)
    ]
    state = engine.adapters.state()[None].repeat(clients, 1)

    def step(number: int) -> None:
        number_of_step[0] = number
        if one_pass:
            engine.train(trainees, state, steps=1)
            return
        for row, trainee in enumerate(trainees):
            engine.train([trainee], state[row : row + 1], steps=1)

    return Provider(step)
