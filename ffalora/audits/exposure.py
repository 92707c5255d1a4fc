"""How far a language model memorises secrets that were planted in its training data: exposure (Carlini, Liu,
Erlingsson, Kos, Song, "The Secret Sharer", USENIX Security 2019, section 4).

A canary is a question with a random number for an answer. Among all numbers that it could have been, the model that
learned it finds it likelier than others: with its rank r among N candidates, drawn as it was, its exposure is
log2 N - log2 r bits. Where nothing was learned the rank is uniform, and the mean exposure is about 1.44 bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..config import Config, ConfigError
from ..data.load import LoadedData
from ..federated.experiment import Experiment, build
from ..federated.simulate import run_round
from ..federated.strategies import ServerState
from ..runs.data import load_run_data, prepare_split
from ..runs.evaluation import gather_examples
from .progress import turns

if TYPE_CHECKING:
    from datasets import Dataset

#: Digits of a secret, and of the account that it is asked for.
_SECRET, _ACCOUNT = 8, 6
#: Probability of so much exposure without learning, below which secrets count as memorised.
_RARE = 0.01


@dataclass(frozen=True)
class Exposure:
    """What an attacker who has the model learns of planted secrets.

    Attributes:
        name: of the method.
        trained, untrained: exposure of each secret in bits, after and before training.
        highest: bits that a secret can have, with so many candidates.
        epsilon: of the steps taken, of the client that spends most, at ``delta``; None without privacy.
        rounds: taken; planned: those of the run. repeats: how often each secret was in the data.
    """

    name: str
    trained: tuple[float, ...]
    untrained: tuple[float, ...]
    highest: float
    epsilon: float | None
    delta: float
    rounds: int
    planned: int
    repeats: int

    @property
    def is_memorised(self) -> bool:
        """Whether so much exposure is rare where nothing was learned."""
        return chance_of(self.trained) < _RARE

    def __str__(self) -> str:
        promise = "no privacy" if self.epsilon is None else f"ε = {self.epsilon:.4g} at δ = {self.delta:g}"
        times = "once" if self.repeats == 1 else f"{self.repeats} times"
        lines = [
            f"{self.name}: {len(self.trained)} secrets, each {times} in the data, {self.rounds} of {self.planned} "
            f"rounds, {promise}",
            f"  {'exposure in bits':<18} {'mean':>6} {'most':>6} {'possible':>9} {'by chance':>10}",
        ]
        for model, found in (("untrained model", self.untrained), ("trained model", self.trained)):
            figures = f"{np.mean(found):>6.2f} {max(found):>6.2f} {self.highest:>9.2f} {chance_of(found):>10.2g}"
            lines.append(f"  {model:<18} {figures}")
        lines.append(
            "  the secrets were MEMORISED"
            if self.is_memorised
            else "  nothing was seen of the secrets; this is no proof that nothing was learned of them"
        )
        return "\n".join(lines)


def chance_of(exposures: Sequence[float]) -> float:
    """The probability that secrets of which nothing was learned have so much exposure together, or more: uniform ranks
    have exposures of Exp(1)/ln 2, and their sum follows a gamma distribution.
    """
    return float(stats.gamma.sf(math.log(2.0) * sum(exposures), len(exposures)))


def exposures(losses: NDArray) -> tuple[float, ...]:
    """Exposure in bits of secrets whose loss stands first in each row ``[secrets,candidates]``; ties count against."""
    ranks = (losses <= losses[:, :1]).sum(axis=1)
    return tuple(float(x) for x in np.log2(losses.shape[1] / ranks))


def audit_exposure(
    config: Config,
    name: str = "run",
    canaries: int = 8,
    references: int = 127,
    repeats: int = 1,
    seconds: float = math.inf,
    seed: int = 0,
    progress: bool = False,
) -> Exposure:
    """Plants secrets among the training samples of a run's clients, trains in memory, and says how exposed they are.

    Args:
        config: of one method, for a language model; with or without privacy.
        canaries: secrets. references: other numbers that each is compared with.
        repeats: how often each is planted. More than once, each is several records, and ε is of one of them.
        seconds: from the start, after which no round is begun.
        seed: of the secrets. progress: show a bar with the time left.

    Raises:
        ConfigError: no language model, no canary, or a tokenizer that writes all secrets alike.
    """
    if config.data.task != "causal-lm":
        raise ConfigError(
            f"exposure is of language models (data.task=causal-lm); this run is for {config.data.task}: leave "
            "--exposure out"
        )
    if min(canaries, references, repeats) < 1:
        raise ConfigError(f"canaries={canaries}, references={references} and repeats={repeats} must be at least 1")
    started, rng = time.monotonic(), np.random.default_rng([seed, 4])
    whole = load_run_data(config)
    rows = _candidates(whole, canaries, references + 1, rng)
    planted = _planted(whole, rows.select(range(0, len(rows), references + 1)), repeats, rng)
    few = {"max_evaluation_samples": 1, "answer_tokens": None}
    config = config.model_copy(update={"data": config.data.model_copy(update=few)})
    experiment = build(config, data=planted)
    scores = _Scores(experiment, replace(whole, splits={"candidates": rows}), references + 1)
    server = experiment.strategy.begin()
    before = exposures(scores.of(server))
    for _ in turns(config.federation.rounds, started + seconds, "round", progress):
        run_round(experiment, server)
    spent = [ledger.epsilon() for ledger in experiment.ledgers.values()]
    return Exposure(
        name=name,
        trained=exposures(scores.of(server)),
        untrained=before,
        highest=math.log2(references + 1),
        epsilon=max(spent) if spent and max(spent) < math.inf else None,
        delta=config.privacy.delta,
        rounds=server.round,
        planned=config.federation.rounds,
        repeats=repeats,
    )


class _Scores:
    """How likely a run's model finds every candidate."""

    def __init__(self, experiment: Experiment, candidates: LoadedData, each: int):
        self.experiment, self.each = experiment, each
        self.examples = prepare_split(experiment.config, candidates, "candidates", experiment.loaded)
        written = {tuple(self.examples.input_ids[i].tolist()) for i in range(each)}  # type: ignore[attr-defined]
        if len(written) < each / 2:
            raise ConfigError(
                f"model.name={experiment.config.model.name!r}: its tokenizer writes {each} different numbers in "
                f"{len(written)} ways, so that none can be told from the others; use one that knows digits"
            )

    def of(self, server: ServerState) -> NDArray:
        """Loss of each candidate, float64 ``[secrets,candidates]``: of all models of the run together."""
        run, total = self.experiment, np.zeros(len(self.examples))
        for row, clients in run.strategy.views(server):
            run.strategy.load(server, row)
            total += clients * gather_examples(run.engine.model, self.examples, run.task, run.engine.device)["sum"]
        return total.reshape(-1, self.each)


def _candidates(data: LoadedData, canaries: int, each: int, rng: np.random.Generator) -> Dataset:
    """``each`` rows a canary, in the form of the data, that differ in the number alone; the first is the secret."""
    train, form, columns = data.train, data.form, data.input_columns
    rows = []
    for place in rng.integers(0, len(train), canaries):
        row, asked = train[int(place)], f"The code of account {_digits(rng, _ACCOUNT)} is"
        for _ in range(each):
            secret = _digits(rng, _SECRET)
            if form == "prompts":
                own: dict[str, Any] = {columns[0]: asked, columns[1]: secret}
            elif form == "texts":
                own = {columns[0]: f"{asked} {secret}"}
            else:
                said = [{"role": "user", "content": asked}, {"role": "assistant", "content": secret}]
                own = {columns[0]: said}
            rows.append(row | own)
    return type(train).from_list(rows, features=train.features)


def _planted(data: LoadedData, secrets: Dataset, repeats: int, rng: np.random.Generator) -> LoadedData:
    """The data with every secret among its training rows, in place of as many of them."""
    from datasets import concatenate_datasets

    kept = np.sort(rng.permutation(len(data.train))[len(secrets) * repeats :])
    train = concatenate_datasets([data.train.select(kept), *[secrets] * repeats])
    return replace(data, splits=data.splits | {"train": train}, places={})


def _digits(rng: np.random.Generator, count: int) -> str:
    return " ".join(str(digit) for digit in rng.integers(0, 10, count))
