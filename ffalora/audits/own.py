"""An audit of one's own run: the mechanism probed without noise, then canaries among the real samples.

Both train on private data. Their models live in memory alone and are dropped at the end; nothing is written, released
or charged but what the caller makes of the report, and that is for the owner of the data: its numbers are functions of
private data, the first of them without noise.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Config, ConfigError
from ..federated.experiment import build
from ..federated.strategies import LALoRA
from ..training.sensitivity import Sensitivity
from .canaries import CanaryTest
from .client_canaries import ClientCanaries
from .mechanism import probe_mechanism
from .sample_canaries import SampleCanaries


@dataclass(frozen=True)
class OwnAudit:
    """What the audit of a configured run found; computed on private data: for the owner of the data alone.

    Attributes:
        name: of the method; sensitivity: of the probe.
        tests: what canaries found; none where none were asked for.
        claimed_epsilon: of the steps that the canaries trained for, by the ledgers, at ``delta``.
        delta: the run's, or one over a client's records with its canaries where that is less.
        noise_multiplier, sample_rate: the smallest σ and the largest q of a client.
        steps, planned: logical steps (with whole clients protected: rounds) taken, and those of the run.
        unit: what is protected.
    """

    name: str
    sensitivity: Sensitivity
    tests: tuple[CanaryTest, ...]
    claimed_epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    planned: int
    confidence: float
    unit: str = "sample"

    @property
    def holds(self) -> bool:
        """Clipping bounds every record, and no guess disproves what is claimed."""
        return self.sensitivity.holds and all(test.epsilon_lower <= self.claimed_epsilon for test in self.tests)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.sensitivity}"]
        if not self.tests:
            return lines[0]
        others, turns = ("clients", "rounds") if self.unit == "client" else ("samples", "steps")
        lines.append(
            f"  canaries among the real {others}, σ = {self.noise_multiplier:.4g}, q = {self.sample_rate:.4g}, "
            f"{self.steps} of {self.planned} {turns}: ε claimed {self.claimed_epsilon:.4g} at δ = {self.delta:g}"
        )
        lines.append(
            f"  {'canary':<14} {'attacker sees':<16} {'number':>7} {'guesses':>8} {'right':>6}   {'ε ≥':>6} "
            f"{'could show':>11} {'if sound':>9}"
        )
        for test in self.tests:
            sound = "-" if np.isnan(test.expected) else f"{test.expected:.3f}"
            lines.append(
                f"  {test.kind:<14} {test.sees:<16} {test.trials:>7} {test.guesses:>8} {test.correct:>6}   "
                f"{test.epsilon_lower:>6.3f} {test.ceiling:>11.3f} {sound:>9}  "
                f"{'holds' if test.epsilon_lower <= self.claimed_epsilon else 'DISPROVED'}"
            )
        lines.append(
            f"  bounds hold together with confidence {self.confidence:g}; 'could show': if every guess were right; 'if "
            "sound': what such a run shows on average. None is a proof of privacy."
        )
        return "\n".join(lines)


def audit_own(
    config: Config,
    name: str = "run",
    canaries: int = 1000,
    seconds: float = 240.0,
    seed: int = 0,
    confidence: float = 0.95,
    progress: bool = False,
) -> OwnAudit:
    """Audits the mechanism of a configuration on its own model, data, batches, dropout, loss and head.

    Args:
        config: of one method.
        canaries: of one direction, for each client; a tenth as many texts of each kind. Where clients are protected, so
            many clients of one direction. 0 probes the mechanism alone.
        seconds: from the start; then the canaries take no further step, and the claim is that of the steps taken.
        seed: of the canaries and their coins; noise and sampling are as secret as the run's.
        confidence: of all bounds together.
        progress: show a bar with the time left.

    Raises:
        ConfigError: nothing is protected. ValueError: whatever training itself refuses.
    """
    if config.privacy.unit == "none":
        raise ConfigError("privacy.unit='none': nothing is protected, so there is nothing to audit; set it to sample")
    started, experiment = time.monotonic(), build(config)
    if canaries and isinstance(experiment.strategy, LALoRA):
        raise ConfigError(
            f"federation.strategy={config.federation.strategy!r}: canaries train all factors in every step, and here "
            "steps take turns; set canaries to 0, which probes every turn's clipping"
        )
    if canaries and experiment.strategy.whitens:
        raise ConfigError(
            f"federation.strategy={config.federation.strategy!r}: canaries are read from how far the trained numbers "
            "move, and here these move by other matrices in every step; set canaries to 0, which probes the clipping"
        )
    ledgers, protects_clients = list(experiment.ledgers.values()), config.privacy.unit == "client"
    terms: dict[str, Any] = {
        "name": name,
        "sensitivity": probe_mechanism(experiment),
        "noise_multiplier": min(ledger.noise_multiplier for ledger in ledgers),
        "sample_rate": max(ledger.sample_rate for ledger in ledgers),
        "planned": config.federation.rounds * (1 if protects_clients else config.federation.local_steps),
        "confidence": confidence,
        "unit": config.privacy.unit,
    }
    if not canaries:
        claimed = max(one.final_epsilon() for one in ledgers)
        return OwnAudit(tests=(), claimed_epsilon=claimed, delta=config.privacy.delta, steps=0, **terms)
    del experiment
    run = (ClientCanaries if protects_clients else SampleCanaries)(config, canaries, np.random.default_rng([seed, 2]))
    run.train(started + seconds, progress)
    tests = tuple(run.tests(1.0 - confidence))
    return OwnAudit(tests=tests, claimed_epsilon=run.claimed_epsilon(), delta=run.delta, steps=run.steps, **terms)
