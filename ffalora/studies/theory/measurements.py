"""One run of one method, with what is measured in each of its rounds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError
from torch import Tensor

from ...config import Config
from ...federated.checks import find_strategy
from ...federated.cohort import client_weights
from ...federated.experiment import Experiment, build
from ...federated.simulate import run_round
from ...federated.strategies import Answers, ServerState, Strategy
from ...privacy.clipping import sensitivity
from ...privacy.noise import SeededNoise
from ...training.batches import physical_batches
from ...training.optim import lr_factor
from ...training.rates import given_rate
from .discordance import Discordance, round_discordance
from .gradients import Batch, layer_norms, sample_squares, spread
from .noise import NoiseParts, averaged_variance, draw_noise, expected_parts, squared_parts, step_variance
from .smoothness import smoothness

_PASS_COST = 512  # tokens that one more physical batch is worth
_TOLERANCE = 0.02  # of eigenvalues
_KEY_STRIDE = 1_000_003  # seeds of drawn noise, far from those of runs


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        every: rounds between measurements of curvature, gradients and noise; the start and the end are measured too.
        samples: training samples of the loss and of the gradient norms.
        curvature_samples: how many of these carry the Hessian.
        draws: draws of noise beside each expectation.
    """

    every: int = 10
    samples: int = 96
    curvature_samples: int = 16
    draws: int = 8

    @classmethod
    def of(cls, config: Config) -> Effort:
        """Twice in the run; less of everything for runs of a few rounds."""
        rounds = config.federation.rounds
        if rounds < 10:
            return cls(every=rounds, samples=16, curvature_samples=6, draws=2)
        return cls(every=-(-rounds // 2))


class Measurements:
    """A method under measurement, on probe samples that depend on the data alone (the same for every method).

    Attributes:
        experiment: what is trained; server: its state.
    """

    def __init__(self, config: Config, effort: Effort):
        self._seen: Discordance | None = None
        self._effort = effort
        self.experiment: Experiment = build(config, self._watched(find_strategy(config.federation.strategy)))
        self.server: ServerState = self.experiment.strategy.begin()
        count = min(effort.samples, len(self.experiment.train))
        self._samples = np.random.default_rng(0).permutation(len(self.experiment.train))[:count]
        self._batches = self._collate(self._samples)
        self._curved = self._collate(self._samples[: effort.curvature_samples])

    def before(self) -> dict[str, Any]:
        """The row of round 0."""
        return self._row(is_measured=True)

    def next_round(self) -> dict[str, Any]:
        """Trains a round; its row."""
        row = run_round(self.experiment, self.server)
        number, last = self.server.round, self.experiment.config.federation.rounds
        measured = self._row(is_measured=number == last or number % self._effort.every == 0)
        return measured | {"epsilon": row["epsilon"], "discordance": asdict(self._seen) if self._seen else None}

    def _row(self, is_measured: bool) -> dict[str, Any]:
        experiment, config = self.experiment, self.experiment.config
        experiment.strategy.load(self.server)
        row: dict[str, Any] = {
            "round": self.server.round,
            "trained": experiment.strategy.trained,
            "loss": self._loss(),
            "discordance": None,
            "epsilon": None,
        }
        if is_measured:
            terms = experiment.engine.model, experiment.adapters, experiment.task.losses
            squares = sample_squares(*terms, self._batches)
            limit = config.privacy.max_grad_norm
            row["gradients"] = {
                name: asdict(spread(norms, limit))
                for name, norms in layer_norms(experiment.adapters.layout, squares).items()
            }
            row["smoothness"] = self._smoothness()
            row["noise"] = self._noise()
        return row

    def _smoothness(self) -> dict[str, float] | None:
        """None where the iteration does not settle."""
        experiment = self.experiment
        try:
            found = smoothness(
                experiment.engine.model, experiment.adapters, experiment.task.losses, self._curved, _TOLERANCE
            )
        except ArpackError as error:
            warnings.warn(f"round {self.server.round}: no smoothness, {error}", stacklevel=2)
            return None
        return asdict(found)

    @torch.no_grad()
    def _loss(self) -> float:
        """Mean loss of the probe samples."""
        experiment = self.experiment
        losses = [experiment.task.losses(experiment.engine.model(**x), y) for x, y in self._batches]
        return float(torch.cat(losses).double().mean())

    def _noise(self) -> dict[str, Any] | None:
        """Noise that all steps so far have put into the server's average, expected and drawn again, and that of the
        first client's noisiest step alone; None without noise.
        """
        experiment, taken = self.experiment, self.server.round * self.experiment.config.federation.local_steps
        if not experiment.config.privacy.at_clients or not taken:
            return None
        stds = [self._stds(client, taken) for client in range(len(experiment.participants))]
        weights = client_weights(experiment.participants, experiment.config).tolist()
        variance = averaged_variance([sum(s * s for s in each) for each in stds], weights)
        drawn = [self._drawn(stds, weights, draw) for draw in range(self._effort.draws)]
        sampled = sum(drawn, NoiseParts(0.0, 0.0)) / len(drawn)
        one = self._expected(max(stds[0]) ** 2)
        expected = self._expected(variance)
        return {
            "expected": asdict(expected),
            "sampled": asdict(sampled),
            "share": expected.quadratic_share,
            "one_step": asdict(one),
            "one_step_share": one.quadratic_share,
            "ratio": sampled.total / expected.total,
        }

    def _stds(self, client: int, steps: int) -> list[float]:
        """Standard deviation that each step so far left in each of a client's numbers."""
        config, participant = self.experiment.config, self.experiment.participants[client]
        ledger = participant.ledger
        if ledger is None:
            return [0.0] * steps
        total = config.federation.steps
        std = ledger.noise_multiplier * sensitivity(config.privacy.max_grad_norm, ledger.dataset_size)
        expected = ledger.sample_rate * ledger.dataset_size
        lr = given_rate(config.optimizer)
        return [
            step_variance(std, expected, lr * lr_factor(config.optimizer, step, total)) ** 0.5 for step in range(steps)
        ]

    def _expected(self, variance: float) -> NoiseParts:
        parts = NoiseParts(0.0, 0.0)
        for layer in self.experiment.adapters.layers.values():
            trains_a = layer.lora_A.requires_grad
            parts += expected_parts(layer.lora_B.detach(), layer.lora_A.detach(), layer.scale, variance, trains_a)
        return parts

    def _drawn(self, stds: Sequence[Sequence[float]], weights: Sequence[float], draw: int) -> NoiseParts:
        adapters, source = self.experiment.adapters, SeededNoise.from_seed(_KEY_STRIDE * (draw + 1))
        noise = torch.zeros(adapters.layout.width)
        for client, weight in enumerate(weights):
            noise += weight * draw_noise(adapters.layout, source, client, stds[client])
        parts = NoiseParts(0.0, 0.0)
        for layer in adapters.layers.values():
            b, a = layer.lora_B.detach().cpu(), layer.lora_A.detach().cpu()
            pieces = {n: _piece(noise, layer.places[n], f) for n, f in layer.trained().items()}
            parts += squared_parts(b, a, pieces["lora_B"], pieces.get("lora_A"), layer.scale)
        return parts

    def _collate(self, samples: np.ndarray) -> list[Batch]:
        experiment = self.experiment
        device, data = experiment.engine.device, experiment.engine.data
        plan = physical_batches(data.lengths[samples], experiment.engine.token_budget or 1, overhead=_PASS_COST)
        batches = [data.collate(samples[each]) for each in plan.batches]
        return [({n: v.to(device) for n, v in inputs.items()}, targets.to(device)) for inputs, targets in batches]

    def _watched(self, strategy: type[Strategy]) -> type[Strategy]:
        """The strategy, whose aggregation also tells how far averaging factors is from averaging products."""
        outer = self

        class Watched(strategy):  # type: ignore[valid-type, misc]
            def aggregate(self, server: ServerState, answers: Answers) -> float:
                outer._seen = round_discordance(self.adapters, server.row, answers.rows, answers.weights)
                return super().aggregate(server, answers)

        return Watched


def _piece(row: Tensor, start: int, like: Tensor) -> Tensor:
    return row[start : start + like.numel()].view(like.shape)
