"""One noisy mean gradient a logical batch, for training loops that bring their own optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ffalora_kernels import privatize_step_

from ..adapters import Adapters
from ..adapters.targets import is_compiled
from ..data.tasks import Losses
from ..privacy.accounting import PrivacyLedger
from ..privacy.clipping import positive_norm, sensitivity
from ..privacy.noise import NoiseSource, SecureNoise
from .admission import check_model, check_users, check_whole
from .arena import Arena
from .batches import groups_of
from .detectors import Standing
from .dropout import DropoutKeys, drops_out
from .gradients import Clipping, look_at, segment_gradients
from .graphs import PassGraphs
from .probe import Probe
from .recorder import CudaRecorder
from .transfer import to_device
from .workers import Workers, check_same_state, find_workers

#: Physical batches ``(samples, inputs, targets)``: which samples were asked for, int64 ``[S]``, and what the collator
#: made of them.
Batches = Sequence[tuple[np.ndarray, Mapping[str, Tensor], Tensor]]


class PrivateGradient:
    """Clips every sample's gradient, or the sum of every user's, sums, adds noise and divides by the expected batch.

    Args:
        model: with adapters; what it trains must all belong to them.
        adapters: their handle.
        losses: takes the model's output and targets, returns one loss a sample, ``[S]``, from its own tokens only.
        ledger: charged one step a call of :meth:`step`, once the step's samples were looked at, before its gradient
            is computed.
        max_grad_norm: clipping norm C.
        noise: where the noise comes from.
        check_gradients: compare the first gradients with ordinary autograd's (see ``Probe.recomputes``).
        workers: the processes that share each step, by default those of the initialised ``torch.distributed`` group:
            each gives :meth:`step` its own part of the samples, and all get the same gradient.
        users: whose each sample is, by index, ``[n]``; with a ledger of ``unit='user'``, whose group says whether the
            samples of a user are summed before they are clipped (1) or clipped apart, at most so many of each.
        cuda_graphs: on a GPU, record passes and replay them (see ``graphs``), where the model drops nothing out.
        charged: called in the first process right after the ledger was charged, and before anything is computed: where
            a charge is written down durably.

    Raises:
        ValueError: a trainable tensor is not the adapters', or a ledger that does not count users as they are clipped,
            or counts correlated noise.
        SamplesNotIndependent: batch normalisation.
    """

    def __init__(
        self,
        model: nn.Module,
        adapters: Adapters,
        losses: Losses,
        ledger: PrivacyLedger,
        max_grad_norm: float,
        noise: NoiseSource,
        check_gradients: bool = True,
        workers: Workers | None = None,
        users: np.ndarray | None = None,
        charged: Callable[[], None] | None = None,
        cuda_graphs: bool = True,
    ):
        check_whole(list(model.named_modules()))
        self.device = adapters.state().device
        check_users(ledger, users)
        if ledger.correlation is not None:
            raise ValueError(
                f"the ledger of client {ledger.client_id} counts noise that is correlated over {ledger.period} steps, "
                "but each step here draws its own; give a ledger without correlation"
            )
        self._owners, self._users = users, users if ledger.group == 1 else None
        self.model, self.adapters, self.losses = _without_ddp(model), adapters, losses
        self.ledger, self.max_grad_norm, self.noise = ledger, positive_norm(max_grad_norm), noise
        self.charged = charged
        self.workers = find_workers() if workers is None else workers
        self._is_compared = self.workers.size == 1
        self._arena, self._recomputes = Arena(adapters, self.device), check_gradients
        self._record = CudaRecorder(self.device) if cuda_graphs and self.device.type == "cuda" else None
        self._standing: Standing | None = None
        self._graphs: PassGraphs | None = None
        self._draws: bool | None = None  # at random, in training mode; None until a pass has told
        self._look_again()
        self.clipped = self.nonfinite = 0
        self._taken: set[int] = set()

    def step(self, number: int, batches: Batches, model: nn.Module | None = None) -> tuple[Tensor, float]:
        """The noisy mean gradient of logical step ``number``.

        Args:
            number: which noise and which dropout a seeded source gives; another one in every step.
            batches: that together, over all processes, are the Poisson sample; may be empty. A user's samples lie side
                by side in one of them.
            model: what to call instead of the model itself (a compiled or wrapped one).

        Returns:
            float32 row ``[P]`` in the adapters' columns, and the mean loss of this process's samples (computed on
            private data, without noise; NaN where there are none).

        Raises:
            PrivacyBudgetSpent: the ledger does not allow another step.
            GradientMissing: a trained tensor received no gradient. StorageParted: the model was cast, moved or copied.
            SamplesNotIndependent: the model mixes samples. ValueError: a collator that does not keep them apart, a
                sample that two processes were given or that is not of the data, a seeded step that was taken, or a
                tensor that was thawed. Nothing is charged where this step's samples, or the model, show it.
        """
        batches = list(batches)  # a generator would be used up by the first look
        self._look_again()
        self._check_number(number)
        self._check_apart([samples for samples, _, _ in batches])
        if batches and not self._probe.has_looked:
            samples, inputs, targets = max(batches, key=lambda batch: len(batch[0]))
            called = _without_ddp(self.model if model is None else model)
            look_at(self._probe, called, self.losses, inputs, targets, len(samples), self.device)
        self.ledger.charge(noise=self.noise.mode)
        if self.charged is not None and self.workers.leads:
            self.charged()
        total, losses, norms = self._clipped_sum(number, batches, model)
        self.clipped += int((norms > self.max_grad_norm).sum())
        self.nonfinite += int((~norms.isfinite()).sum())
        gradient = self._noisy_mean(total, number)
        self._taken.add(number)
        return gradient, float(losses.mean()) if len(losses) else float("nan")

    def clipped_sum(
        self, number: int, batches: Batches, model: nn.Module | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The clipped sum without noise, float64 ``[1,P]``, losses ``[S]`` and norms before clipping ``[S]``; nothing
        is charged, so that none of them may be released. Arguments as in :meth:`step`; raises what it raises of a
        model that was changed.
        """
        self._look_again()
        return self._clipped_sum(number, list(batches), model)

    def _clipped_sum(self, number: int, batches: Batches, model: nn.Module | None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`clipped_sum`, of a model that was looked at."""
        state = self.adapters.state()[None]
        total = torch.zeros(state.shape, dtype=torch.float64, device=self.device)
        called = _without_ddp(self.model if model is None else model)
        groups = groups_of(self._users, [samples for samples, _, _ in batches])
        losses, norms = [torch.empty(0, device=self.device)], [torch.empty(0, device=self.device).double()]
        shared, clipping = 0, self._clipping(total)
        if drops_out(called, self.adapters):
            shared = self.workers.same_for_all(DropoutKeys.shared_by(self.noise, number))
        for (samples, inputs, targets), together in zip(batches, groups, strict=True):
            rows = np.zeros(len(samples), dtype=np.int64)
            done = None
            if self._graphs is not None and together is None and self._may_record(called, inputs):
                done = self._graphs.run(inputs, targets, rows, state, total, clipping)
            if done is None:
                found = segment_gradients(
                    called,
                    self.adapters,
                    self.losses,
                    inputs,
                    targets,
                    state=state,
                    rows=rows,
                    together=together,
                    arena=self._arena,
                    probe=self._probe,
                    dropout=partial(self._dropout_keys, samples, number, shared),
                )
                self._draws = bool(self._draws) or found.drew
                done = found.losses, found.clip_into_(total, self.max_grad_norm)
            losses.append(done[0])
            norms.append(done[1])
        unwritten = None if self._graphs is None else self._graphs.unwritten()
        if unwritten is not None:
            self._arena.check_written(unwritten)
        return total, torch.cat(losses), torch.cat(norms)

    def _may_record(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
        """Whether a pass does the same for every batch of its shape; those seen so far drew nothing at random."""
        assert self._graphs is not None
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor):  # texts are padded no further than the longest so far
            self._graphs.longest = max(self._graphs.longest, mask.shape[-1])
        as_it_is = model is self.model and not is_compiled(model)
        return as_it_is and self._draws is False and self._probe.is_satisfied

    def _clipping(self, total: Tensor) -> Clipping:
        limit = torch.full((1, 1), self.max_grad_norm, dtype=torch.float64, device=self.device)
        columns = to_device(torch.tensor([0, total.shape[1]], dtype=torch.int32), self.device)
        return Clipping(limit, columns, "flat")

    def write(self, gradient: Tensor) -> None:
        """Puts the row ``[P]`` into ``.grad`` of the trained tensors."""
        for place in self.adapters.layout.places:
            parameter = self.adapters.layout.parameter(place)
            piece = gradient[place.columns].view(parameter.shape)
            parameter.grad = piece.to(parameter.dtype)

    def _noisy_mean(self, total: Tensor, number: int) -> Tensor:
        """The gradient as the step of an optimiser with learning rate -1 from zero."""
        std = self.ledger.noise_multiplier * sensitivity(self.max_grad_norm, self.ledger.dataset_size)
        noise_std, key = self.noise.before_step_(total, self._row(std), self.workers.leads)
        self.workers.add_up_(total)
        gradient = torch.zeros(total.shape, dtype=torch.float32, device=self.device)
        whole = torch.tensor([number], dtype=torch.int64, device=self.device)
        privatize_step_(
            gradient,
            total,
            client_id=torch.full_like(whole, self.ledger.client_id),
            step=whole,
            noise_std=noise_std,
            denominator=self._row(self.ledger.expected_batch),
            lr=self._row(-1.0),
            key=key,
            index=self.adapters.layout.parameter_index(self.device),
        )
        return gradient[0]

    def _look_again(self) -> None:
        """Checks a model that does not stand as it stood when it was last checked (thawed, cast, in another mode), and
        has its samples and gradients looked at anew.

        Raises:
            ValueError, SamplesNotIndependent, StorageParted: see ``check_model``.
        """
        standing = Standing.of(self.model, self.adapters)
        if standing != self._standing:
            self._standing = None  # until it is known to be sound
            check_model(self.model, self.adapters, self.device, private=True)
            self._probe = Probe(self.adapters, recomputes=self._recomputes)
            self._standing = standing
            self._draws = None if standing.drops_out else False
            if self._record is not None:
                parts = self.model, self.adapters, self.losses, self._arena, self._probe, self._record
                self._graphs = PassGraphs(*parts, longest=0)

    def _check_number(self, number: int) -> None:
        """Seeded noise of a step is used once: the difference of two gradients with the same noise shows the data.

        Raises:
            ValueError: the step was taken.
        """
        if number in self._taken and not isinstance(self.noise, SecureNoise):
            raise ValueError(
                f"step number={number} was taken before, and seeded noise would be the same; give every step another "
                "number"
            )

    def _check_apart(self, samples: Sequence[np.ndarray]) -> None:
        """A sample, or a user, that is there twice would move the sum by twice the norm; and processes that begin with
        other factors would add up gradients of other models.

        Raises:
            ValueError: names what is held twice, or is not of the data.
        """
        mine = np.concatenate([np.empty(0, dtype=np.int64), *samples])
        size = self.ledger.dataset_size if self._owners is None else len(self._owners)
        outside = mine[(mine < 0) | (mine >= size)]
        if len(outside):
            raise ValueError(
                f"sample {outside[0]} is not of the {size} that the ledger counts (dataset_size); number them from 0, "
                "or make a ledger for this data"
            )
        here, times = np.unique(mine, return_counts=True)
        if len(here) < len(mine):
            raise ValueError(
                f"sample {here[times.argmax()]} is {times.max()} times in the batches of a step, so that it could move "
                "the sum by more than max_grad_norm; give each sample that was drawn once"
            )
        if self.workers.size == 1:
            return
        if not self._is_compared:
            frozen = [
                value.detach().flatten()
                for layer in self.adapters.layers.values()
                for value in layer.factors().values()
            ]
            check_same_state(self.workers, torch.cat([self.adapters.state(), *frozen]))
            self._is_compared = True
        what = "sample"
        if self._users is not None:
            mine, what = np.unique(self._users[mine]), "user"
        held = np.concatenate(self.workers.gather(mine))
        once, times = np.unique(held, return_counts=True)
        if len(once) < len(held):
            raise ValueError(
                f"{what} {once[times.argmax()]} was given to more than one of {self.workers.size} processes, so that "
                "it could move the sum by more than max_grad_norm; let all draw alike (drawn_alike) and give each its "
                "own share: samples[workers.share(lengths)]"
            )

    def _dropout_keys(self, samples: np.ndarray, number: int, shared: int) -> DropoutKeys:
        client, step = np.full(len(samples), self.ledger.client_id), np.full(len(samples), number)
        return DropoutKeys.of(self.noise, client, step, samples, shared)

    def _row(self, value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64, device=self.device)


def _without_ddp(model: nn.Module) -> nn.Module:
    """What DistributedDataParallel wraps: the sums of clipped gradients are added up here, not by its hooks."""
    return model.module if isinstance(model, DistributedDataParallel) else model
