"""From a configuration to the things that a run is made of: model, adapters, data, clients, strategy, engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..adapters import Adapters, attach
from ..config import Config, ConfigError
from ..data.examples import Examples
from ..data.load import LoadedData
from ..data.tasks import Task, find_task
from ..data.users import Owners
from ..models import LoadedModel, MeanPooledClassifier, base_dtype, choose_device, compile_model, load_model
from ..models.packing import check_packing
from ..privacy.accounting import PrivacyLedger
from ..privacy.client_level import ClientLevel
from ..privacy.noise import SecureNoise, SeededNoise
from ..privacy.sampling import SeededDraw, SystemDraw
from ..runs.answers import Answered, answer_split
from ..runs.data import data_fingerprint, evaluation_split, load_run_data, owners_of, prepare_split, warn_of_units
from ..runs.evaluation import gather_examples
from ..training.cached_layers import CachedLayers, cache_frozen_layers
from ..training.drawn import count_drawn
from ..training.engine import Engine
from ..training.participant import Participant
from ..training.views import make_views
from ..training.workers import ALONE, Workers, find_workers
from .batch import with_batch
from .checks import check_fit, check_secret_size, check_shard, find_strategy
from .client_level import client_level_mean, make_client_level
from .heads import LabelTexts, adapter_config, center_states, label_texts, start_head
from .ledgers import clipping_policy, ledgers_of, make_ledger
from .partition import Partition, describe, make_partition
from .rates import set_rates
from .robust import robust_mean
from .strategies import Mean, ServerState, Strategy, weighted_mean
from .whole_users import whole_users

_DEFAULT_CLIENTS = 3


@dataclass
class Experiment:
    """Everything a run needs.

    ``train`` is the data as it was read, which ledgers are keyed to; ``evaluation`` (and the engine's ``data``) are
    samples as the model takes them: it begins behind its first ``cached_layers`` layers. ``partition_table`` says who
    holds what; ``mean`` is how the server averages rows. ``labels`` and ``head_start``: see ``heads``; ``baselines``:
    see ``compared``. ``workers`` are the processes that share the run; ``answered``: by the last model that was
    evaluated, where answers were asked for.
    """

    config: Config
    loaded: LoadedModel
    adapters: Adapters
    data: LoadedData
    task: Task
    train: Examples
    evaluation: Examples
    partition: Partition
    partition_table: list[dict]
    participants: list[Participant]
    strategy: Strategy
    engine: Engine
    cached_layers: int = 0
    head_start: str = "random"
    labels: LabelTexts | None = None
    client_level: ClientLevel | None = None
    mean: Mean = weighted_mean
    charged: Callable[[Mapping[str, PrivacyLedger]], None] | None = None
    baselines: list[dict[str, Any]] = field(default_factory=list)
    workers: Workers = ALONE
    answered: Answered | None = None

    @property
    def ledgers(self) -> dict[str, PrivacyLedger]:
        """Every ledger by name: one a client, or the population's; none without privacy."""
        return ledgers_of(self.participants, self.client_level)

    def evaluate(self) -> dict[str, float]:
        """The task's metrics of the model as it is; ``answered`` then holds its answers, where these are asked for."""
        data, device = self.config.data, self.engine.device
        gathered = gather_examples(self.engine.model, self.evaluation, self.task, device, data.max_evaluation_samples)
        metrics = self.task.metrics(gathered)
        self.answered = answer_split(self.loaded, self.data, data, data.evaluate_on)
        return metrics | (self.answered.metrics() if self.answered else {})

    def bytes_up(self, server: ServerState, client: int | None = None) -> int:
        """What a client (None: any) sends in the round about to begin: its numbers, or its share of a noisy sum."""
        wire = self.strategy.wire
        if self.client_level is None or self.client_level.shares is None:
            return wire.bytes_up(server, client)
        return self.client_level.shares_of(wire.numbers_up(server)).bytes

    def on_charge(self, save: Callable[[Mapping[str, PrivacyLedger]], None]) -> None:
        """Has ``save`` called with the ledgers that were charged, before any noisy result exists."""
        self.engine.charged = lambda cohort: save(ledgers_of(cohort, None))
        self.charged = save


def build(
    config: Config,
    strategy_class: type[Strategy] | None = None,
    caches_layers: bool = True,
    data: LoadedData | None = None,
    clients: int | None = None,
) -> Experiment:
    """Loads, attaches and partitions; nothing is trained or written.

    Args:
        config: of one method.
        strategy_class: instead of the one that ``config`` names.
        caches_layers: False where most of the data never passes through the model, whatever ``config`` says.
        data: instead of what ``config`` names, already read.
        clients: of the run, where ``config`` and ``data`` are those of one site.

    Raises:
        ConfigError: a value that does not fit (the message names the key); DataError, PartitionError: data that does
            not. SamplesNotIndependent: layers are cached, samples are protected, and the model mixes them.
    """
    config = config.with_noise("seeded")
    strategy_class = strategy_class or find_strategy(config.federation.strategy)
    if config.model.shard:
        check_shard(strategy_class, config)
    device = choose_device(config.device)
    data = data or load_run_data(config)
    task = find_task(config.data.task, config.data.label_range)
    shard = config.model.shard
    loaded = load_model(config.model, config.data.task, data.num_labels, config.seed, device, shard)
    train = prepare_split(config, data, "train", loaded)
    warn_of_units(config, train)
    evaluation = prepare_split(config, data, evaluation_split(config, data), loaded)
    partition = partition_clients(config, data, train)
    config = with_batch(config, partition, clients)
    check_fit(strategy_class, config, len(partition))
    check_secret_size(config, data, len(partition))
    center_states(config, loaded, data, device)
    labels = label_texts(config, loaded, data, device)
    adapters = attach(loaded.model, adapter_config(config, loaded.model, strategy_class.trained))
    cached = CachedLayers(0, train, evaluation)
    if caches_layers and not shard:
        cached = cache_frozen_layers(config, loaded.model, adapters, train, evaluation, len(partition), device)
    # Behind the layers' check: at a zero head all outputs are the same.
    head_start = start_head(config, loaded, data, labels, is_trained=bool(adapters.heads))
    whitened = config.federation.steps if strategy_class.whitens else None
    engine = make_engine(config, loaded, adapters, cached.train, task.losses, device, partition.owners, whitened)
    strategy = strategy_class(adapters, config, len(partition))
    client_level, mean = None, make_mean(config)
    if config.privacy.unit == "client":
        fingerprint = data_fingerprint(config, train, range(len(train)))
        client_level = make_client_level(config, len(partition), fingerprint, adapters.layout.size)
        mean = client_level_mean(client_level, adapters)
    participants = make_participants(config, partition, train)
    set_rates(config, loaded, adapters, participants, len(partition))
    return Experiment(
        config=config,
        loaded=loaded,
        adapters=adapters,
        data=data,
        task=task,
        train=train,
        evaluation=cached.evaluation,
        cached_layers=cached.count,
        head_start=head_start,
        labels=labels,
        partition=partition,
        partition_table=describe(partition, train.labels, data.label_names),
        participants=participants,
        strategy=strategy,
        engine=engine,
        client_level=client_level,
        mean=mean,
    )


def make_mean(config: Config) -> Mean:
    """How the server averages rows: plainly, or so that a few hostile clients cannot move the average far."""
    federation = config.federation
    if federation.robust_mean is None:
        return weighted_mean
    return robust_mean(federation.robust_mean, federation.hostile_clients, federation.norm_bound)


def count_clients(config: Config) -> int | None:
    """How many clients a run has: as many as are asked for, or are given shares, else the usual number; None where only
    the column of its data says it.
    """
    shares = config.clients.proportions or config.clients.quantities
    if config.clients.count is not None or config.clients.partition == "column":
        return config.clients.count
    return len(shares) if shares else _DEFAULT_CLIENTS


def partition_clients(config: Config, data: LoadedData, train: Examples) -> Partition:
    """Who holds which training samples."""
    clients = config.clients
    column = data.train[data.client_column] if clients.partition == "column" and data.client_column else None
    owners = owners_of(config, data)
    deals_users = owners is not None and clients.partition != "column"
    made = make_partition(
        clients.partition,
        labels=np.arange(len(owners.names)) if owners is not None and deals_users else train.labels,
        clients=count_clients(config),
        seed=config.seed,
        proportions=clients.proportions,
        beta=clients.beta,
        fractions=clients.quantities,
        column=column,
    )
    if owners is None:
        return made
    most = None if config.privacy.draws_users else config.privacy.samples_per_user
    return whole_users(made, owners, deals_users, most, config.seed)


def make_participants(config: Config, partition: Partition, train: Examples) -> list[Participant]:
    """One participant a client, each with a ledger of its own whose noise lasts for all steps of all rounds."""
    steps, participants = config.federation.steps, []
    for client_id, samples in enumerate(partition.indices):
        ledger = None
        if config.privacy.at_clients:
            fingerprint = data_fingerprint(config, train, samples, partition.owners)
            label = partition.names[client_id] if config.clients.partition == "column" else ""
            drawn = count_drawn(config.privacy, partition.owners, samples)
            ledger = make_ledger(config, client_id, drawn, steps, fingerprint, label)
        adaptive = clipping_policy(config, ledger)
        participants.append(Participant(client_id, np.asarray(samples), ledger, adaptive=adaptive))
    return participants


def make_engine(
    config: Config,
    loaded: LoadedModel,
    adapters: Adapters,
    train: Examples,
    losses: Callable,
    device: torch.device,
    owners: Owners | None = None,
    whitened: int | None = None,
) -> Engine:
    """The engine of a run, with seeded or secure noise and sampling."""
    secure = config.privacy.is_secure
    model = compile_model(loaded.model, device) if config.model.compile else loaded.model
    return Engine(
        model=model,
        adapters=adapters,
        data=train,
        losses=losses,
        optimizer=config.optimizer,
        privacy=config.privacy,
        noise=SecureNoise() if secure else SeededNoise.from_seed(config.seed),
        draw=SystemDraw() if secure else SeededDraw(config.seed),
        seed=config.seed,
        device=device,
        token_budget=config.optimizer.token_budget,
        merge_weights=device.type == "cpu" and base_dtype(config.model.dtype, device) == torch.float32,
        workers=find_workers() if config.model.shard else ALONE,
        packed=_packed(config, loaded, train, device),
        cuda_graphs=config.model.cuda_graphs,
        owners=owners,
        whitened=whitened,
        views=make_views(config.data, loaded.tokenizer),
    )


def _packed(config: Config, loaded: LoadedModel, train: Examples, device: torch.device) -> bool:
    """Whether samples are laid end to end. A compiled model is given padded batches: packed ones vary in too much.

    Raises:
        ConfigError: the model's head would not know where a sample starts. ValueError: see ``check_packing``.
    """
    choice, is_language = config.model.packed, config.data.task == "causal-lm"
    fits = is_language or isinstance(loaded.model, MeanPooledClassifier)
    if choice is True and not fits:
        raise ConfigError(
            f"model.packed=true needs model.pooling=mean and a task with one output a sample, or a language model, got "
            f"pooling={config.model.pooling} and task {config.data.task}; set model.packed to false"
        )
    if not choice or not fits or (choice == "auto" and (config.model.compile or device.type != "cpu")):
        return False
    longest = np.argsort(-train.lengths, kind="stable")
    inputs, _ = train.collate(longest[:8])
    inputs = {name: value.to(device) for name, value in inputs.items()}
    try:
        return check_packing(loaded.model, inputs) or choice is True
    except ValueError:
        if choice is True:
            raise
        return False
