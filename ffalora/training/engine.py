"""The training loop of a cohort: sample, differentiate once, clip, add noise, step.

Every client of a cohort is one row of the state ``[C,P]``. A logical step draws each client's samples, passes them
through the model together, and updates all rows at once; without privacy the same loop runs with clipping and noise
switched off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ffalora_kernels import clip_reduce_, privatize_step_

from ..adapters import Adapters, TrainingPass
from ..config import OptimizerConfig, PrivacyConfig
from ..models.packing import check_packing, pack, packed_attention, packed_segments
from ..privacy.clipping import per_layer_thresholds, sensitivity
from ..privacy.noise import NoiseSource, SecureNoise, SeededNoise
from ..privacy.sampling import Draw, SeededDraw, shuffled_batches
from .admission import check_batch, check_batch_norm, check_cohort, check_draw, check_trained_tensors, ledger_of
from .arena import Arena
from .batches import packed_batches, physical_batches
from .detectors import UpdateWatch, check_attached, check_reads_state
from .optim import Moments
from .participant import Participant
from .probe import check_independence, check_losses, check_losses_independence
from .report import TrainingReport
from .token_budget import token_budget
from .workers import Workers, check_same_state


class Data(Protocol):
    """Samples by index. ``lengths [n]`` is each one's cost in tokens."""

    lengths: np.ndarray

    def collate(self, indices: Sequence[int] | np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Padded inputs of the model and targets ``[S, ...]``."""
        ...


@dataclass
class Engine:
    """Trains cohorts of clients on one model.

    Attributes:
        model: with adapters attached; its own parameters are neither read nor changed while training.
        adapters: their handle.
        data: the samples of all clients.
        losses: takes the model's output and targets, returns one loss a sample, ``[S]`` float32, from its own tokens
            only.
        optimizer, privacy: configuration.
        noise, draw: sources of noise and of Poisson samples.
        seed: of shuffled batches and dropout.
        token_budget: most tokens in one physical batch, padding included; None takes what suits model and memory.
        merge_weights: compute on ``w + scale · b a``, formed once a logical step, where a pass serves one client: the
            adapters then cost nothing in the forward pass. For float32 bases (bfloat16 would lose small updates).
        workers: the processes that share this client's steps; None trains alone. All call ``train`` alike.
        packed: lay samples end to end instead of padding them; for models that pool packed states by sample.
    """

    model: nn.Module
    adapters: Adapters
    data: Data
    losses: Callable[[Any, Tensor], Tensor]
    optimizer: OptimizerConfig
    privacy: PrivacyConfig
    noise: NoiseSource
    draw: Draw
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    token_budget: int | None = None
    merge_weights: bool = False
    packed: bool = False
    workers: Workers | None = None
    charged: Callable[[Sequence[Participant]], None] | None = None
    _counted: bool = False
    _packs: bool = False
    _probed: bool = False

    def __post_init__(self) -> None:
        if self.private and self.privacy.noise == "secure" and not isinstance(self.noise, SecureNoise):
            raise ValueError(
                "privacy.noise='secure' needs SecureNoise; seeded noise can be subtracted by whoever holds the seed"
            )
        if self.private and self.privacy.noise == "secure" and isinstance(self.draw, SeededDraw):
            raise ValueError("privacy.noise='secure' needs SystemDraw: with seeded sampling it is known who was drawn")
        self.check_model()
        self.arena = Arena(self.adapters, self.device)
        if self.token_budget is None:
            self.token_budget = token_budget(self.model, self.data, self.device)

    @property
    def private(self) -> bool:
        """Whether gradients are clipped and noised per sample."""
        return self.privacy.unit == "sample"

    def train(
        self,
        cohort: Sequence[Participant],
        state: Tensor,
        steps: int,
        anchor: Tensor | None = None,
        mu: float = 0.0,
        moments: Moments | None = None,
        lr_factors: Sequence[float] | None = None,
        mask: Tensor | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> TrainingReport:
        """``steps`` logical steps of every client of the cohort, from and into its row of ``state``.

        Args:
            cohort: one participant a row.
            state: float32 ``[C,P]``, changed in place.
            anchor: float32 ``[C,P]``, the point of the proximal term; mu: its strength (FedProx).
            moments: of the local optimiser, one row a client, changed in place; None starts from zero and forgets.
            lr_factors: what the learning rate is multiplied with in each step; None leaves it.
            mask: bool ``[C,P]``, columns that a client has (clients of a smaller rank lack some); the others stay zero.
            on_step: called after each logical step with its number.

        Raises:
            PrivacyBudgetSpent: a client may not take the steps; nothing was charged for the step that was refused.
            ValueError: something that ``admission`` refuses: a tensor outside the state, a ledger that does not fit, …
            GradientMissing: a trained tensor received no gradient.
            StorageParted, UpdateLost: what is trained is not what the model reads, or a step left it as it was.
            SamplesNotIndependent: the model or the loss mixes samples.
        """
        if len(cohort) != len(state):
            raise ValueError(f"state has {len(state)} rows for {len(cohort)} participants")
        if lr_factors is not None and len(lr_factors) != steps:
            raise ValueError(f"lr_factors has {len(lr_factors)} entries for steps={steps}")
        self.check_model()
        if self.workers is not None:
            check_same_state(self.workers, state)
        if self.private:
            check_cohort(cohort, self.privacy, isinstance(self.noise, SeededNoise))
        moments = moments or Moments.zeros(self.optimizer, len(cohort), state.shape[1], self.device)
        step = _LogicalStep(self, cohort, state, anchor, mu, moments, mask)
        report = TrainingReport.of(len(cohort))
        for number in range(steps):
            step.run(report, 1.0 if lr_factors is None else lr_factors[number])
            if on_step is not None:
                on_step(number)
        return report

    def check_model(self) -> None:
        """What is trained is protected, and is what the model reads. Called whenever training begins: models change."""
        check_attached(self.model, self.adapters, self.device)
        check_trained_tensors(self.model, self.adapters, self.private)
        if self.private:
            check_batch_norm(self.model)
            if self.privacy.sampling == "poisson":
                check_draw(self.draw)

    def probe(self, inputs: Mapping[str, Tensor], targets: Tensor) -> None:
        """Finds layers that are used repeatedly, and checks that samples are independent: once, on the first batch that
        can tell.
        """
        if not self._counted:
            self.adapters.count_uses(inputs)
            self._counted = True
        if self.packed and not self._packs:
            self._packs = check_packing(self.model, inputs, lambda output: output.logits)
        if self.private and not self._probed and check_independence(self.model, inputs, lambda output: output.logits):
            with torch.no_grad():
                logits = self.model(**inputs).logits
            check_losses_independence(self.losses, logits, targets)
            self._probed = True

    def sample(self, participant: Participant) -> np.ndarray:
        """Indices (into the engine's data) of the participant's next logical batch."""
        n = len(participant.samples)
        if participant.ledger is not None and self.privacy.sampling == "poisson":
            drawn = self.draw(participant.client_id, participant.steps_taken, n, participant.ledger.sample_rate)
        else:
            size = min(self.optimizer.batch_size, n)
            drawn = shuffled_batches(self.seed, participant.client_id, participant.steps_taken, n, size)
        return participant.samples[drawn]


class _LogicalStep:
    """One logical step after another for one cohort, with its buffers."""

    def __init__(
        self, engine: Engine, cohort: Sequence[Participant], state: Tensor, anchor: Tensor | None, mu: float,
        moments: Moments, mask: Tensor | None,
    ):  # fmt: skip
        self.engine, self.cohort, self.state, self.anchor, self.mu = engine, cohort, state, anchor, mu
        self.moments, self.mask, self.watched, self.physical = moments, mask, False, 0
        self.layout = engine.adapters.layout
        device, c = engine.device, len(cohort)
        optimizer, privacy = engine.optimizer, engine.privacy
        self.total = torch.zeros(c, self.layout.width, dtype=torch.float64, device=device)
        index = self.layout.parameter_index()
        self.index = None if index is None else index.to(device)
        self.client_id = torch.tensor([p.client_id for p in cohort], dtype=torch.int64, device=device)
        self.lr = _row([optimizer.lr if p.lr is None else p.lr for p in cohort], device)
        self.group_columns = torch.tensor([0, self.layout.width], dtype=torch.int32, device=device)
        if engine.private and privacy.clipping == "per-layer":
            starts = [place.start for place in self.layout.places]
            self.group_columns = torch.tensor([*starts, self.layout.width], dtype=torch.int32, device=device)
        self._take_clipping_norms()

    def _take_clipping_norms(self) -> None:
        """Clipping thresholds and noise of the next step, from each participant's policy or the configuration."""
        engine, groups = self.engine, len(self.group_columns) - 1
        norms = [_max_grad_norm(p, engine.privacy) for p in self.cohort]
        limits = [per_layer_thresholds(n, [1.0] * groups) if groups > 1 else torch.tensor([n]).double() for n in norms]
        self.noise_std = _row([_noise_std(p, n) for p, n in zip(self.cohort, norms, strict=True)], engine.device)
        self.max_grad_norm = torch.stack(limits).to(engine.device)
        if not engine.private:
            self.max_grad_norm.fill_(math.inf)

    def run(self, report: TrainingReport, lr_factor: float) -> None:
        engine = self.engine
        if engine.private:
            for ledger in sorted(map(ledger_of, self.cohort), key=lambda one: one.steps_left):
                ledger.charge()  # the poorest first: a refusal comes before anybody is charged
            if engine.charged is not None and (engine.workers is None or engine.workers.rank == 0):
                engine.charged(self.cohort)
        drawn, workers = [engine.sample(participant) for participant in self.cohort], engine.workers
        budget = engine.token_budget or 1
        if workers is not None:  # their free memory, and so the budget, may differ
            drawn, [[budget]] = (workers.same_for_all(each) for each in (drawn, [np.array([budget])]))
        row_of = np.repeat(np.arange(len(drawn)), [len(d) for d in drawn])
        samples = np.concatenate(drawn)
        most = engine.arena.most_rows if engine.private else None
        cut = packed_batches if engine.packed else physical_batches
        plan = cut(engine.data.lengths[samples], int(budget), max_samples=most)
        self.total.zero_()
        merged = self._merged_weights()
        losses, norms, rows = [], [torch.empty(0, dtype=torch.float64)], [np.empty(0, dtype=np.int64)]
        for number, batch in enumerate(plan.batches):
            batch = batch if workers is None else workers.share(batch)
            if not len(batch):
                continue
            batch = batch[np.argsort(row_of[batch], kind="stable")]
            self.physical = number
            loss, norm = self._accumulate(row_of[batch], samples[batch], merged)
            losses.append(loss)
            norms.append(norm.cpu())
            rows.append(row_of[batch])
        if workers is not None:
            workers.add_up_(self.total)
            losses, norms, rows = workers.gather(losses, norms, rows)
        self._update([len(d) for d in drawn], lr_factor)
        self._describe(report, losses, torch.cat(norms), np.concatenate(rows))
        self._adapt_clipping(torch.cat(norms), np.concatenate(rows))
        for participant in self.cohort:
            participant.steps_taken += 1
        report.samples_by_row += torch.tensor([len(d) for d in drawn])
        report.tokens += plan.tokens
        report.padded_tokens += plan.padded_tokens

    def _seed_dropout(self) -> None:
        """Dropout masks are a function of run, first client, step and physical batch: a resumed run draws them
        again.
        """
        first = self.cohort[0]
        words = np.random.SeedSequence([self.engine.seed, first.client_id, first.steps_taken, self.physical])
        seed = int(words.generate_state(1, np.uint64)[0] >> 1)
        torch.default_generator.manual_seed(seed)
        if self.engine.device.type == "cuda":  # torch.manual_seed would write down the stack where there is no GPU
            torch.cuda.manual_seed(seed)

    @torch.no_grad()
    def _merged_weights(self) -> dict[str, Tensor] | None:
        """``w + scale · b a`` of every adapted layer for this pass's one client, or None where weights stay apart."""
        if not self.engine.merge_weights or len(self.cohort) != 1 or self.engine.adapters.config.dropout:
            return None
        weights = {name: layer.merged_weight(self.state[0]) for name, layer in self.engine.adapters.layers.items()}
        return {name: weight for name, weight in weights.items() if weight is not None}

    def _accumulate(
        self, rows: np.ndarray, samples: np.ndarray, merged: dict[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """One physical batch: forward, backward, clip, add to the clients' sums. Returns losses ``[S]`` and norms
        ``[S]``: without privacy, those of the sums that the samples went into.
        """
        engine = self.engine
        inputs, targets = engine.data.collate(samples)
        check_batch(inputs, targets, len(samples))
        inputs = {name: value.to(engine.device) for name, value in inputs.items()}
        targets = targets.to(engine.device)
        engine.probe(inputs, targets)
        if engine.private:
            client, counts = rows, np.ones(len(rows), dtype=np.int64)
        else:
            client, counts = np.unique(rows, return_counts=True)
        gradients, squares = engine.arena.rows(len(client))
        current = TrainingPass(
            state=self.state,
            arena=gradients,
            squares=squares,
            client=torch.as_tensor(client, dtype=torch.int32).to(engine.device),
            sample_offsets=torch.as_tensor(np.concatenate([[0], np.cumsum(counts)]), dtype=torch.int32).to(
                engine.device
            ),
            samples=len(samples),
            longest=int(counts.max()),
            merged=merged,
        )
        check_reads_state(current, self.state)
        attention: AbstractContextManager = nullcontext()
        if engine.packed:
            inputs = pack(inputs)
            current.packed = packed_segments(inputs, current)
            attention = packed_attention(engine.model)
        self._seed_dropout()
        with engine.adapters.training_pass(current), engine.adapters.dropping_out(), attention:
            losses = engine.losses(engine.model(**inputs), targets)
            check_losses(losses, len(samples))
            losses.sum().backward()
        engine.arena.check_written(squares)
        groups = self.max_grad_norm.shape[1]
        _, norms = clip_reduce_(
            self.total,
            gradients,
            current.client,
            self.max_grad_norm,
            self.group_columns,
            squares=squares if groups > 1 else squares.sum(1, keepdim=True),
            mode="automatic" if engine.private and engine.privacy.clipping == "automatic" else "flat",
        )
        norms = norms.square().sum(1).sqrt()
        if not engine.private:
            norms = norms.cpu().repeat_interleave(torch.as_tensor(counts))
        return losses.detach(), norms

    def _update(self, drawn: list[int], lr_factor: float) -> None:
        """Noise, division, optimiser: one pass over the state of all clients."""
        engine, optimizer = self.engine, self.engine.optimizer
        noise_std, key, lr = self.noise_std, 0, self.lr * lr_factor
        expected = [
            ledger_of(p).sample_rate * len(p.samples) if engine.private else max(n, 1)
            for p, n in zip(self.cohort, drawn, strict=True)
        ]
        denominator = _row(expected, engine.device)
        watch = None
        if sum(drawn) and not self.watched:
            fresh = self.moments.age == 0
            watch = UpdateWatch(engine.adapters, optimizer, self.state, self.total, denominator, lr, fresh, self.mask)
        if isinstance(engine.noise, SeededNoise):
            key = engine.noise.key
        elif engine.private:
            engine.noise.add_(self.total, noise_std)
            if engine.workers is not None:
                engine.workers.take_first_(self.total)
            noise_std = torch.zeros_like(noise_std)
        steps = torch.tensor([p.steps_taken for p in self.cohort], dtype=torch.int64, device=engine.device)
        self.moments.age += 1
        privatize_step_(
            self.state,
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
        if self.mask is not None:
            self.state *= self.mask
        if watch is not None:
            watch.check()
            self.watched = True

    def _adapt_clipping(self, norms: Tensor, rows: np.ndarray) -> None:
        """Moves the clipping norm of every participant that has a policy, by its own noisy count."""
        if all(p.adaptive is None for p in self.cohort):
            return
        for row, participant in enumerate(self.cohort):
            if participant.adaptive is not None:
                normal = self.engine.noise.normal(participant.client_id, participant.steps_taken)
                participant.adaptive.update(norms[torch.from_numpy(rows == row)], normal)
        self._take_clipping_norms()

    def _describe(self, report: TrainingReport, losses: list[Tensor], norms: Tensor, rows: np.ndarray) -> None:
        """The last step's losses and norms, against the clipping norms that it used."""
        report.rows = torch.from_numpy(rows)
        report.nonfinite_by_row += torch.bincount(report.rows[~norms.isfinite()], minlength=len(self.cohort))
        report.losses = torch.cat([torch.empty(0), *(loss.cpu() for loss in losses)]).double()
        if self.engine.private:
            limits = torch.tensor([_max_grad_norm(p, self.engine.privacy) for p in self.cohort]).double()
            report.norms, report.above = norms, norms > limits[report.rows]


def _noise_std(participant: Participant, max_grad_norm: float) -> float:
    """σ·C(1+η): the noise hides what one sample can change in the sum as it is computed."""
    ledger, adaptive = participant.ledger, participant.adaptive
    if ledger is None:
        return 0.0
    sigma = adaptive.sum_noise_multiplier if adaptive is not None else ledger.noise_multiplier
    return sigma * sensitivity(max_grad_norm, ledger.dataset_size)


def _max_grad_norm(participant: Participant, privacy: PrivacyConfig) -> float:
    """C of the participant's next step: its policy's, its own, or the configuration's."""
    if participant.adaptive is not None:
        return participant.adaptive.max_grad_norm
    return privacy.max_grad_norm if participant.max_grad_norm is None else participant.max_grad_norm


def _row(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
