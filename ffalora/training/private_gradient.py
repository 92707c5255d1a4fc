"""One noisy mean gradient a logical batch, for training loops that bring their own optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ffalora_kernels import clip_reduce_, privatize_step_

from ..adapters import Adapters, TrainingPass
from ..privacy.accounting import PrivacyLedger
from ..privacy.clipping import sensitivity
from ..privacy.noise import NoiseSource, SeededNoise
from .admission import check_trained_tensors
from .arena import Arena
from .detectors import check_attached
from .probe import check_independence, check_losses, check_losses_independence


class PrivateGradient:
    """Clips the gradient of every sample, sums, adds noise and divides by the expected batch.

    Args:
        model: with adapters; what it trains must all belong to them.
        adapters: their handle.
        losses: takes the model's output and targets, returns one loss a sample, ``[S]``, from its own tokens only.
        ledger: charged one step a call of :meth:`step`, before anything is computed.
        max_grad_norm: clipping norm C.
        noise: where the noise comes from.

    Raises:
        ValueError: a trainable tensor is not the adapters'.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Adapters,
        losses: Callable[[Any, Tensor], Tensor],
        ledger: PrivacyLedger,
        max_grad_norm: float,
        noise: NoiseSource,
    ):
        check_trained_tensors(model, adapters, private=True)
        self.model, self.adapters, self.losses = model, adapters, losses
        self.ledger, self.max_grad_norm, self.noise = ledger, max_grad_norm, noise
        self.device = adapters.state().device
        check_attached(model, adapters, self.device)
        self._arena = Arena(adapters, self.device)
        self._counted = self._probed = False
        self.clipped = self.nonfinite = 0

    def step(
        self, number: int, batches: Sequence[tuple[Mapping[str, Tensor], Tensor]], model: nn.Module | None = None
    ) -> tuple[Tensor, float]:
        """The noisy mean gradient of logical step ``number``.

        Args:
            number: which noise a seeded source gives.
            batches: physical batches ``(inputs, targets)`` that together are the Poisson sample; may be empty.
            model: what to call instead of the model itself (a compiled or wrapped one).

        Returns:
            float32 row ``[P]`` in the adapters' columns, and the mean loss (computed on private data, without noise;
            NaN for an empty sample).

        Raises:
            PrivacyBudgetSpent: the ledger does not allow another step.
            GradientMissing: a trained tensor received no gradient.
            SamplesNotIndependent: the model mixes samples.
        """
        self.ledger.charge()
        layout = self.adapters.layout
        state = self.adapters.state()[None]
        total = torch.zeros(state.shape, dtype=torch.float64, device=self.device)
        limit = torch.full((1, 1), self.max_grad_norm, dtype=torch.float64, device=self.device)
        columns = torch.tensor([0, layout.width], dtype=torch.int32, device=self.device)
        losses: list[Tensor] = []
        for inputs, targets in batches:
            losses.append(self._accumulate(model or self.model, state, inputs, targets, total, limit, columns))
        gradient = self._noisy_mean(total, number)
        return gradient, float(torch.cat(losses).mean()) if losses else float("nan")

    def write(self, gradient: Tensor) -> None:
        """Puts the row ``[P]`` into ``.grad`` of the trained tensors."""
        for place in self.adapters.layout.places:
            parameter = self.adapters.layout.parameter(place)
            piece = gradient[place.start : place.start + place.size].view(parameter.shape)
            parameter.grad = piece.to(parameter.dtype)

    def _accumulate(self, model, state, inputs, targets, total, limit, columns) -> Tensor:
        self._probe(model, inputs, targets)
        samples = len(targets)
        gradients, squares = self._arena.rows(samples)
        current = TrainingPass(
            state=state,
            arena=gradients,
            squares=squares,
            client=torch.zeros(samples, dtype=torch.int32, device=self.device),
            sample_offsets=torch.arange(samples + 1, dtype=torch.int32, device=self.device),
            samples=samples,
        )
        with self.adapters.training_pass(current):
            losses = self.losses(model(**inputs), targets)
            check_losses(losses, samples)
            losses.sum().backward()
        self._arena.check_written(squares)
        factors, norms = clip_reduce_(
            total, gradients, current.client, limit, columns, squares=squares.sum(1, keepdim=True)
        )
        self.nonfinite += int((~norms.isfinite()).sum())
        self.clipped += int((factors < 1).sum())
        return losses.detach()

    def _probe(self, model: nn.Module, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Uses, independence of samples and of losses: once, on the first batch that can tell."""
        if not self._counted:
            self.adapters.count_uses(inputs)
            self._counted = True
        if not self._probed and check_independence(model, inputs, lambda output: output.logits):
            with torch.no_grad():
                logits = model(**inputs).logits
            check_losses_independence(self.losses, logits, targets)
            self._probed = True

    def _noisy_mean(self, total: Tensor, number: int) -> Tensor:
        """The gradient as the step of an optimiser with learning rate -1 from zero."""
        index = self.adapters.layout.parameter_index()
        index = None if index is None else index.to(self.device)
        std = self.ledger.noise_multiplier * sensitivity(self.max_grad_norm, self.ledger.dataset_size)
        if not isinstance(self.noise, SeededNoise):
            self.noise.add_(total, self._row(std))
        gradient = torch.zeros(total.shape, dtype=torch.float32, device=self.device)
        whole = torch.tensor([number], dtype=torch.int64, device=self.device)
        privatize_step_(
            gradient,
            total,
            client_id=torch.full_like(whole, self.ledger.client_id),
            step=whole,
            noise_std=self._row(std if isinstance(self.noise, SeededNoise) else 0.0),
            denominator=self._row(self.ledger.sample_rate * self.ledger.dataset_size),
            lr=self._row(-1.0),
            key=self.noise.key if isinstance(self.noise, SeededNoise) else 0,
            index=index,
        )
        return gradient[0]

    def _row(self, value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64, device=self.device)
