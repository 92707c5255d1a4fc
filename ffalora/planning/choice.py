"""A private choice of hyper-parameters: a random number of trials, of which nothing is shown but the best.

A sweep of k runs on the same records spends what k runs spend. Where each trial takes one of a fixed list of candidates
without looking at the data, where after each another is begun with a probability that is fixed as well, and where
nothing leaves but the trial that scored best, the whole costs two or three times what one trial does (Liu and Talwar,
STOC 2019; Papernot and Steinke, "Hyperparameter Tuning with Rényi Differential Privacy", ICLR 2022). How many trials
there were, how long they took and how the others scored must stay as secret as the noise: the others are deleted, and
nothing of them is written down.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import math
import random
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import Config, ConfigError, from_mapping, merge
from ..config.values import differences
from ..data.tasks import LOWER_IS_BETTER, find_task
from ..privacy import accounts
from ..privacy.accounts import ACCOUNT
from ..runs.folder import CHECKPOINT, RunResult, write_json

CHOICE, BEST, TRIAL = "choice.json", "best", "trial"
#: Keys of ``privacy`` and ``data`` that do not change what a step spends.
_FREE = ("max_grad_norm", "clipping", "clipping_quantile", "head_share", "check_gradients")
_FREE_OF_DATA = ("views", "augment", "augment_rate")
#: Metrics of a language model's answers; the second where they can be right or wrong.
_OF_ANSWERS = ("rouge_l", "exact_match")
#: Trains a run and writes its folder: ``simulate`` or ``train``.
Train = Callable[[Config, Path, bool, bool], RunResult]


@dataclass
class Choice:
    """What a choice has come to, as its folder knows it.

    Attributes:
        tried: the candidates' values by dotted key.
        metric: by which trials are compared.
        values, score: of the best trial so far.
        settled: 'keep' or 'drop' while a trial that was judged waits to be moved or deleted.
        finished: whether no further trial is begun.
        trials: how many were finished, with seeded noise; never counted otherwise.
    """

    tried: dict[str, list[Any]]
    metric: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    score: float | None = None
    settled: str | None = None
    finished: bool = False
    trials: int | None = None

    def is_beaten_by(self, score: float) -> bool:
        """Whether a trial of this score is the best so far; among equals the first one stays."""
        if self.score is None:
            return True
        return score < self.score if self.metric in LOWER_IS_BETTER else score > self.score


def prepare(config: Config, tried: Mapping[str, Sequence[Any]], trials: float) -> Config:
    """The configuration that all trials share; its ε is that of the choice, and metrics are of the validation split.

    Args:
        config: without ``privacy.trials``. Its methods, if it has any, are candidates, each with all tried values.
        tried: values by dotted key.
        trials: their number on average, above 1.

    Raises:
        ConfigError: nothing is protected, several seeds, tools that would keep every trial's metrics, a value that
            does not fit, or candidates that would not spend the same.
    """
    if not 1 < trials <= 1000:
        raise ConfigError(f"--trials {trials:g}: must lie above 1 and be at most 1000, the mean number of trials")
    if not config.privacy.at_clients:
        raise ConfigError(
            f"privacy.unit={config.privacy.unit!r}: a private choice protects samples or users; set privacy.unit to "
            "sample, or compare runs with ffalora study"
        )
    if config.seeds > 1:
        raise ConfigError(f"seeds={config.seeds}: every trial is a run of its own; leave seeds out")
    changes = {"privacy.trials": float(trials), "data.evaluate_on": "validation"}
    shared = from_mapping(merge(config.model_dump(mode="json"), changes)).with_noise("secure")
    every = candidates(shared, tried)
    if len(every) < 2:
        raise ConfigError("there is one candidate: give --try KEY=A,B with values to choose from")
    told = next((one.report_to for _, one in every if one.report_to), None)
    if told is not None:
        raise ConfigError(
            f"report_to={told}: this would keep the metrics of every trial, of which the best alone may be seen; leave "
            "it out"
        )
    first = _spending(every[0][1])
    for values, one in every[1:]:
        if changed := differences(first, _spending(one)):
            raise ConfigError(
                f"{_in_words(values)} would not spend what the others do ({'; '.join(changed)}): all candidates need "
                "the same data, clients, batch, steps and noise"
            )
    return shared


def candidates(config: Config, tried: Mapping[str, Sequence[Any]]) -> list[tuple[dict[str, Any], Config]]:
    """Every combination of tried values, for each method: the values, and the configuration with them."""
    found = []
    for name, method in config.runs().items():
        base = method.model_dump(mode="json")
        for combination in itertools.product(*tried.values()):
            values = dict(zip(tried, combination, strict=True))
            named = {"method": name, **values} if config.methods else values
            found.append((named, from_mapping(merge(base, values), _in_words(values))))
    return found


def choose(
    config: Config,
    tried: Mapping[str, Sequence[Any]],
    folder: Path,
    train: Train,
    metric: str | None = None,
    resume: bool = False,
) -> Choice:
    """Runs trials until chance ends them, and leaves the folder of the best in ``folder / 'best'``.

    The whole choice is charged when its first trial takes its first step. No trial shows a bar, logs or prints: what it
    said would count the trials.

    Args:
        config: from :func:`prepare`; tried: as there.
        train: takes a configuration, a folder, whether to go on with what is there, and whether to show a bar.
        metric: of the validation split; by default accuracy where there is one, else the loss.
        resume: go on with a choice that was interrupted.

    Raises:
        ConfigError: a metric that runs do not have; or values that a resumed choice did not begin with.
    """
    _check_metric(config, metric)
    every = candidates(config, tried)
    choice = _begin(folder, Choice({key: list(values) for key, values in tried.items()}, metric), resume)
    if not config.privacy.is_secure and choice.trials is None:
        choice.trials = 0
    while not choice.finished:
        chance = secrets.SystemRandom() if choice.trials is None else random.Random(f"{config.seed} {choice.trials}")
        values = _place_of(folder, every[chance.randrange(len(every))][0])
        one = next(candidate for named, candidate in every if named == values)
        if choice.trials is not None:  # seeded: trials need noise of their own
            one = one.model_copy(update={"seed": config.seed + choice.trials})
        with _silence():
            result = train(one, folder / TRIAL, True, False)
        _judge(choice, values, result.summary["metrics"])
        choice.finished = chance.random() < 1.0 / config.privacy.trials
        choice.trials = None if choice.trials is None else choice.trials + 1
        write_json(folder / CHOICE, asdict(choice))
        _settle(choice, folder)
    if choice.score is None:
        raise ConfigError(f"no trial had a finite {choice.metric}: every candidate failed; try smaller rates")
    return choice


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing of what trials print or log is seen, errors apart; nor of what libraries say when they load a model. Only
    what the choice adds to the data set's ledger is, once (see ``open_accounts``).
    """

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.name == accounts.logger.name

    known = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    handlers = [handler for each in (logging.root, *known) for handler in each.handlers]
    for handler in handlers:
        handler.addFilter(passes)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)


def _place_of(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Makes the folder of the next trial, unless one was interrupted, and says which values are tried there."""
    place = folder / TRIAL / CHOICE
    if not place.exists():
        _share_account(folder, folder / TRIAL)
        write_json(place, values)
    return json.loads(place.read_text(encoding="utf-8"))


def _share_account(old: Path, new: Path) -> None:
    """Gives a folder the account of another: the data set's ledger knows all trials of a choice as one."""
    source, target = (path / Path(CHECKPOINT).with_name(ACCOUNT) for path in (old, new))
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.exists() and not target.exists():
        shutil.copy(source, target)


def _check_metric(config: Config, metric: str | None) -> None:
    """Refuses a metric that no run of the task has, before the choice is charged for."""
    known = find_task(config.data.task).reports + (() if config.data.answer_tokens is None else _OF_ANSWERS)
    if metric is not None and metric not in known:
        raise ConfigError(
            f"--metric {metric}: runs of data.task={config.data.task!r} have {', '.join(known)}; name one of these"
        )


def _judge(choice: Choice, values: dict[str, Any], metrics: Mapping[str, float]) -> None:
    choice.metric = choice.metric or ("accuracy" if "accuracy" in metrics else "loss")
    if choice.metric not in metrics:
        raise ConfigError(
            f"--metric {choice.metric}: runs have {', '.join(metrics)}; name one of these; with --resume "
            "the trial that was trained is kept"
        )
    score = metrics[choice.metric]
    choice.settled = "drop"
    if math.isfinite(score) and choice.is_beaten_by(score):
        choice.values, choice.score, choice.settled = values, score, "keep"


def _settle(choice: Choice, folder: Path) -> None:
    """Moves the trial that was judged to where the best is, or deletes it; done once, however often it is begun."""
    trial, best = folder / TRIAL, folder / BEST
    if choice.settled is not None and trial.exists():
        _share_account(trial, folder)
        if choice.settled == "keep":
            shutil.rmtree(best, ignore_errors=True)
            trial.rename(best)
        shutil.rmtree(trial, ignore_errors=True)
    choice.settled = None
    write_json(folder / CHOICE, asdict(choice))


def _begin(folder: Path, fresh: Choice, resume: bool) -> Choice:
    """A choice that begins, or the one in the folder."""
    path = folder / CHOICE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(fresh))
        return fresh
    if not resume:
        raise ConfigError(f"{folder} holds a choice already; give --resume to continue it, or another folder")
    stored = Choice(**json.loads(path.read_text(encoding="utf-8")))
    is_other = stored.score is not None and fresh.metric not in (None, stored.metric)
    if fresh.tried != stored.tried or is_other:
        raise ConfigError(
            f"--resume: {folder} chooses among {stored.tried} by {stored.metric}, not among {fresh.tried} by "
            f"{fresh.metric}: what is tried must not depend on what was seen"
        )
    stored.metric = fresh.metric or stored.metric  # nothing was seen yet, where it is another
    _settle(stored, folder)
    return stored


def _spending(config: Config) -> dict[str, Any]:
    """All that the privacy of a run depends on."""
    values = config.model_dump(mode="json")
    privacy = {key: value for key, value in values["privacy"].items() if key not in _FREE}
    federation = {key: values["federation"][key] for key in ("rounds", "local_steps", "participation")}
    data = {key: value for key, value in values["data"].items() if key not in _FREE_OF_DATA}
    return {name: values[name] for name in ("seed", "clients")} | {
        "data": data,
        "privacy": privacy,
        "federation": federation,
        "optimizer": {"batch_size": values["optimizer"]["batch_size"]},
    }


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())
