"""One noisy mean gradient a logical batch, for training loops that bring their own optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ffalora_kernels import privatize_step_

from ..adapters import Adapters
from ..privacy.accounting import PrivacyLedger
from ..privacy.clipping import sensitivity
from ..privacy.noise import NoiseSource, SeededNoise
from .admission import check_model, check_users
from .arena import Arena
from .batches import groups_of
from .dropout import DropoutKeys
from .gradients import segment_gradients
from .probe import Probe


class PrivateGradient:
    """Clips every sample's gradient, or the sum of every user's, sums, adds noise and divides by the expected batch.

    Args:
        model: with adapters; what it trains must all belong to them.
        adapters: their handle.
        losses: takes the model's output and targets, returns one loss a sample, ``[S]``, from its own tokens only.
        ledger: charged one step a call of :meth:`step`, before anything is computed.
        max_grad_norm: clipping norm C.
        noise: where the noise comes from.
        check_gradients: compare the first gradients with ordinary autograd's (see ``Probe.recomputes``).
        users: whose each sample is, by index, ``[n]``; with a ledger of ``unit='user'``, whose group says whether the
            samples of a user are summed before they are clipped (1) or clipped apart, at most so many of each.

    Raises:
        ValueError: a trainable tensor is not the adapters', or a ledger that does not count users as they are clipped.
        SamplesNotIndependent: batch normalisation.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Adapters,
        losses: Callable[[Any, Tensor], Tensor],
        ledger: PrivacyLedger,
        max_grad_norm: float,
        noise: NoiseSource,
        check_gradients: bool = True,
        users: np.ndarray | None = None,
    ):
        self.device = adapters.state().device
        check_model(model, adapters, self.device, private=True)
        check_users(ledger, users)
        self._users = users if ledger.group == 1 else None
        self.model, self.adapters, self.losses = model, adapters, losses
        self.ledger, self.max_grad_norm, self.noise = ledger, max_grad_norm, noise
        self._arena, self._probe = Arena(adapters, self.device), Probe(adapters, recomputes=check_gradients)
        self.clipped = self.nonfinite = 0

    def step(
        self,
        number: int,
        batches: Sequence[tuple[np.ndarray, Mapping[str, Tensor], Tensor]],
        model: nn.Module | None = None,
    ) -> tuple[Tensor, float]:
        """The noisy mean gradient of logical step ``number``.

        Args:
            number: which noise and which dropout a seeded source gives.
            batches: physical batches ``(samples, inputs, targets)`` that together are the Poisson sample: which samples
                were asked for, int64 ``[S]``, and what the collator made of them; may be empty. A user's samples lie
                side by side in one of them.
            model: what to call instead of the model itself (a compiled or wrapped one).

        Returns:
            float32 row ``[P]`` in the adapters' columns, and the mean loss (computed on private data, without noise;
            NaN for an empty sample).

        Raises:
            PrivacyBudgetSpent: the ledger does not allow another step.
            GradientMissing: a trained tensor received no gradient.
            SamplesNotIndependent: the model mixes samples. ValueError: a collator that does not keep them apart.
        """
        self.ledger.charge()
        total, losses, norms = self.clipped_sum(number, batches, model)
        self.clipped += int((norms > self.max_grad_norm).sum())
        self.nonfinite += int((~norms.isfinite()).sum())
        gradient = self._noisy_mean(total, number)
        return gradient, float(losses.mean()) if len(losses) else float("nan")

    def clipped_sum(
        self,
        number: int,
        batches: Sequence[tuple[np.ndarray, Mapping[str, Tensor], Tensor]],
        model: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The clipped sum without noise, float64 ``[1,P]``, losses ``[S]`` and norms before clipping ``[S]``; nothing
        is charged, so that none of them may be released. Arguments as in :meth:`step`.
        """
        state = self.adapters.state()[None]
        total = torch.zeros(state.shape, dtype=torch.float64, device=self.device)
        groups = groups_of(self._users, [samples for samples, _, _ in batches])
        losses, norms = [torch.empty(0, device=self.device)], [torch.empty(0, device=self.device).double()]
        for (samples, inputs, targets), together in zip(batches, groups, strict=True):
            found = segment_gradients(
                model or self.model,
                self.adapters,
                self.losses,
                inputs,
                targets,
                state=state,
                rows=np.zeros(len(samples), dtype=np.int64),
                together=together,
                arena=self._arena,
                probe=self._probe,
                dropout=partial(self._dropout_keys, samples, number),
            )
            norms.append(found.clip_into_(total, self.max_grad_norm))
            losses.append(found.losses)
        return total, torch.cat(losses), torch.cat(norms)

    def write(self, gradient: Tensor) -> None:
        """Puts the row ``[P]`` into ``.grad`` of the trained tensors."""
        for place in self.adapters.layout.places:
            parameter = self.adapters.layout.parameter(place)
            piece = gradient[place.start : place.start + place.size].view(parameter.shape)
            parameter.grad = piece.to(parameter.dtype)

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

    def _dropout_keys(self, samples: np.ndarray, number: int) -> DropoutKeys:
        client, step = np.full(len(samples), self.ledger.client_id), np.full(len(samples), number)
        shared = DropoutKeys.shared_by(self.noise, self.ledger.client_id, number)
        return DropoutKeys.of(self.noise, client, step, samples, shared)

    def _row(self, value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64, device=self.device)
