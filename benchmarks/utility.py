"""Accuracy at a privacy budget on test splits: fine-tuning at its defaults beside what needs no fine-tuning.

    python benchmarks/utility.py [--methods probe means texts ffa lora] [--seeds 10] [--epsilons 6 1]
    python benchmarks/utility.py --table

The demo's configuration (movie reviews, three clients with skewed labels); every seed draws its own clients, Poisson
samples and noise. ``probe``, ``means`` and ``texts`` read what the run's head reads, several layers; ``last probe``,
``last means`` and ``last texts`` the last layer alone, as is usual. ``plain probe`` keeps no privacy. One row a run in
benchmarks/data/utility.csv; ``right`` has one bit a test sample, hexadecimal, so that the table's intervals (95%,
resampling seeds and test samples, paired) follow from the file. What is there is not run again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from functools import cache
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
from ffalora.federated.compared import features_of
from ffalora.federated.experiment import Experiment, build, make_participants, partition_clients
from ffalora.federated.simulate import run_round
from ffalora.privacy.sampling import SeededDraw
from ffalora.runs.evaluation import predict_examples

ROOT = Path(__file__).parents[1]
DEMO, CSV = ROOT / "ffalora" / "configs" / "demo.yaml", ROOT / "benchmarks" / "data" / "utility.csv"
COLUMNS = ("method", "epsilon", "seed", "accuracy", "samples", "right")
TRAINED = ("ffa", "lora")
BASELINES = ("texts", "means", "probe", "plain probe", "last texts", "last means", "last probe", "last plain probe")


def configuration(seed: int, epsilon: float, changes: dict | None = None) -> Config:
    """The demo with another seed and budget."""
    own = {"methods": {}, "seed": seed, "privacy.target_epsilon": epsilon, "baselines": False}
    return load_config(DEMO, own | {"federation.evaluate_every": 1000} | (changes or {}))


def trained(method: str, epsilon: float, seed: int) -> Tensor:
    """Which test samples a fine-tuned model gets right, bool ``[n]``."""
    experiment = build(configuration(seed, epsilon, {"federation.strategy": method}))
    server = experiment.strategy.begin()
    for _ in range(experiment.config.federation.rounds):
        run_round(experiment, server)
    experiment.strategy.load(server)
    logits = predict_examples(experiment.engine.model, experiment.evaluation, experiment.engine.device)
    return logits.argmax(1) == torch.from_numpy(np.asarray(experiment.evaluation.labels, dtype=np.int64))


@cache
def read(layers: int) -> tuple[Experiment, Tensor, Tensor, Tensor, Tensor]:
    """What the head reads of all samples, of length 1: train and test, and their labels."""
    experiment = build(configuration(0, 6.0, {"model.pooled_layers": layers}))
    found = []
    for examples in (experiment.engine.data, experiment.evaluation):
        every = np.arange(len(examples.lengths))
        found += [F.normalize(features_of(experiment, examples, every), dim=1)]
        found += [torch.from_numpy(np.asarray(examples.labels, dtype=np.int64))]
    return experiment, *found


def baseline(method: str, epsilon: float, seed: int) -> Tensor:
    """Which test samples a baseline gets right, bool ``[n]``."""
    last, _, name = method.rpartition("last ")
    layers = 1 if last or method.startswith("last ") else load_config(DEMO).model.pooled_layers
    experiment, train, labels, test, wanted = read(layers)
    return classifier(name, experiment, configuration(seed, epsilon), train, labels).predict(test) == wanted


def classifier(name: str, experiment: Experiment, config: Config, train: Tensor, labels: Tensor) -> LinearClassifier:
    """A baseline, fitted to the clients of ``config``."""
    known = experiment.labels
    if known is None:
        raise SystemExit("the demo's classes have no texts")
    participants = make_participants(
        config, partition_clients(config, experiment.data, experiment.train), experiment.train
    )
    clients = [ClientFeatures(p.client_id, train[p.samples], labels[p.samples]) for p in participants]
    ledgers = [p.ledger for p in participants if p.ledger is not None]
    if name == "texts":
        return zero_shot(known.directions)
    if name == "plain probe":
        return plain_probe(clients, 2)
    noise, target = noise_of(name, config.seed), float(config.privacy.target_epsilon or 0)
    if name == "means":
        budget = Budget(target, config.privacy.delta)
        own = [budget.ledger(client.client_id, len(client), len(client), 1) for client in clients]
        sums = [release_sums(client, 2, ledger, noise) for client, ledger in zip(clients, own, strict=True)]
        return class_means(sums, known.directions).classifier()
    plan = ProbePlan(config.federation.rounds, config.federation.local_steps)
    start = zero_shot(
        known.directions, config.model.head_temperature * experiment.config.model.head_scale / known.length
    )
    return linear_probe(clients, 2, plan, ledgers, SeededDraw(config.seed), noise, start).classifier


def rows_of(path: Path) -> list[dict[str, str]]:
    """What is there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, str]], first: str = "ffa", draws: int = 10_000) -> list[str]:
    """One line a method and ε: mean, spread over seeds, and how far ``first`` is above it, on the seeds of both."""
    right: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for row in rows:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), dtype=np.uint8))[: int(row["samples"])]
        right.setdefault((row["epsilon"], row["method"]), {})[row["seed"]] = bits
    lines = [
        "| ε | method | seeds | accuracy | sd over seeds | ffa is above it by (95% interval) |",
        "|---|---|---|---|---|---|",
    ]
    for (epsilon, method), own in sorted(right.items(), key=lambda item: (-float(item[0][0]), item[0][1])):
        accuracy = np.array([bits.mean() for bits in own.values()])
        spread = f"{accuracy.std(ddof=1):.4f}" if len(own) > 1 else ""
        both = sorted(set(own) & set(right.get((epsilon, first), {})))
        ahead = ""
        if both and method != first:
            mean, low, high = paired(np.stack([right[epsilon, first][s].astype(float) - own[s] for s in both]), draws)
            ahead = f"{mean:+.4f} ({low:+.4f} to {high:+.4f}; {len(both)} seeds)"
        lines.append(f"| {epsilon} | {method} | {len(own)} | {accuracy.mean():.4f} | {spread} | {ahead} |")
    return lines


def paired(differences: np.ndarray, draws: int) -> tuple[float, float, float]:
    """Mean of ``[seeds, samples]`` and its 95% interval, both axes resampled."""
    rng, (seeds, samples) = np.random.default_rng(0), differences.shape
    means = np.empty(draws)
    for number in range(draws):
        by_seed = differences[rng.integers(0, seeds, seeds)].mean(0)
        means[number] = by_seed[rng.integers(0, samples, samples)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def main() -> None:
    """Runs what is missing, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=[*BASELINES, *TRAINED], help="which rows")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[6.0, 1.0], help="budgets")
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    parser.add_argument("--output", type=Path, default=CSV, help="the CSV")
    asked = parser.parse_args()
    if asked.table:
        print("\n".join(table(rows_of(asked.output))))
        return
    torch.set_num_threads(1)
    done = {(row["method"], row["epsilon"], row["seed"]) for row in rows_of(asked.output)}
    for seed in range(asked.seeds):
        for epsilon in asked.epsilons:
            for method in asked.methods:
                if (method, f"{epsilon:g}", str(seed)) in done:
                    continue
                find: Callable[[str, float, int], Tensor] = trained if method in TRAINED else baseline
                right = find(method, epsilon, seed).numpy()
                row = {"method": method, "epsilon": f"{epsilon:g}", "seed": seed, "accuracy": round(right.mean(), 6)}
                row |= {"samples": len(right), "right": np.packbits(right).tobytes().hex()}
                is_new = not asked.output.exists()
                with asked.output.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    if is_new:
                        writer.writeheader()
                    writer.writerow(row)
                print(method, epsilon, seed, row["accuracy"], flush=True)


if __name__ == "__main__":
    main()
