"""Attack our own mechanism: canaries whose gradients are as large as clipping allows, and guesses who was there.

The canaries train through the engine itself (sampling, clipping, noise, division, optimiser, ledger), one client beside
the other, as in a federated round. The auditor sees the state after every client's last step, and which direction each
canary pushes. ε that the guesses disprove is a lower bound of what the run really spent; above what the ledgers claim,
it is proof of a fault.

``audit_one_run``: many canaries, each in with probability one half, in a model whose gradients are one coordinate each.
``audit_many_runs``: one canary, a sample like any other, in or out of many independent runs of a small transformer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from ..adapters import AdapterConfig, Adapters, attach
from ..config import OptimizerConfig, PrivacyConfig
from ..privacy.accounting import PrivacyLedger
from ..privacy.noise import NoiseSource, SecureNoise, SeededNoise
from ..privacy.sampling import Draw, SeededDraw, SystemDraw
from ..training.admission import ledger_of
from ..training.engine import Engine
from ..training.participant import Participant
from ..training.setup import Data
from .bounds import gaussian_bound, many_runs_bound, one_run_bound
from .made_up import Coordinates, OneHot, Texts, cross_entropy, small_transformer

#: Which canaries are guessed (all, those in adapters, those in the head), the share of them at each end, and whether at
#: both ends. Fixed beforehand; the last number is each one's share of the significance. Few extreme guesses are best
#: for a small ε; only many can disprove a large one.
_GUESSES = (
    ("all", 0.03, True, 6 / 12),
    ("all", 0.0007, True, 1 / 12),
    ("all", 0.003, True, 1 / 12),
    ("all", 0.003, False, 1 / 12),
    ("all", 0.02, False, 1 / 12),
    ("adapters", 0.05, True, 1 / 12),
    ("head", 0.05, True, 1 / 12),
)
_ALARM_RATES = (0.5, 0.05, 0.005)
Losses = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        method: 'one run' or 'many runs'.
        claimed_epsilon: the largest ε that the ledgers state at ``delta``.
        epsilon_lower: disproved with ``confidence``, whatever the mechanism.
        epsilon_lower_gaussian: the same if the trade-off curve is a Gaussian's; None where it is not (sample_rate < 1).
        trials: canaries (one run) or runs (many runs).
        guesses, correct: of the test that gave ``epsilon_lower``.
    """

    method: str
    claimed_epsilon: float
    epsilon_lower: float
    epsilon_lower_gaussian: float | None
    confidence: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    trials: int
    guesses: int
    correct: int

    @property
    def holds(self) -> bool:
        """Neither bound exceeds the claim."""
        return max(self.epsilon_lower, self.epsilon_lower_gaussian or 0.0) <= self.claimed_epsilon


def audit_one_run(
    noise_multiplier: float,
    delta: float,
    steps: int = 1,
    sample_rate: float = 1.0,
    clients: int = 1000,
    canaries: int = 400,
    seed: int = 0,
    noise: str = "seeded",
    confidence: float = 0.95,
) -> Audit:
    """Audits one run of ``clients`` with ``canaries`` each, half of them in adapters and half in a trained head.

    Every client has its own coins, noise and ledger, so that all canaries together are one test of the one claim.

    Args:
        noise_multiplier, sample_rate, steps, delta: of every client.
        seed: of coins, and of noise and sampling where they are seeded.
        noise: 'seeded' or 'secure'.
    """
    width = max(2, canaries // 2)
    model = Coordinates(width)
    adapters = attach(
        model, AdapterConfig(rank=width, alpha=float(width), target_modules=["body"], trained="b", head="trained")
    )
    adapters.layers["body"].lora_A.data.copy_(torch.eye(width))
    engine = _engine(model, adapters, OneHot(width), lambda out, _: -100.0 * out.logits[:, 0], noise, seed)
    included = np.random.default_rng([seed, 1]).random((clients, 2 * width)) < 0.5
    included[:, 0] |= ~included.any(1)
    groups = [np.flatnonzero(row) for row in included]
    cohort = _participants(groups, noise_multiplier, sample_rate, steps, delta)
    moved = _run(engine, adapters, cohort, steps)
    start = {place.tensor: place.start for place in adapters.layout.places}
    columns = np.concatenate([start["lora_B"] + np.arange(width), start["weight"] + np.arange(width)])
    scores, significance = moved[:, columns], 1.0 - confidence
    where = {"all": slice(None), "adapters": slice(width), "head": slice(width, None)}
    best = (0.0, 0, 0)
    for part, share, both_ends, weight in _GUESSES:
        some, there = scores[:, where[part]].reshape(-1), included[:, where[part]].reshape(-1)
        guesses, correct = _guess(some, there, max(1, round(share * len(some))), both_ends)
        found = one_run_bound(scores.size, guesses, correct, delta, weight * significance)
        best = max(best, (found, guesses, correct))
    gaussian = _gaussian(scores, included, cohort[0], significance)
    return _result("one run", cohort, best, gaussian, confidence, scores.size)


def audit_many_runs(
    noise_multiplier: float,
    delta: float,
    steps: int = 1,
    sample_rate: float = 1.0,
    runs: int = 4000,
    seed: int = 0,
    noise: str = "seeded",
    confidence: float = 0.95,
) -> Audit:
    """Audits a small transformer by ``runs`` independent runs on two samples, half of them with a third, the canary.

    The canary is a sample of the data's own kind; its direction is what it does to the state without noise.
    """
    model, data = small_transformer(seed), Texts(seed)
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["query", "value"], init="gaussian", head="trained"))
    losses = cross_entropy
    alone = _engine(model, adapters, data, losses, "seeded", seed)
    moves = [
        _run(alone, adapters, _participants([np.array(group)], 0.0, 1.0, 1, delta), 1)[0] for group in ([2], [0, 1])
    ]
    direction, background = moves[0] / np.linalg.norm(moves[0]), moves[1]
    included = np.random.default_rng([seed, 1]).random(runs) < 0.5
    groups = [np.arange(3) if there else np.arange(2) for there in included]
    engine = _engine(model, adapters, data, losses, noise, seed)
    cohort = _participants(groups, noise_multiplier, sample_rate, steps, delta)
    scores = (_run(engine, adapters, cohort, steps) - steps * sample_rate * background) @ direction
    significance = 1.0 - confidence
    best = (0.0, 0, 0)
    for rate in _ALARM_RATES:
        guessed = scores > stats.norm.isf(rate) * noise_multiplier * math.sqrt(steps)
        hits, alarms = int((guessed & included).sum()), int((guessed & ~included).sum())
        found = many_runs_bound(
            hits, int(included.sum()), alarms, int((~included).sum()), delta, significance / len(_ALARM_RATES)
        )
        best = max(best, (found, hits + alarms, hits))
    return _result("many runs", cohort, best, _gaussian(scores, included, cohort[0], significance), confidence, runs)


def format_audits(audits: Sequence[Audit]) -> str:
    """A table for the terminal: claim beside bounds."""
    names = f"{'audit':<10} {'σ':>7} {'q':>6} {'steps':>6} {'trials':>8}"
    lines = [f"{names}   {'ε claimed':>9} {'ε ≥':>7} {'ε ≥ (Gaussian)':>15}  verdict"]
    for a in audits:
        gaussian = "-" if a.epsilon_lower_gaussian is None else f"{a.epsilon_lower_gaussian:.3f}"
        lines.append(
            f"{a.method:<10} {a.noise_multiplier:>7.4f} {a.sample_rate:>6g} {a.steps:>6} {a.trials:>8}   "
            f"{a.claimed_epsilon:>9.4g} {a.epsilon_lower:>7.3f} {gaussian:>15}  "
            f"{'holds' if a.holds else 'DISPROVED'}"
        )
    first = audits[0]
    lines.append(
        f"δ = {first.delta:g}; each bound holds with confidence {first.confidence:g}; none is a proof of privacy."
    )
    return "\n".join(lines)


# ---- the run itself --------------------------------------------------------------------------------------------------


def _engine(model: nn.Module, adapters: Adapters, data: Data, losses: Losses, noise: str, seed: int) -> Engine:
    source: NoiseSource = SecureNoise() if noise == "secure" else SeededNoise.from_seed(seed)
    draw: Draw = SystemDraw() if noise == "secure" else SeededDraw(seed)
    return Engine(
        model=model,
        adapters=adapters,
        data=data,
        losses=losses,
        optimizer=OptimizerConfig(name="sgd", lr=1.0, normalize=False),
        # Clipped as one: a canary of a single direction can then move a sum by all of C, wherever its direction lies.
        privacy=PrivacyConfig(unit="sample", noise_multiplier=1.0, max_grad_norm=1.0, noise=noise, head_share=None),
        noise=source,
        draw=draw,
        seed=seed,
        token_budget=1024,
    )


def _participants(
    groups: Sequence[NDArray[np.int64]], sigma: float, rate: float, steps: int, delta: float
) -> list[Participant]:
    return [
        Participant(i, group, PrivacyLedger(i, len(group), rate, sigma, delta, max_steps=steps))
        for i, group in enumerate(groups)
    ]


def _run(engine: Engine, adapters: Adapters, cohort: Sequence[Participant], steps: int) -> NDArray[np.float64]:
    """What each client's rounds of one step added up to, in units of the clipping norm: its noisy sums, ``[C,P]``."""
    start = adapters.state()
    state = start.repeat(len(cohort), 1)
    for _ in range(steps):
        engine.train(cohort, state, 1)
    expected = np.array([ledger_of(p).sample_rate * len(p.samples) for p in cohort])
    return (state - start).double().numpy() * expected[:, None]


def _guess(scores: NDArray, present: NDArray, count: int, both_ends: bool) -> tuple[int, int]:
    """Guesses 'in' for the ``count`` highest scores, and 'out' for as many of the lowest: how many, how many right."""
    order = np.argsort(scores, kind="stable")
    correct = int(present[order[-count:]].sum())
    if not both_ends:
        return count, correct
    return 2 * count, correct + int((~present[order[:count]]).sum())


def _gaussian(scores: NDArray, present: NDArray, one: Participant, significance: float) -> float | None:
    """The Gaussian bound at the threshold half-way between being in and being out; None where draws are random too."""
    terms = ledger_of(one)
    if terms.sample_rate < 1:
        return None
    guessed = scores > 0.5 * terms.max_steps
    return gaussian_bound(
        int((guessed & present).sum()),
        int(present.sum()),
        int((guessed & ~present).sum()),
        int((~present).sum()),
        terms.delta,
        significance,
    )


def _result(
    method: str,
    cohort: Sequence[Participant],
    best: tuple[float, int, int],
    gaussian: float | None,
    confidence: float,
    trials: int,
) -> Audit:
    ledgers = {
        (terms.noise_multiplier, terms.sample_rate, terms.steps_taken): terms
        for terms in (ledger_of(p) for p in cohort)
    }
    first = next(iter(ledgers.values()))
    return Audit(
        method=method,
        claimed_epsilon=max(ledger.epsilon() for ledger in ledgers.values()),
        epsilon_lower=best[0],
        epsilon_lower_gaussian=gaussian,
        confidence=confidence,
        delta=first.delta,
        noise_multiplier=first.noise_multiplier,
        sample_rate=first.sample_rate,
        steps=first.max_steps,
        trials=trials,
        guesses=best[1],
        correct=best[2],
    )
