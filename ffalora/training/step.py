"""One logical step of a cohort: charge, draw, differentiate and clip each physical batch, add noise, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ffalora_kernels import privatize_step_

from ..privacy.clipping import per_layer_thresholds
from .admission import ledger_of
from .batches import grouped_batches, packed_batches, physical_batches
from .coordinates import ProductCoordinates, Whitening
from .detectors import UpdateWatch
from .drawn import drawn_users
from .dropout import DropoutKeys
from .gradients import Clipping, segment_gradients
from .graphs import PassGraphs
from .optim import Moments
from .participant import Participant
from .rates import column_units, given_rate
from .report import TrainingReport
from .results import StepResults, Unfinished, undone_where
from .setup import TrainingSetup
from .token_budget import pass_tokens
from .transfer import to_device
from .views import AS_IT_IS


class LogicalStep:
    """One logical step after another for one cohort, with its buffers.

    Args:
        setup: what is trained, and how.
        cohort: one participant a row of ``state``, float32 ``[C,P]``, which changes in place.
        anchor, mu, moments, mask: as in ``Engine.train``.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        cohort: Sequence[Participant],
        state: Tensor,
        anchor: Tensor | None,
        mu: float,
        moments: Moments,
        mask: Tensor | None,
    ):
        self.setup, self.cohort, self.state, self.anchor, self.mu = setup, cohort, state, anchor, mu
        self.moments, self.mask, self.watched, self.number = moments, mask, False, 0
        layout, device = setup.adapters.layout, setup.device
        self.total = torch.zeros(len(cohort), layout.width, dtype=torch.float64, device=device)
        self.index = layout.parameter_index(device)
        self.client_id = to_device(torch.tensor([p.client_id for p in cohort], dtype=torch.int64), device)
        self.lr = self._row([given_rate(setup.optimizer) if p.lr is None else p.lr for p in cohort])
        units = column_units(setup.adapters, setup.optimizer, cohort, setup.privacy.at_clients, setup.whitened)
        self.whitening = None
        if setup.whitened is not None:
            farthest = setup.longest_gradient * float(self.lr[0]) * units[0]
            self.whitening = Whitening.of(setup.adapters, cohort, farthest, setup.whitened, setup.workers)
        largest = units.max(1, keepdim=True).values  # the step's own, so that other columns keep a part of it
        self.lr *= to_device(largest[:, 0], device)
        self.units = None if bool((units == largest).all()) else to_device((units / largest).float(), device)
        starts, self.shares = setup.clipping_groups()
        self.by_tensor = starts == [place.start for place in layout.places]
        self.group_columns = to_device(torch.tensor([*starts, layout.width], dtype=torch.int32), device)
        self._take_clipping_norms()
        self.graphs: PassGraphs | None = None
        self.coordinates: ProductCoordinates | None = None
        self._unfinished: Unfinished | None = None

    def run(self, report: TrainingReport, index: Tensor, lr_factor: float, number: int = 0) -> None:
        """Takes one step and adds what happened to ``report``; ``index`` int64 ``[C]``, the cohort's rows there;
        ``number``: see ``first`` of ``Engine.train``.
        """
        setup, workers, self.number = self.setup, self.setup.workers, number
        if setup.privacy.at_clients:
            for ledger in sorted(map(ledger_of, self.cohort), key=lambda one: one.steps_left):
                ledger.charge(noise=setup.noise.mode)  # the poorest first: a refusal comes before anybody is charged
            if setup.charged is not None and workers.leads:
                setup.charged(self.cohort)
        drawn = [setup.sample(participant) for participant in self.cohort]
        results = self.passes(drawn, setup.token_budget or 1)
        self.finish()  # the step before, while the device is at this one
        if workers.size > 1 and results.unwritten is not None:
            results.read()  # a sum that misses a tensor must not reach the others
        with undone_where(results.unwritten, self.state, self.moments):
            watch = self._update([len(one) for one in drawn], lr_factor)
        self._unfinished = Unfinished(results, watch, report, index, self.limits)
        if any(participant.adaptive is not None for participant in self.cohort):
            self._adapt_clipping(self.finish(), results.rows)
        for participant in self.cohort:
            participant.steps_taken += 1

    def finish(self) -> Tensor:
        """Waits for the last step, whose report gets what happened in it: to be called where no other follows. Returns
        its norms before clipping, float64 ``[S]`` on the CPU, and none where no step is left.

        Raises:
            GradientMissing, UpdateLost: see ``Unfinished.finish``.
        """
        left, self._unfinished = self._unfinished, None
        return torch.empty(0, dtype=torch.float64) if left is None else left.finish()

    def passes(self, drawn: Sequence[np.ndarray], budget: int) -> StepResults:
        """Puts each participant's clipped sum, without noise, into its row of ``total``: where several processes work
        together, that of this process's share of the samples.

        Args:
            drawn: a participant's samples each, indices into the data; budget: most tokens in a physical batch.

        Returns:
            What became of the samples, of this process's share.
        """
        setup, workers = self.setup, self.setup.workers
        users = drawn_users(setup.privacy, setup.owners)
        row_of, samples = np.repeat(np.arange(len(drawn)), [len(one) for one in drawn]), np.concatenate(drawn)
        segments = row_of if users is None else users.segments(row_of, samples)
        if workers.size > 1:
            lengths = setup.data.lengths[samples]
            mine = workers.share(lengths) if users is None else users.share(lengths, segments, workers)
            row_of, samples, segments = row_of[mine], samples[mine], segments[mine]
        lengths = setup.views.count * setup.data.lengths[samples]
        most = setup.arena.most_rows if setup.privacy.at_clients else None
        if users is None:
            more = pass_tokens(setup.device)
            plan = (
                packed_batches(lengths, budget, most) if setup.packed else physical_batches(lengths, budget, most, more)
            )
        else:
            plan = grouped_batches(lengths, segments, budget, most, setup.packed)
        self.total.zero_()
        self.graphs = setup.graphs if setup.graphs is not None and setup.may_record else None
        if self.graphs is not None:
            self.graphs.forget_moved(setup.standing)
        self.coordinates = None if self.whitening is None else self.whitening.at(self.state[0])
        merged, shared = None, 0
        if setup.merge_weights and len(self.cohort) == 1 and not setup.adapters.config.dropout:
            merged = self._merged_weights()
        if self.graphs is None and setup.standing.drops_out:  # what is recorded draws none
            shared = workers.same_for_all(DropoutKeys.shared_by(setup.noise, self.number))
        most_passes = max(workers.gather(len(plan.batches))) if setup.is_sharded else 0
        found = []
        for batch in plan.batches:
            batch = batch[np.argsort(segments[batch], kind="stable")]
            found.append(self._accumulate(row_of[batch], samples[batch], segments[batch], merged, shared, self.total))
        for _ in range(most_passes - len(plan.batches)):
            self._keep_up(merged, shared)
        unwritten = None if self.graphs is None else self.graphs.unwritten()
        return StepResults.of(found, plan, setup.arena, unwritten)

    def _take_clipping_norms(self) -> None:
        """Clipping thresholds and noise of the next step, from each participant's policy or the configuration."""
        setup, groups = self.setup, len(self.group_columns) - 1
        norms = [p.clipping_norm(setup.privacy.max_grad_norm) for p in self.cohort]
        self.noise_std = self._row([p.noise_std(norm) for p, norm in zip(self.cohort, norms, strict=True)])
        self.norms = self._row(norms)
        is_private = setup.privacy.at_clients
        self.limits = torch.tensor(norms, dtype=torch.float64) if is_private else None
        limits = self.norms[:, None] if is_private else torch.full_like(self.norms, math.inf)[:, None]
        if is_private and groups > 1:
            limits = torch.stack([per_layer_thresholds(norm, self.shares) for norm in norms]).to(setup.device)
        mode = "automatic" if is_private and setup.privacy.clipping == "automatic" else "flat"
        self.clipping = Clipping(limits, self.group_columns, mode, self.by_tensor)

    @torch.no_grad()
    def _merged_weights(self) -> dict[str, Tensor]:
        """``w + scale · b a`` for this pass's one client, of every adapted layer that can take it in."""
        layers = self.setup.adapters.layers.items()
        weights = {name: layer.merged_weight(self.state[0]) for name, layer in layers}
        return {name: weight for name, weight in weights.items() if weight is not None}

    def _keep_up(self, merged: dict[str, Tensor] | None, shared: int) -> None:
        """A pass of the first sample whose gradient is thrown away: another process takes one more than this one has,
        and can compute with the base's layers only while all give their parts of them.
        """
        first = np.zeros(1, dtype=np.int64)
        self._accumulate(first, first, first, merged, shared, torch.zeros_like(self.total))

    def _accumulate(
        self,
        rows: np.ndarray,
        samples: np.ndarray,
        segments: np.ndarray,
        merged: dict[str, Tensor] | None,
        shared: int,
        total: Tensor,
    ) -> tuple[Tensor, Tensor, np.ndarray]:
        """One physical batch: gradients, clipped and added to the clients' sums ``total``. Returns losses ``[S]``,
        norms ``[S]`` (without privacy, those of the sums that the samples went into) and rows ``[S]``; where users are
        drawn, one a user.
        """
        setup = self.setup
        inputs, targets = setup.data.collate(samples)
        keys = partial(setup.dropout_keys, self.cohort, rows, samples, shared)
        if setup.views is not AS_IT_IS:
            inputs, targets = setup.views.of(inputs, targets, keys)
        if self.graphs is not None:
            apart = setup.keeps_samples_apart
            done = self.graphs.run(inputs, targets, rows, self.state, total, self.clipping, apart)
            if done is not None:
                return *done, rows
        found = segment_gradients(
            setup.model,
            setup.adapters,
            setup.losses,
            inputs,
            targets,
            state=self.state,
            rows=rows,
            together=None if setup.keeps_samples_apart else segments,
            arena=setup.arena,
            probe=setup.probe,
            dropout=keys,
            packed=setup.packed,
            merged=merged,
            views=setup.views.count,
            coordinates=self.coordinates,
        )
        norms = found.clip_into_(total, *self.clipping)
        if not setup.privacy.at_clients:
            norms = norms[np.unique(rows, return_inverse=True)[1]]
        if len(norms) == len(rows):
            return found.losses, norms, rows
        return found.mean_losses(segments), norms, rows[np.unique(segments, return_index=True)[1]]

    def _update(self, drawn: list[int], lr_factor: float) -> UpdateWatch | None:
        """Noise, division, optimiser: one pass over all states. Returns what looked at it, the first time."""
        setup, optimizer = self.setup, self.setup.optimizer
        lr = self.lr * lr_factor
        expected = [
            ledger_of(p).expected_batch if setup.privacy.at_clients else max(n, 1)
            for p, n in zip(self.cohort, drawn, strict=True)
        ]
        denominator = self._row(expected)
        if setup.privacy.at_clients and optimizer.normalize:
            denominator *= self.norms
        moved = self.state if self.coordinates is None else torch.zeros_like(self.state)
        before = None if self.units is None else moved.clone()
        steps = to_device(torch.tensor([p.steps_taken for p in self.cohort], dtype=torch.int64), setup.device)
        noise_std, key = self._add_noise(steps)
        setup.workers.add_up_(self.total)
        watch = None
        if sum(drawn) and not self.watched:
            fresh = self.moments.age == 0
            pulled = self.total if self.coordinates is None else self.coordinates.turned(self.total[0])[None]
            watch = UpdateWatch(setup.adapters, optimizer, self.state, pulled, denominator, lr, fresh, self.mask)
        self.moments.age += 1
        privatize_step_(
            moved,
            self.total,
            client_id=self.client_id,
            step=steps,
            noise_std=noise_std,
            denominator=denominator,
            lr=lr,
            key=key,
            optimizer=optimizer.name,
            exp_avg=self.moments.exp_avg,
            exp_avg_sq=self.moments.exp_avg_sq,
            age=self.moments.age,
            anchor=self.anchor,
            index=self.index,
            beta1=optimizer.beta1 if optimizer.name == "adamw" else optimizer.momentum,
            beta2=optimizer.beta2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            mu=self.mu,
            dp_bias_correction=optimizer.dp_bias_correction,
        )
        if before is not None:
            torch.lerp(before, moved, self.units, out=moved)
        if self.coordinates is not None:
            self.state += self.coordinates.turned(moved[0])
        if self.mask is not None:
            self.state *= self.mask
        if watch is not None:
            watch.look()
            self.watched = True
        return watch

    def _add_noise(self, steps: Tensor) -> tuple[Tensor, int]:
        """Adds the noise that ``privatize_step_`` does not draw, in the first process alone and before anything leaves
        it; returns the deviation and the key that ``privatize_step_`` is given.

        Args:
            steps: int64 ``[C]``, the clients' own.
        """
        setup, correlated = self.setup, [p.correlated for p in self.cohort if p.correlated is not None]
        if not setup.privacy.at_clients:
            return self.noise_std, 0
        if not correlated:
            return setup.noise.before_step_(self.total, self.noise_std, setup.workers.leads)
        normals = setup.noise.normals(self.total, self.client_id, steps, self.index)
        for row, noise in zip(normals, correlated, strict=True):
            noise.shape_(row)
        if setup.workers.leads:
            self.total.addcmul_(normals, self.noise_std[:, None])
        return -self.noise_std, 0

    def _adapt_clipping(self, norms: Tensor, rows: Tensor) -> None:
        """Moves the clipping norm of every participant that has a policy, by its own noisy count."""
        noise, workers, counts = self.setup.noise, self.setup.workers, self._row([0.0] * len(self.cohort))
        for row, participant in enumerate(self.cohort):
            if participant.adaptive is not None:  # a count is released once: its noise is in the first process's part
                normal = noise.normal(participant.client_id, participant.steps_taken) if workers.leads else 0.0
                counts[row] = participant.adaptive.noisy_count(norms[rows == row], normal)
        workers.add_up_(counts)
        for participant, count in zip(self.cohort, counts.tolist(), strict=True):
            if participant.adaptive is not None:
                participant.adaptive.move(count)
        self._take_clipping_norms()

    def _row(self, values: Sequence[float]) -> Tensor:
        return to_device(torch.tensor(values, dtype=torch.float64), self.setup.device)
