"""What options add to the demo's recipe, on development data: tweets, ε = 3, seeds from 100 on.

    python benchmarks/utility_ablation.py [--seeds 100 101] [--options ffa lalora …]

Every seed holds a quarter of the training and validation rows out, and draws its own clients, Poisson samples and
noise; options share them. One row a result in benchmarks/data/utility_ablation.csv, with the columns of utility.csv;
what is there is not run again; ``utility_table.py`` makes the table. ``average`` rows are of the same run as the row
whose name they begin with: an average over rounds changes nothing in training.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import concatenate_datasets
from utility import append, configuration, loaded, right_of, row_of, rows_of
from utility_table import OPTIONS_CSV

from ffalora.data.load import LoadedData
from ffalora.federated.averaging import average_in
from ffalora.federated.experiment import build
from ffalora.federated.simulate import run_round

DATA, EPSILON, BASE = "tweets", 3.0, "ffa"
#: By name: what differs from the demo's configuration, and what its rates, which follow from the noise, are multiplied
#: with.
OPTIONS: dict[str, tuple[dict[str, Any], float]] = {
    BASE: ({}, 1.0),
    "constant rate": ({"optimizer.schedule": "constant"}, 1.0),
    "low-pass .5": ({"optimizer.momentum": 0.5, "optimizer.keep_moments": True}, 0.5),
    "low-pass .8": ({"optimizer.momentum": 0.8, "optimizer.keep_moments": True}, 0.2),
    "lora": ({"federation.strategy": "lora"}, 1.0),
    "lora+": ({"federation.strategy": "lora", "optimizer.a_lr_factor": 0.1}, 1.0),
    "lalora": ({"federation.strategy": "lalora"}, 1.0),
    "prism": ({"federation.strategy": "prism"}, 1.0),
    "rolora": ({"federation.strategy": "rolora"}, 1.0),
    "views 4, word dropout .1": ({"data.views": 4, "data.augment": "word-dropout", "data.augment_rate": 0.1}, 1.0),
    "fedsvd": ({"federation.strategy": "fedsvd"}, 1.0),
    "no adapters": ({}, 1e-6),
}
#: Which runs are averaged, and how: from the middle on, all rounds alike or each at .8 of the next one's weight.
AVERAGED, AVERAGES = (BASE, "constant rate"), {"tail average": 1.0, "exponential average": 0.8}


@cache
def development(seed: int) -> LoadedData:
    """The rows that may be looked at, a quarter of them held out."""
    data = loaded(DATA, seed)
    rows = concatenate_datasets([data.splits["train"], data.splits["validation"]])
    order, held = np.random.default_rng(seed).permutation(len(rows)), len(rows) // 4
    return replace(data, splits={"train": rows.select(order[held:]), "validation": rows.select(order[:held])})


def run(option: str, seed: int) -> dict[str, torch.Tensor]:
    """Which held-out samples each result of an option gets right, bool ``[n]``, by the result's name."""
    changes, times = OPTIONS[option]
    changes = changes | {"data.evaluate_on": "validation"}
    experiment = build(configuration(DATA, seed, EPSILON, changes), data=development(seed))
    for participant in experiment.participants:
        if participant.lr is not None:
            participant.lr *= times
        if participant.head_lr is not None and option != "no adapters":
            participant.head_lr *= times
    federation, server = experiment.config.federation, experiment.strategy.begin()
    averages = {name: replace(server, tensors={}) for name in AVERAGES} if option in AVERAGED else {}
    for _ in range(federation.rounds):
        run_round(experiment, server)
        for name, average in averages.items():
            average.row, average.round = server.row, server.round - 1
            average_in(average, federation.model_copy(update={"average_from": 0.5, "average_decay": AVERAGES[name]}))
    found = {option: server} | {f"{option}, {name}": average for name, average in averages.items()}
    right = {}
    for name, state in found.items():
        row, _ = next(iter(experiment.strategy.views(state)))
        experiment.strategy.load(state, row)
        right[name] = right_of(experiment)
    return right


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101], help="which")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS), help="which")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for seed in asked.seeds:
        for option in asked.options:
            if not any(row["method"] == option and row["seed"] == str(seed) for row in rows_of(OPTIONS_CSV)):
                for name, right in run(option, seed).items():
                    append(OPTIONS_CSV, row_of(DATA, name, EPSILON, seed, right.numpy()))
                    print(name, seed, float(right.float().mean()), flush=True)


if __name__ == "__main__":
    main()
