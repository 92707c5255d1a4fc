"""Refuses configurations that a federated method cannot carry out, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable

from ..adapters.init import FROM_BASE
from ..config import Config, ConfigError
from ..config.sections import FederationConfig
from ..data.load import LoadedData
from ..training.workers import find_workers
from .robust import fewest_clients
from .strategies import STRATEGIES, Strategy
from .strategies.residual import MergesIntoBase


def find_strategy(name: str) -> type[Strategy]:
    """The method called ``name``.

    Raises:
        ConfigError: there is none; the message lists them all.
    """
    if name not in STRATEGIES:
        if name.lower() == "fedprox":
            raise ConfigError(
                f"federation.strategy={name!r}: FedProx is a term of the local loss, with any method; set "
                "federation.prox_mu to its weight (0.01, say), and federation.strategy to one of "
                f"{', '.join(STRATEGIES)}"
            )
        raise ConfigError(
            f"federation.strategy={name!r}: there is no such method; choose one of {', '.join(STRATEGIES)}"
        )
    return STRATEGIES[name]


def check_fit(strategy: type[Strategy], config: Config, clients: int) -> None:
    """Refuses what the method cannot do, before anything is trained.

    Raises:
        ConfigError: names the key, its value, and the methods or values that would fit.
    """
    federation = config.federation
    if clients < federation.min_available:
        raise ConfigError(
            f"federation.min_available={federation.min_available}, but there are {clients} clients; lower it, or "
            "partition the data among more"
        )
    if federation.robust_mean is not None:
        _need(lambda s: s.linear, "federation.robust_mean", federation.robust_mean, strategy)
        if config.privacy.unit == "client":
            raise ConfigError(
                f"federation.robust_mean={federation.robust_mean!r} does not go with privacy.unit='client', whose ε is "
                "that of a clipped and noised sum (which bounds every client already); leave it out"
            )
        cohort, least = federation.cohort(clients), fewest_clients(federation.robust_mean, federation.hostile_clients)
        if cohort < least:
            raise ConfigError(
                f"federation.robust_mean={federation.robust_mean} with federation.hostile_clients="
                f"{federation.hostile_clients} needs {least} clients in a round, and there are {cohort}; lower "
                "hostile_clients, or have more clients in a round"
            )
    _check_factors(strategy, config, clients)
    if strategy.whitens:
        _check_whitened(strategy, config)
    _check_server(strategy, federation)
    if federation.payload != "float32" and config.privacy.noise_at == "clients":
        raise ConfigError(
            f"federation.payload={federation.payload!r}: clients that bring the noise send whole numbers of their own "
            "format (privacy.sum_bits); set it to float32"
        )
    if federation.payload == "top-k":
        _check_top_k(strategy, config)
    if federation.average_from is not None:
        _need(lambda s: s.averages, "federation.average_from", federation.average_from, strategy)
    if config.optimizer.keep_moments:
        _need(lambda s: s.steady, "optimizer.keep_moments", True, strategy)
        if config.privacy.unit == "client" and config.privacy.noise == "secure":
            raise ConfigError(
                "optimizer.keep_moments=True: which clients have moments tells who was drawn, which secure noise for "
                "whole clients keeps secret; set it to false"
            )
    if config.privacy.mechanism != "independent":
        _need(lambda s: s.steady, "privacy.mechanism", config.privacy.mechanism, strategy)
        if config.optimizer.dp_bias_correction:
            raise ConfigError(
                f"privacy.mechanism={config.privacy.mechanism!r}: optimizer.dp_bias_correction takes off the variance "
                "of independent noise; set it to false"
            )
    if config.privacy.unit == "client":
        _need(_sums_hold_everything, "privacy.unit", "client", strategy)
        if federation.weighting != "uniform":
            raise ConfigError(
                f"federation.weighting={federation.weighting!r}: under client-level privacy every client weighs the "
                "same; set it to uniform"
            )


def check_secret_size(config: Config, data: LoadedData, clients: int) -> None:
    """Where a size is secret, refuses what one record more or less would change beside that record itself.

    Raises:
        ConfigError: names the key, its value and the remedy.
    """
    if config.privacy.public_size_bound is None:
        return
    if clients > 1 and config.federation.weighting == "size":
        raise ConfigError(
            "federation.weighting='size' shows how many samples each client holds, which privacy.public_size_bound "
            "keeps secret; set federation.weighting to uniform"
        )
    changes = "with one record more other records would be used too, so that it would not be hidden"
    if config.data.max_samples is not None:
        raise ConfigError(
            f"data.max_samples={config.data.max_samples} with privacy.public_size_bound="
            f"{config.privacy.public_size_bound}: {changes}; leave one of them out"
        )
    if clients > 1 and config.clients.partition != "column":
        raise ConfigError(
            f"clients.partition={config.clients.partition!r} with privacy.public_size_bound="
            f"{config.privacy.public_size_bound}: records are dealt to clients by their number, and {changes}; name "
            "the column of their clients (clients.partition: column), or leave the bound out"
        )
    if data.cut:
        shares = " and ".join(f"data.{role}_fraction={getattr(config.data, f'{role}_fraction')}" for role in data.cut)
        raise ConfigError(
            f"{shares} with privacy.public_size_bound={config.privacy.public_size_bound}: rows are held out by how "
            f"many there are, and {changes}; evaluate on rows of their own (a file or split named test), and set "
            "these fractions to 0"
        )


def check_shard(strategy: type[Strategy], config: Config) -> None:
    """Refuses what a base that is cut over processes cannot do, before it is loaded.

    Raises:
        ConfigError: names the key that does not go with ``model.shard``, and the remedy.
    """
    said = "model.shard=true cuts the frozen base over processes"
    if find_workers().size == 1:
        raise ConfigError(
            f"{said}, and this is the only one; start several with torchrun --nproc-per-node N -m ffalora train …, or "
            "set it to false"
        )
    if config.model.compile:
        raise ConfigError(f"{said}, which gather it between the parts of a compiled model; set model.compile to false")
    if config.model.cache_frozen_layers == "always":
        raise ConfigError(f"{said}, and model.cache_frozen_layers='always' takes layers out of it; set it to auto")
    if config.adapter.init in FROM_BASE:
        raise ConfigError(
            f"{said}, and adapter.init={config.adapter.init!r} takes factors from whole weights; set it to kaiming, "
            "gaussian or orthonormal"
        )
    _need(lambda s: not issubclass(s, MergesIntoBase), "model.shard", True, strategy)


def _check_server(strategy: type[Strategy], federation: FederationConfig) -> None:
    """Refuses an optimiser at the server that the method does not go with, or a rate that is none of its own."""
    wanted = federation.server_optimizer
    if wanted == "fedavg" and federation.server_lr == 1.0:
        return
    _need(lambda s: s.linear, "federation.server_optimizer", wanted, strategy)
    if wanted not in ("fedavg", "fedavgm") and federation.server_lr == 1.0:
        raise ConfigError(
            f"federation.server_lr=1 is the rate of averages; {wanted} moves every number by about its rate in "
            "each round, whatever clients found: give it a smaller one, such as 0.01"
        )
    if strategy.renews and federation.refactor_every == 1 and wanted != "fedavg":
        raise ConfigError(
            f"federation.server_optimizer={wanted!r} with federation.strategy={strategy.name!r}: its moments begin "
            "anew whenever a is renewed, with federation.refactor_every=1 in every round: take fedavg, or a larger "
            "refactor_every"
        )


def _check_factors(strategy: type[Strategy], config: Config, clients: int) -> None:
    """Refuses adapters without the method's factors, ranks that clients cannot have, and first factors that they could
    not begin with.
    """
    if config.adapter.trained not in ("b", strategy.trained):  # "b" is what nobody asked for: files hold every key
        raise ConfigError(
            f"adapter.trained={config.adapter.trained!r}: federation.strategy={strategy.name!r} trains "
            f"{strategy.facts.trained or strategy.trained}; leave adapter.trained out, or choose another method"
        )
    if config.adapter.method != "lora":
        _need(_trains_b_alone, "adapter.method", config.adapter.method, strategy)
    ranks = config.clients.ranks
    if ranks is not None:
        _need(lambda s: s.takes_ranks, "clients.ranks", ranks, strategy)
        if len(ranks) != clients or min(ranks) < 1 or max(ranks) > config.adapter.largest_rank:
            raise ConfigError(
                f"clients.ranks={ranks} must hold one rank for each of {clients} clients, between 1 and "
                f"{config.adapter.largest_rank}, the largest rank of a layer (adapter.rank, adapter.rank_pattern)"
            )
    said = None
    if strategy.random_init:
        said = f"federation.strategy={strategy.name!r}"
    elif ranks is not None and min(ranks) < config.adapter.largest_rank:  # clients would lack what the base gave up
        said = f"clients.ranks={ranks}"
    elif strategy.prunes and config.federation.rank_pruning < 1:
        said = f"federation.rank_pruning={config.federation.rank_pruning}"
    if said is not None and config.adapter.init in FROM_BASE:
        raise ConfigError(
            f"adapter.init={config.adapter.init!r} takes factors from the base weight, which does not go with {said}; "
            "use kaiming, gaussian or orthonormal"
        )


def _check_whitened(strategy: type[Strategy], config: Config) -> None:
    """Refuses what is said of the factors, or of each number, where steps are those of the product of two factors."""
    optimizer = config.optimizer
    others = {
        "optimizer.weight_decay": (optimizer.weight_decay, 0.0),
        "optimizer.name": (optimizer.name, "sgd"),
        "optimizer.momentum": (optimizer.momentum, 0.0),
        "federation.prox_mu": (config.federation.prox_mu, 0.0),
    }
    for key, (value, needed) in others.items():
        if value != needed:
            raise ConfigError(
                f"{key}={value!r} does not go with federation.strategy={strategy.name!r}, whose steps are those of the "
                f"product of two factors; set it to {needed!r}, or take another method"
            )


def _check_top_k(strategy: type[Strategy], config: Config) -> None:
    """Refuses what parts of updates, a round late, cannot be put together by."""
    _need(lambda s: s.linear and s.steady, "federation.payload", "top-k", strategy)
    if config.federation.robust_mean is not None:
        raise ConfigError(
            f"federation.robust_mean={config.federation.robust_mean!r} compares clients number by number, and "
            "federation.payload='top-k' has each send others; leave one of the two out"
        )
    if config.privacy.unit == "client":
        raise ConfigError(
            "federation.payload='top-k' does not go with privacy.unit='client': what a client keeps for later rounds "
            "would have no noise yet; set it to float32, float16 or int8"
        )


def _sums_hold_everything(strategy: type[Strategy]) -> bool:
    """Whether nothing but weighted sums of what clients send is evaluated or saved, which noise at the server covers;
    of the product of two factors it would be noise of the factors.
    """
    return strategy.linear and not strategy.personal and not strategy.whitens


def _trains_b_alone(strategy: type[Strategy]) -> bool:
    """Whether nothing but ``b`` ever changes, which adapters other than LoRA have, too."""
    return strategy.trained == "b" and strategy.steady


def _need(can: Callable[[type[Strategy]], bool], key: str, value: object, strategy: type[Strategy]) -> None:
    if not can(strategy):
        able = ", ".join(name for name, other in STRATEGIES.items() if can(other))
        raise ConfigError(
            f"{key}={value!r} does not go with federation.strategy={strategy.name!r}; the methods that can: {able}"
        )


def check_single(config: Config) -> None:
    """Refuses a configuration of several runs where one is trained.

    Raises:
        ConfigError: names the key, and what runs them all.
    """
    several = [f"methods={list(config.methods)}"] if config.methods else []
    several += [f"seeds={config.seeds}"] if config.seeds > 1 else []
    if several:
        raise ConfigError(
            f"{' and '.join(several)}: this trains a single run; `ffalora simulate` and `ffalora train` run them all, "
            "and in Python each of ffalora.runs.folder.run_places(config, folder) is one"
        )
