"""What a private or plain training is made of, and what is checked before it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import Adapters
from ..adapters.targets import is_compiled
from ..config import OptimizerConfig, PrivacyConfig
from ..data.tasks import Losses
from ..data.users import Owners
from ..privacy.correlation import records_of_turn
from ..privacy.noise import NoiseSource, SecureNoise
from ..privacy.sampling import Draw, SeededDraw, SystemDraw, shuffled_batches
from .admission import check_model
from .arena import Arena
from .batches import physical_batches
from .detectors import Standing
from .drawn import drawn_users
from .dropout import DropoutKeys
from .freed_memory import keep_freed_memory
from .gradients import look_at
from .graphs import PassGraphs
from .padding import check_length, longest_apart
from .participant import Participant
from .probe import Probe
from .recorder import CudaRecorder
from .token_budget import token_budget
from .views import AS_IT_IS, Views
from .workers import ALONE, Workers


class Data(Protocol):
    """Samples by index. ``lengths [n]`` is each one's cost in tokens."""

    lengths: np.ndarray

    def collate(self, indices: Sequence[int] | np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Padded inputs of the model and targets ``[S, ...]``."""
        ...


@dataclass
class TrainingSetup:
    """One model, its data, and how cohorts of clients train on it.

    Attributes:
        model: with adapters attached; its own parameters stay as they are while training.
        adapters: their handle.
        data: the samples of all clients.
        losses: takes the model's output and targets, returns one loss a sample, ``[S]`` float32, from its own tokens
            only.
        optimizer, privacy: configuration.
        owners: whose each sample is; needed where users are protected.
        noise, draw: sources of noise and of Poisson samples.
        seed: of shuffled batches.
        token_budget: most tokens in one physical batch, padding included; None takes what suits model and memory.
        merge_weights: compute on ``w + scale · b a``, formed once a logical step, where a pass serves one client: the
            adapters then cost nothing in the forward pass. For float32 bases (bfloat16 would lose small updates).
        charged: called with the cohort once a step has been charged, before its noisy result exists.
        workers: the processes that share each step, by default this one alone. All call ``train`` alike. They may each
            hold a part of the frozen base (``fully_shard``): all then take part in every pass.
        packed: lay samples end to end instead of padding them; for language models, and those that pool packed states
            by sample.
        views: what passes in a sample's place while training; its views' mean gradient is that of the sample.
        whitened: both factors are trained, in coordinates of their product (see ``coordinates``), one client a pass;
            the number of steps of the run, of all rounds. None: the trained numbers are clipped as they are.
        cuda_graphs: on a GPU, record the passes of steps and replay them (see ``graphs``), where that can be.
    """

    model: nn.Module
    adapters: Adapters
    data: Data
    losses: Losses
    optimizer: OptimizerConfig
    privacy: PrivacyConfig
    noise: NoiseSource
    draw: Draw
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    token_budget: int | None = None
    merge_weights: bool = False
    packed: bool = False
    whitened: int | None = None
    cuda_graphs: bool = True
    workers: Workers = ALONE
    charged: Callable[[Sequence[Participant]], None] | None = None
    owners: Owners | None = None
    views: Views = AS_IT_IS
    is_sharded: bool = field(default=False, init=False)
    _checked: tuple[Standing, tuple] | None = field(default=None, init=False)
    _longest_apart: tuple[str, str, int] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        is_private = self.privacy.at_clients
        if is_private and self.privacy.noise == "secure" and not isinstance(self.noise, SecureNoise):
            raise ValueError(
                "privacy.noise='secure' needs SecureNoise; seeded noise can be subtracted by whoever holds the seed"
            )
        if is_private and self.privacy.noise == "secure" and isinstance(self.draw, SeededDraw):
            raise ValueError("privacy.noise='secure' needs SystemDraw: with seeded sampling it is known who was drawn")
        self.check_model()
        if self.device.type == "cpu":
            keep_freed_memory()
        self.arena = Arena(self.adapters, self.device)
        self.probe = Probe(self.adapters, is_private, self.packed, self.privacy.check_gradients)
        self.probe.padding.has_told = self.is_sharded  # a pass that one process makes alone would wait for the others
        self.graphs = None
        if self.cuda_graphs and self.device.type == "cuda" and not self.is_sharded and self.whitened is None:
            record = CudaRecorder(self.device)
            longest = int(self.data.lengths.max(initial=0))
            self.graphs = PassGraphs(self.model, self.adapters, self.losses, self.arena, self.probe, record, longest)
        if self.token_budget is None:
            self.token_budget = token_budget(self.model, self.data, self.device)

    @property
    def longest_gradient(self) -> float:
        """The length that a clipped gradient has at most as steps take it; 1 where nothing is clipped."""
        is_in_units = self.optimizer.normalize or not self.privacy.at_clients
        return 1.0 if is_in_units else self.privacy.max_grad_norm

    @property
    def keeps_samples_apart(self) -> bool:
        """Whether every sample's gradient is clipped by itself."""
        return self.privacy.at_clients and not self.privacy.draws_users

    def check_model(self) -> None:
        """What is trained is protected, and is what the model reads. Called whenever training begins: models change.
        One that stands as it stood when it was last looked at is not looked at again.
        """
        privacy, found = self.privacy, Standing.of(self.model, self.adapters)
        asked = self.device, privacy.at_clients, self.workers.size
        if (found, asked) != self._checked:
            self._checked = None  # until it is known to be sound
            self.is_sharded = check_model(self.model, self.adapters, *asked)
            self._longest_apart = longest_apart(self.model)
            self._checked = found, asked
        is_known = isinstance(self.draw, SeededDraw | SystemDraw)
        if privacy.at_clients and privacy.sampling == "poisson" and not is_known:
            raise ValueError(
                f"draw is a {type(self.draw).__name__}, which is not known to be Poisson sampling (SeededDraw, "
                "SystemDraw); set privacy.sampling='shuffled' for ε without amplification"
            )

    @property
    def standing(self) -> Standing:
        """How the model stood when training began."""
        assert self._checked is not None, "check_model comes first"
        return self._checked[0]

    @property
    def may_record(self) -> bool:
        """Whether a pass does the same for every batch of one shape: samples are single rows, nothing drops out, is
        compiled or merged, and the probe has seen what it wanted to see.
        """
        privacy = self.privacy
        plain = self.views.count == 1 and not (privacy.at_clients and privacy.draws_users)
        plain = plain and not (self.packed or self.merge_weights or is_compiled(self.model))
        return plain and not self.standing.drops_out and self.probe.is_satisfied

    def sample(self, participant: Participant) -> np.ndarray:
        """Indices (into the engine's data) of the participant's next logical batch."""
        client, step, ledger = participant.client_id, participant.steps_taken, participant.ledger
        own, users = participant.samples, drawn_users(self.privacy, self.owners)
        n = len(own) if users is None else users.count(own)
        if ledger is not None and ledger.correlation is not None:
            turns = ledger.correlation.separation
            group = records_of_turn(self.seed, client, step, n, turns)
            drawn = group[self.draw(client, step, len(group), min(1.0, ledger.sample_rate * turns))]
        elif ledger is not None and self.privacy.sampling == "poisson":
            drawn = self.draw(client, step, n, ledger.sample_rate)
        else:
            drawn = shuffled_batches(self.seed, client, step, n, min(self.optimizer.batch, n))
        return own[drawn] if users is None else users.records(own, drawn, partial(self.draw.some, client, step))

    def dropout_keys(
        self, cohort: Sequence[Participant], rows: np.ndarray, samples: np.ndarray, shared: int = 0
    ) -> DropoutKeys:
        """What the dropout masks of a batch, and its views, are made from: a key a view, those of a sample together.

        Args:
            cohort: who trains; rows: ``[S]``, whose each sample is; samples: int64 ``[S]``, their indices.
            shared: of all batches of a logical step (``DropoutKeys.shared_by``).
        """
        rows, view = np.repeat(rows, self.views.count), np.tile(np.arange(self.views.count), len(rows))
        client, step = (np.array([getattr(p, name) for p in cohort])[rows] for name in ("client_id", "steps_taken"))
        return DropoutKeys.of(self.noise, client, step, np.repeat(samples, self.views.count), shared, view)

    def clipping_groups(self) -> tuple[list[int], list[float]]:
        """Where each group of columns starts that is clipped by itself, and its share of C²."""
        places, heads, privacy = self.adapters.layout.places, self.adapters.heads, self.privacy
        if privacy.at_clients and privacy.clipping == "per-layer":
            return [place.start for place in places], [1.0] * len(places)
        first = min((place.start for place in places if place.layer in heads), default=0)
        share = privacy.head_share
        if not privacy.at_clients or privacy.clipping == "adaptive" or share is None or first == 0:
            return [0], [1.0]
        return [0, first], [1.0 - share, share]

    def look_ahead(self, cohort: Sequence[Participant]) -> None:
        """Has the probe look at samples as a batch will hold them, and asks how long they are, so that a model that
        mixes samples is refused before any step is charged. Processes that hold parts of the base look at the same
        samples: later each has its own.

        Raises:
            SamplesNotIndependent, ValueError: see ``Probe.look`` and ``check_batch``; or these samples do not tell, and
                the base is sharded.
        """
        if self.privacy.at_clients:
            longest = max(int(self.data.lengths[participant.samples].max(initial=0)) for participant in cohort)
            check_length(self._longest_apart, longest)
        own = max((participant.samples for participant in cohort), key=len)[: max(2, self.optimizer.batch)]
        if not self.probe.has_looked and len(own) > 1:
            plan = physical_batches(self.data.lengths[own], self.token_budget or 1, max_samples=self.arena.most_rows)
            batch = own[max(plan.batches, key=len)]
            look_at(self.probe, self.model, self.losses, *self.data.collate(batch), len(batch), self.device)
        if self.is_sharded and not self.probe.has_looked:
            raise ValueError(
                f"the base is sharded, and the first {len(own)} samples of the largest client are too few or too much "
                "alike to show whether the model keeps samples apart, which all processes must see at once; give it "
                "others, or keep the base whole"
            )
