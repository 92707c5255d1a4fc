"""Accuracy at a privacy budget on test splits: fine-tuning at its defaults beside what needs no fine-tuning.

    python benchmarks/utility.py [--data movie-reviews …] [--methods probe means ffa …] [--seeds 10] [--epsilons 6 1]

The demo's configuration with another data set, three clients with skewed labels; every seed draws its own clients,
Poisson samples and noise. The rules were developed on movie reviews and tweets, and every other set here was first read
when they stood. ``probe``, ``means`` and ``texts`` read what the run's head reads, several layers; ``last probe``,
``last means`` and ``last texts`` the last layer alone, as is usual. ``plain probe`` keeps no privacy. ``adamw`` is what
one does with an adapter library and a library for DP-SGD: LoRA with its defaults and DP-AdamW, one clipping norm of 1
for all, a head on the last layer that starts at the class texts too, and a rate chosen on movie reviews' validation
split (``ADAMW_RATE``); this package's engine computes it. ``correlated ffa`` has noise that is correlated over steps
(``privacy.mechanism: banded-mf``). ``plain ffa`` and ``plain lora`` are the demo's recipe without clipping and noise.
Sets whose name ends in a number give every client so many samples, others for each seed. One row a run in
benchmarks/data/utility.csv; ``right`` has one bit a test sample, hexadecimal, so that the intervals of
``utility_table.py`` follow from the file. What is there is not run again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffalora.baselines import (
    Budget,
    ClientFeatures,
    LinearClassifier,
    ProbePlan,
    class_means,
    linear_probe,
    noise_of,
    plain_probe,
    release_sums,
    zero_shot,
)  # fmt: skip
from ffalora.config import Config, load_config
from ffalora.data import LoadedData, load_data
from ffalora.federated.compared import features_of
from ffalora.federated.experiment import Experiment, build, make_participants, partition_clients
from ffalora.federated.simulate import run_round
from ffalora.privacy.sampling import SeededDraw
from ffalora.runs.data import load_run_data
from ffalora.runs.evaluation import predict_examples

ROOT = Path(__file__).parents[1]
DEMO, CSV = ROOT / "ffalora" / "configs" / "demo.yaml", ROOT / "benchmarks" / "data" / "utility.csv"
COLUMNS = ("data", "method", "epsilon", "seed", "accuracy", "samples", "right")
TRAINED = ("ffa", "correlated ffa", "lora", "adamw", "plain ffa", "plain lora")
BASELINES = ("texts", "means", "probe", "plain probe", "last texts", "last means", "last probe", "last plain probe")


#: Of ``adamw``; the best of .0003 to .1 in steps of 3 at ε = 3 on the movie reviews' validation split, seed 100.
ADAMW_RATE = 0.01
ADAMW = {
    "adapter": {"rank": 8, "alpha": 8, "init": "kaiming", "target_modules": "all-linear", "layers_to_transform": [5]},
    "optimizer": {"name": "adamw", "normalize": False, "lr": ADAMW_RATE, "head_lr_factor": 1, "batch_size": 256},
    "federation.strategy": "lora",
    "model.pooled_layers": 1,
    "privacy.head_share": None,
}


#: Of ``plain ffa`` and ``plain lora``; the best of .03 to 10 (lora: of .03 and .1) on the movie reviews' validation
#: split, seed 100.
PLAIN_RATE = {"ffa": 0.1, "lora": 0.1}


@dataclass(frozen=True)
class DataSet:
    """A set of the table.

    Attributes:
        embedded: its name in the registry. keeps: which rows of it are used (default: all).
        clients: how the three clients differ, where classes are not two or not of one size.
        samples: how many of the training samples a client gets on average (default: all are dealt out).
    """

    embedded: str
    keeps: Callable[[dict], bool] | None = None
    clients: dict = field(default_factory=dict)
    samples: int | None = None


def _letters(text: str) -> str:
    """A sentence as others may have spaced and capitalised it."""
    return "".join(c for c in text.lower() if c.isalnum())


@cache
def _movie_sentences() -> frozenset[str]:
    """What the defaults were developed on."""
    return frozenset(_letters(text) for split in load_data("movie-reviews").splits.values() for text in split["text"])


_SKEWED = {"clients.partition": "dirichlet", "clients.proportions": None, "clients.beta": 0.5}
DATA = {
    "movie-reviews": DataSet("movie-reviews"),
    "product-reviews": DataSet("sentiment-domains", lambda row: row["domain"] == "product-reviews"),
    "editorials": DataSet("sentiment-domains", lambda row: row["domain"] == "editorials"),
    "rotten-tomatoes": DataSet("rotten-tomatoes", lambda row: _letters(row["text"]) not in _movie_sentences(), _SKEWED),
    "privacy-policy": DataSet("privacy-policy"),
    "boolq": DataSet("boolq", clients=_SKEWED),
    "reuters-r8": DataSet("reuters-r8", clients=_SKEWED),
    "20-newsgroups": DataSet("20-newsgroups", clients=_SKEWED),
    "movie-reviews-100": DataSet("movie-reviews", samples=100),
    "movie-reviews-300": DataSet("movie-reviews", samples=300),
    "tweets": DataSet("sentiment-domains", lambda row: row["domain"] == "tweets"),
    "tweets-100": DataSet("sentiment-domains", lambda row: row["domain"] == "tweets", samples=100),
    "tweets-300": DataSet("sentiment-domains", lambda row: row["domain"] == "tweets", samples=300),
}


@cache
def _whole(name: str) -> LoadedData:
    """A set with its splits, without rows that others have."""
    one = DATA[name]
    data = load_run_data(configuration(name, 0, 6.0))
    if one.keeps is not None:
        data.splits = {role: split.filter(one.keeps) for role, split in data.splits.items()}
    return data


def loaded(name: str, seed: int) -> LoadedData:
    """The set that a seed reads: all of it, or some of its training samples."""
    data, samples = _whole(name), DATA[name].samples
    if samples is None:
        return data
    drawn = np.random.default_rng(seed).permutation(len(data.train))[: 3 * samples]
    return replace(data, splits=data.splits | {"train": data.train.select(drawn)})


def configuration(name: str, seed: int, epsilon: float, changes: dict | None = None) -> Config:
    """The demo with another set, seed and budget."""
    one = DATA[name]
    own = {
        "methods": {},
        "seed": seed,
        "privacy.target_epsilon": epsilon,
        "baselines": False,
        "data.name": one.embedded,
    }
    return load_config(DEMO, own | one.clients | {"federation.evaluate_every": 1000} | (changes or {}))


def trained(name: str, method: str, epsilon: float, seed: int, changes: dict | None = None) -> Tensor:
    """Which test samples a fine-tuned model gets right, bool ``[n]``."""
    kind, _, strategy = method.rpartition(" ")
    own: dict = ADAMW if method == "adamw" else {"federation.strategy": strategy}
    if kind == "correlated":
        own |= {"privacy.mechanism": "banded-mf"}
    if kind == "plain":
        own |= {"privacy.unit": "none", "privacy.target_epsilon": None, "optimizer.batch_size": 256}
        own |= {"optimizer.lr": PLAIN_RATE[strategy]}
    experiment = build(configuration(name, seed, epsilon, own | (changes or {})), data=loaded(name, seed))
    server = experiment.strategy.begin()
    for _ in range(experiment.config.federation.rounds):
        run_round(experiment, server)
    experiment.strategy.load(server)
    return right_of(experiment)


def right_of(experiment: Experiment) -> Tensor:
    """Which evaluated samples the model, as it stands, gets right, bool ``[n]``."""
    logits = predict_examples(experiment.engine.model, experiment.evaluation, experiment.engine.device)
    return logits.argmax(1) == torch.from_numpy(np.asarray(experiment.evaluation.labels, dtype=np.int64))


@lru_cache(maxsize=2)
def read(name: str, layers: int, seed: int) -> tuple[Experiment, Tensor, Tensor, Tensor, Tensor]:
    """What the head reads of all samples, of length 1: train and test, and their labels."""
    own = {"model.pooled_layers": layers, "model.cache_frozen_layers": "never"}
    experiment = build(configuration(name, seed, 6.0, own), data=loaded(name, seed))
    found = []
    for examples in (experiment.engine.data, experiment.evaluation):
        every = np.arange(len(examples.lengths))
        found += [F.normalize(features_of(experiment, examples, every), dim=1)]
        found += [torch.from_numpy(np.asarray(examples.labels, dtype=np.int64))]
    return experiment, *found


def baseline(name: str, method: str, epsilon: float, seed: int) -> Tensor:
    """Which test samples a baseline gets right, bool ``[n]``."""
    layers = 1 if method.startswith("last ") else load_config(DEMO).model.pooled_layers
    of_seed = 0 if DATA[name].samples is None else seed
    experiment, train, labels, test, wanted = read(name, layers, of_seed)
    config = configuration(name, seed, epsilon)
    return classifier(method.removeprefix("last "), experiment, config, train, labels).predict(test) == wanted


def classifier(name: str, experiment: Experiment, config: Config, train: Tensor, labels: Tensor) -> LinearClassifier:
    """A baseline, fitted to the clients of ``config``."""
    known, classes = experiment.labels, experiment.data.num_labels
    participants = make_participants(
        config, partition_clients(config, experiment.data, experiment.train), experiment.train
    )
    clients = [ClientFeatures(p.client_id, train[p.samples], labels[p.samples]) for p in participants]
    ledgers = [p.ledger for p in participants if p.ledger is not None]
    if name == "texts":
        if known is None:
            raise NoTexts
        return zero_shot(known.directions)
    if name == "plain probe":
        return plain_probe(clients, classes)
    noise, target = noise_of(name, config.seed), float(config.privacy.target_epsilon or 0)
    if name == "means":
        budget = Budget(target, config.privacy.delta)
        own = [budget.ledger(client.client_id, len(client), len(client), 1) for client in clients]
        sums = [release_sums(client, classes, ledger, noise) for client, ledger in zip(clients, own, strict=True)]
        return class_means(sums, None if known is None else known.directions).classifier()
    plan = ProbePlan(config.federation.rounds, config.federation.local_steps)
    start = None
    if known is not None:
        temperature = config.model.head_temperature * experiment.config.model.head_scale / known.length
        start = zero_shot(known.directions, temperature)
    return linear_probe(clients, classes, plan, ledgers, SeededDraw(config.seed), noise, start)


class NoTexts(Exception):
    """The classes of a set have no texts, so that nothing can be told by them."""


def rows_of(path: Path) -> list[dict[str, str]]:
    """What is there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def bits_of(row: dict[str, str]) -> np.ndarray:
    """Which samples a row's model gets right, uint8 ``[n]``."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), dtype=np.uint8))[: int(row["samples"])]


def measure(name: str, method: str, epsilon: float, seed: int) -> dict[str, str | int | float]:
    """One row of the CSV."""
    find: Callable[[str, str, float, int], Tensor] = trained if method in TRAINED else baseline
    return row_of(name, method, epsilon, seed, find(name, method, epsilon, seed).numpy())


def row_of(name: str, method: str, epsilon: float, seed: int, right: np.ndarray) -> dict[str, str | int | float]:
    """A row of the CSV, of which samples are right: bool ``[n]``."""
    return {
        "data": name,
        "method": method,
        "epsilon": f"{epsilon:g}",
        "seed": seed,
        "accuracy": round(float(right.mean()), 6),
        "samples": len(right),
        "right": np.packbits(right).tobytes().hex(),
    }


def append(path: Path, row: dict[str, str | int | float]) -> None:
    """Writes a row down as soon as it is measured."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", choices=DATA, default=["movie-reviews"], help="which sets")
    parser.add_argument("--methods", nargs="+", default=[*BASELINES, "ffa", "lora"], help="which rows")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[6.0, 1.0], help="budgets")
    parser.add_argument("--output", type=Path, default=CSV, help="the CSV")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row["data"], row["method"], row["epsilon"], row["seed"]) for row in rows_of(asked.output)}
    for name in asked.data:
        for method, epsilon, seed in product(asked.methods, asked.epsilons, range(asked.seeds)):
            if (name, method, f"{epsilon:g}", str(seed)) in done:
                continue
            try:
                row = measure(name, method, epsilon, seed)
            except NoTexts:
                continue
            append(asked.output, row)
            print(name, method, epsilon, seed, row["accuracy"], flush=True)


if __name__ == "__main__":
    main()
