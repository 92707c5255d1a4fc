"""What one record moves the clipped sum by: the mechanism on one's own model and data, before its noise.

Clipping promises ``‖Σ(D) - Σ(D - x)‖ ≤ C`` for every batch D and every record x of it, and, where users are protected,
for all samples x of a user (k·C where up to k of them are drawn and clipped apart). Both sums are computed by the
path that trains (collator, dropout, physical batches, clipping), with the same randomness of dropout, and subtracted.
Whatever ties samples together shows: masks by position, a collator or a loss that looks at the batch, clipping that
does not clip. What is found is computed on private data without noise.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..data.users import Owners
from ..privacy.noise import SeededNoise
from ..privacy.sampling import SystemDraw
from .admission import check_cohort, ledger_of
from .optim import Moments
from .participant import Participant
from .plain import is_exact
from .private_gradient import Batches, PrivateGradient
from .probe import Probe
from .rates import given_rate
from .setup import TrainingSetup
from .step import LogicalStep

#: Most that a record may move the sum by, in units of C: in float32, and with a narrower base, where the shape of the
#: batch may round what the m others contribute: by a share ρ of C each, in directions of their own, so that all is
#: √(1 + m·ρ²). A hundred roundings of bfloat16, 2⁻⁸/√3 each at random, make ρ = 2.3%, and 200 others 1.05.
FLOAT32_LIMIT, NARROW_LIMIT = 1.0001, 1.05
SETTINGS = ("start", "moved", "clipped")


@dataclass(frozen=True)
class Move:
    """One record left out of one batch.

    Attributes:
        record: its index in the data, or a user's number; chosen: why it was taken ('longest', 'random', …).
        batch: samples in the batch, with it.
        setting: 'start' is where training starts, 'moved' what noise alone makes of it, 'clipped' the same with a C
            below all gradients: where C is large, clipping would go untried.
        ratio: ``‖Σ(D) - Σ(D - x)‖ / C``, or of k·C.
    """

    record: int
    chosen: str
    batch: int
    setting: str
    ratio: float


@dataclass(frozen=True)
class Sensitivity:
    """What a probe found; computed on private data without noise: for the owner of the data alone.

    Attributes:
        moves: every record that was left out; limit: the most that is allowed, in units of C.
        unit: what a record is: a 'sample', or a 'user' or a 'client' with all its data.
    """

    moves: tuple[Move, ...]
    limit: float = FLOAT32_LIMIT
    unit: str = "sample"

    @property
    def largest(self) -> Move:
        """The record that moved the sum most."""
        return max(self.moves, key=lambda move: move.ratio)

    @property
    def holds(self) -> bool:
        """No record moved the sum by more than clipping allows."""
        return all(move.ratio <= self.limit for move in self.moves)

    def __str__(self) -> str:
        worst: dict[str, float] = {}
        for move in self.moves:
            worst[move.chosen] = max(move.ratio, worst.get(move.chosen, 0.0))
        parts = ", ".join(f"{name} {ratio:.6f}" for name, ratio in worst.items())
        verdict = "holds" if self.holds else f"BROKEN (number {self.largest.record})"
        return (
            f"one {self.unit} moves the clipped sum by at most {self.largest.ratio:.6f} C (limit {self.limit:g}), in "
            f"{len(self.moves)} pairs of batches: {verdict}\n  {parts}\n"
            "  computed on private data without noise: for the owner of the data alone; nothing was released or charged"
        )


def without_sample(batch: np.ndarray, sample: int) -> np.ndarray:
    """The batch without one sample."""
    return batch[batch != sample]


class Units:
    """What a participant's ledger protects: samples, or users with all of theirs (a step may draw something else: see
    ``drawn``).

    Attributes:
        owners: whose each sample is, where users are protected; None where samples are.
        group: most samples of one unit that are drawn and clipped apart.
    """

    def __init__(self, setup: TrainingSetup, participant: Participant):
        self.samples, self._most = participant.samples, setup.privacy.samples_per_user
        self.owners = setup.owners if setup.privacy.unit == "user" else None
        self.group = 1 if self.owners is None else ledger_of(participant).group
        self._whose = None if self.owners is None else self.owners.select(self.samples)

    def in_batch(self, batch: np.ndarray) -> np.ndarray:
        """The units that a batch holds."""
        return batch if self.owners is None else np.unique(self.owners.select(batch).users)

    def without(self, batch: np.ndarray, unit: int) -> np.ndarray:
        """The batch without one of them."""
        if self.owners is None:
            return without_sample(batch, unit)
        return batch[~_owned(self.owners.select(batch), unit)]

    def of(self, unit: int) -> np.ndarray:
        """Samples of a unit that a step may draw together."""
        return np.array([unit]) if self._whose is None else self.samples[_owned(self._whose, unit)][: self._most]


def _owned(whose: Owners, user: int) -> np.ndarray:
    """bool, by record: whether the user is among its owners."""
    return np.add.reduceat(np.append(whose.users == user, False).astype(np.int64), whose.starts[:-1]) > 0


def moves(
    clipped_sum: Callable[[np.ndarray], Tensor],
    batch: np.ndarray,
    chosen: Mapping[int, str],
    setting: str,
    without: Callable[[np.ndarray, int], np.ndarray] = without_sample,
) -> list[Move]:
    """Leaves one record after another out of a batch.

    Args:
        clipped_sum: takes indices of samples, returns their clipped sum in units of C, float64; the same every time.
        batch: indices; chosen: which of them, or whose, are left out, and why.
        without: the batch without one of the chosen.
    """
    whole, found = clipped_sum(batch).clone(), []
    for record, why in chosen.items():
        difference = whole - clipped_sum(without(batch, record))
        found.append(Move(record, why, len(batch), setting, float(difference.norm())))
    return found


def extremes(samples: np.ndarray, lengths: np.ndarray, labels: np.ndarray | None) -> dict[int, str]:
    """The longest and the shortest of some samples, and one of the rarest class where there are several.

    Args:
        samples: indices; lengths, labels: ``[len(samples)]``, theirs.
    """
    found = {int(samples[np.argmax(lengths)]): "longest", int(samples[np.argmin(lengths)]): "shortest"}
    if labels is not None and np.issubdtype(labels.dtype, np.integer):
        classes, first, counts = np.unique(labels, return_index=True, return_counts=True)
        if len(classes) > 1:
            found.setdefault(int(samples[first[np.argmin(counts)]]), "rarest label")
    return found


def secret_noise() -> SeededNoise:
    """A key that is drawn afresh and forgotten, so that both sums of a pair see the same dropout."""
    return SeededNoise(int.from_bytes(os.urandom(8), "little", signed=True))


def probe_sensitivity(
    setup: TrainingSetup, cohort: Sequence[Participant], state: Tensor, records: int = 6
) -> Sensitivity:
    """Leaves records out of logical batches that are drawn, cut, laid out, differentiated and clipped as in training.

    Args:
        setup: an engine, say; it is not changed, and nobody is charged.
        cohort: who trains together; a record of each in turn is left out, and must move no other's sum.
        state: float32 ``[C,P]``, where training starts.
        records: random records left out of a batch, beside the longest, the shortest, one of the rarest label and the
            one whose gradient is largest. Users are left out where they are protected.

    Raises:
        ValueError, SamplesNotIndependent: whatever training itself refuses.
    """
    if not setup.privacy.at_clients or setup.workers.size > 1:
        raise ValueError("the sensitivity of a step is probed where samples are protected, by one process")
    setup.check_model()
    check_cohort(cohort, setup.privacy, seeded=False, owners=setup.owners)
    probing = copy.copy(setup)
    probing.noise, probing.charged = secret_noise(), None
    probing.probe = Probe(setup.adapters, packed=setup.packed)
    moved, found = moved_by_noise(setup, cohort, state), []
    for setting in SETTINGS:
        here = state.clone() if setting == "start" else moved
        step = _step(probing, cohort, here)
        for row in range(len(cohort)):
            units = Units(setup, cohort[row])
            batch, chosen, norms = _choose(step, row, records, units)
            tried = step
            if setting == "clipped":
                tight = [dataclasses.replace(p, max_grad_norm=tight_norm(norms), adaptive=None) for p in cohort]
                tried = _step(probing, tight, here)
            found += moves(_sums(tried, row, units.group), batch, chosen, setting, units.without)
    return Sensitivity(tuple(found), limit_of(setup.model, setup.device), setup.privacy.unit)


def _step(setup: TrainingSetup, cohort: Sequence[Participant], state: Tensor) -> LogicalStep:
    moments = Moments.zeros(setup.optimizer, len(state), state.shape[1], setup.device)
    return LogicalStep(setup, cohort, state, None, 0.0, moments, None)


def _sums(step: LogicalStep, row: int, group: int) -> Callable[[np.ndarray], Tensor]:
    """The clipped sums of a cohort in which this participant has some samples and the others a batch that stays."""
    drawn = [step.setup.sample(participant) for participant in step.cohort]

    def clipped_sums(samples: np.ndarray) -> Tensor:
        step.passes([*drawn[:row], samples, *drawn[row + 1 :]], int(step.setup.token_budget or 1)).read()
        return step.total / (group * step.norms[:, None])

    return clipped_sums


def _choose(step: LogicalStep, row: int, records: int, units: Units) -> tuple[np.ndarray, dict[int, str], Tensor]:
    """A batch of this participant, which of it is left out, and the norms before clipping."""
    setup, samples = step.setup, step.cohort[row].samples
    labels, lengths, everyone = getattr(setup.data, "labels", None), setup.data.lengths, units.in_batch(samples)
    if units.owners is None:
        chosen = extremes(samples, lengths[samples], None if labels is None else labels[samples])
    else:
        chosen = extremes(everyone, np.array([lengths[units.of(user)].sum() for user in everyone.tolist()]), None)
    batch = setup.sample(step.cohort[row])
    for unit in chosen:  # what a step may draw together, and no more
        batch = np.union1d(units.without(batch, unit), units.of(unit))
    batch = batch.astype(np.int64)
    nothing = [np.empty(0, dtype=np.int64)] * len(step.cohort)
    results = step.passes([*nothing[:row], batch, *nothing[row + 1 :]], int(setup.token_budget or 1))
    _, norms = results.read()
    largest = int(norms.nan_to_num(0.0, 0.0).argmax())
    clipped = [
        batch[part][:, None] if setup.keeps_samples_apart else units.in_batch(batch[part])
        for part in results.plan.batches
    ]
    of_largest = np.concatenate(clipped)[largest]
    chosen.setdefault(int(units.in_batch(of_largest)[0] if setup.keeps_samples_apart else of_largest), "largest norm")
    return batch, with_random(chosen, units.in_batch(batch), records), norms


def with_random(chosen: Mapping[int, str], batch: np.ndarray, records: int) -> dict[int, str]:
    """``chosen`` and some random records of the batch."""
    drawn = np.random.default_rng().choice(batch, min(records, len(batch)), replace=False)
    return dict(chosen) | {record: "random" for record in drawn.tolist() if record not in chosen}


def tight_norm(norms: Tensor) -> float:
    """A clipping norm that nearly every gradient exceeds."""
    sizes = norms[norms.isfinite() & (norms > 0)]
    return 0.1 * float(sizes.median()) if len(sizes) else 1.0


def limit_of(model: nn.Module, device: torch.device) -> float:
    """The most that is allowed, in units of C, by the precision that ``model`` computes in."""
    return FLOAT32_LIMIT if is_exact(model, device) else NARROW_LIMIT


def probe_gradient(
    private: PrivateGradient,
    physical: Callable[[np.ndarray], Batches],
    chosen: Mapping[int, str],
    records: int,
    lr: float,
    limit: float,
) -> Sensitivity:
    """As :func:`probe_sensitivity`, for a training loop that brings its own optimiser; changes the model's parameters
    and the clipping norm of ``private``.

    Args:
        private: with :func:`secret_noise`; its ledger is read, not charged.
        physical: a logical batch, indices, as the loop cuts and collates it.
        chosen: records to leave out, and why; records: random ones beside them.
        lr: of the loop's optimiser; limit: the most that is allowed, in units of C.
    """
    ledger, adapters, draw, found = private.ledger, private.adapters, SystemDraw(), []
    std = ledger.noise_multiplier * private.max_grad_norm / ledger.expected_batch

    def clipped_sum(samples: np.ndarray) -> Tensor:
        return private.clipped_sum(0, physical(samples))[0] / private.max_grad_norm

    for number, setting in enumerate(SETTINGS):
        batch = draw(0, number, ledger.dataset_size, ledger.sample_rate)
        batch = np.union1d(batch, list(chosen)).astype(np.int64)
        if setting == "moved":
            noise = torch.randn(adapters.layout.width, device=private.device)
            adapters.load_state_(adapters.state() + 0.5 * lr * std * ledger.max_steps**0.5 * noise)
        if setting == "clipped":
            private.max_grad_norm = tight_norm(private.clipped_sum(0, physical(batch))[2])
        found += moves(clipped_sum, batch, with_random(chosen, batch, records), setting)
    return Sensitivity(tuple(found), limit)


def moved_by_noise(setup: TrainingSetup, cohort: Sequence[Participant], state: Tensor) -> Tensor:
    """A state as far from ``state`` as half the noise of all steps brings it, float32 ``[C,P]``."""
    optimizer, moved = setup.optimizer, state.clone()
    for row, participant in enumerate(cohort):
        ledger = ledger_of(participant)
        lr = given_rate(optimizer) if participant.lr is None else participant.lr
        limit = participant.clipping_norm(setup.privacy.max_grad_norm)
        std = participant.noise_std(limit) / (limit if optimizer.normalize else 1.0)
        size = lr if optimizer.name == "adamw" else lr * std / ledger.expected_batch
        moved[row] += 0.5 * size * ledger.max_steps**0.5 * torch.randn_like(moved[row])
    index = setup.adapters.layout.parameter_index(moved.device)
    return moved if index is None else moved * (index >= 0)
