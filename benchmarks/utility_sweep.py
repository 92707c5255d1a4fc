"""Recipes for private fine-tuning, compared on development data alone, and the best of them once on the test split.

    python benchmarks/utility_sweep.py --output sweep.csv [--device cuda] [--processes 12] [--seconds 330] [--small]

Whole runs of the demo's task (movie reviews, three clients with skewed labels) by ``ffalora.federated``. Development
cuts its own hold-out from the training and validation rows, another for each seed from 100 on. Waves: every recipe with
two seeds; the better ones with more; then, by a rule that is fixed before (``choose``), the best one for the test split
with seeds 0 to 9, which no choice depends on. One row a finished run is appended to the CSV: what is there is not run
again. ``--small`` shrinks everything, to try the script itself.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import multiprocessing
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import concatenate_datasets

from ffalora.baselines import ProbePlan, linear_probe, noise_of, zero_shot
from ffalora.baselines.clients import ClientFeatures
from ffalora.config import Config, load_config
from ffalora.data.load import LoadedData
from ffalora.federated.compared import _features, compare
from ffalora.federated.experiment import Experiment, build
from ffalora.federated.heads import head_layers
from ffalora.federated.simulate import evaluate_views, run_round
from ffalora.privacy.accountants import noise_multiplier_for
from ffalora.privacy.sampling import SeededDraw
from ffalora.runs.data import load_run_data
from ffalora.training.optim import lr_factor
from ffalora.training.rates import head_rate, noise_variance

DEMO = Path(__file__).parents[1] / "ffalora" / "configs" / "demo.yaml"
COLUMNS = (
    "recipe", "path", "epsilon", "split", "seed", "accuracy", "tail_accuracy", "loss", "lr", "head_lr_factor",
    "numbers", "seconds", "device",
)  # fmt: skip
BASELINES = "baseline: "
SAMPLES = 2334


@dataclass(frozen=True)
class Recipe:
    """What is tried.

    Attributes:
        changes: dotted keys of the configuration in which it differs from the demo.
        path: how far all steps together may carry an adapter, in its units (rate times the sum of the schedule).
        head: the head's rate, relative to what its noise allows.
        probe_share: share of the squared signal (of μ²) that a private probe takes first, where the head then starts.
    """

    name: str
    path: float
    changes: tuple[tuple[str, Any], ...] = ()
    head: float = 1.0
    probe_share: float = 0.0


@dataclass(frozen=True)
class Job:
    """One run, or (``recipe.path`` 0) the baselines of its data."""

    recipe: Recipe
    epsilon: float
    split: str
    seed: int
    sigma: float | None = None
    device: str = "cpu"
    small: bool = False
    deadline: float = float("inf")

    @property
    def key(self) -> tuple[str, ...]:
        """Of its row."""
        return (self.recipe.name, f"{self.recipe.path:g}", f"{self.epsilon:g}", self.split, str(self.seed))


def configuration(job: Job) -> Config:
    """The run that a job is."""
    changes: dict[str, Any] = {
        "methods": {},
        "seed": job.seed,
        "device": job.device,
        "baselines": False,
        "data.evaluate_on": "test" if job.split == "test" else "validation",
        "adapter.layers_to_transform": [4, 5],
        "optimizer.batch_size": 512,
        "optimizer.token_budget": 16384 if job.device != "cpu" else None,
        "federation.one_pass": "auto",
        "privacy.target_epsilon": job.epsilon,
    } | dict(job.recipe.changes)
    if job.sigma is not None:
        changes |= {"privacy.target_epsilon": None, "privacy.noise_multiplier": job.sigma}
    if job.small:
        changes |= {"federation.rounds": 2, "federation.local_steps": 1, "optimizer.batch_size": 16}
    changes["federation.evaluate_every"] = changes.get("federation.rounds", 25)
    return load_config(DEMO, changes)


@cache
def data_of(split: str, seed: int, small: bool) -> LoadedData:
    """The demo's own splits, or a hold-out of one in eight from its training and validation rows."""
    data = load_run_data(load_config(DEMO))
    if split != "test":
        rows = concatenate_datasets([data.splits["train"], data.splits["validation"]])
        order = np.random.default_rng(seed).permutation(len(rows))
        held = round(len(rows) / 8)
        data = replace(data, splits={"train": rows.select(order[held:]), "validation": rows.select(order[:held])})
    if small:
        data = replace(data, splits={name: each.select(range(120)) for name, each in data.splits.items()})
    return data


def run(job: Job) -> list[dict[str, Any]] | None:
    """The rows of a job; None once its time is over."""
    if time.time() > job.deadline:
        return None
    torch.set_num_threads(1)
    started, config = time.perf_counter(), configuration(job)
    experiment = build(config, data=data_of(job.split, job.seed, job.small))
    row = dict(zip(COLUMNS, job.key, strict=False)) | {"device": job.device}
    if job.recipe.path == 0:
        found = compare(experiment)
        for each in found:
            each["recipe"] = f"{BASELINES}{each['name']}, {job.recipe.name}"
        return [
            row | {"recipe": each["recipe"], "accuracy": each["accuracy"], "seconds": time.perf_counter() - started}
            for each in found
        ]
    if job.recipe.probe_share:
        start_at_probe(experiment, job.recipe.probe_share)
    set_rates(experiment, job.recipe)
    server, rows = experiment.strategy.begin(), []
    for number in range(config.federation.rounds):
        metrics = run_round(experiment, server)["metrics"]
        if number + 1 > 0.6 * config.federation.rounds:
            rows.append(server.row.clone())
    server.row = torch.stack(rows).mean(0)
    return [
        row
        | {
            "accuracy": metrics["accuracy"],
            "tail_accuracy": evaluate_views(experiment, server)["accuracy"],
            "loss": metrics["loss"],
            "lr": experiment.participants[0].lr,
            "head_lr_factor": experiment.engine.optimizer.head_lr_factor,
            "numbers": experiment.adapters.layout.size,
            "seconds": time.perf_counter() - started,
        }
    ]


def set_rates(experiment: Experiment, recipe: Recipe) -> None:
    """The adapters' rate by their path, and the head's by its noise."""
    config, ledgers = experiment.config, [p.ledger for p in experiment.participants if p.ledger is not None]
    sizes = [ledger.dataset_size for ledger in ledgers]
    steps = config.federation.rounds * config.federation.local_steps
    factors = [lr_factor(config.optimizer, step, steps) for step in range(steps)]
    variance = noise_variance(ledgers, [size / sum(sizes) for size in sizes])
    width = head_layers(experiment.loaded.model)[0].in_features
    lr = recipe.path / sum(factors)
    factor = recipe.head * head_rate(variance, width, factors) / config.model.head_scale / lr
    engine = experiment.engine
    engine.optimizer = engine.optimizer.model_copy(update={"head_lr_factor": factor})
    for participant in experiment.participants:
        participant.lr = lr


@torch.no_grad()
def start_at_probe(experiment: Experiment, share: float) -> None:
    """Starts the head where a private probe ends that takes ``share`` of μ²; training keeps the rest."""
    config, train = experiment.config, experiment.train
    every = torch.from_numpy(np.asarray(train.labels, dtype=np.int64))
    features = torch.nn.functional.normalize(
        _features(experiment, experiment.engine.data, np.arange(len(every))), dim=1
    )
    clients, ledgers = [], []
    for participant in experiment.participants:
        ledger, samples = participant.ledger, participant.samples
        clients.append(ClientFeatures(participant.client_id, features[samples], every[samples]))
        ledgers.append(replace(ledger, noise_multiplier=ledger.noise_multiplier / share**0.5))
        participant.ledger = replace(ledger, noise_multiplier=ledger.noise_multiplier / (1 - share) ** 0.5)
    plan = ProbePlan(config.federation.rounds, config.federation.local_steps)
    start = zero_shot(experiment.labels.directions, config.model.head_temperature)
    draw, noise = SeededDraw(config.seed + 1000), noise_of("head", config.seed)
    probe = linear_probe(clients, 2, plan, ledgers, draw, noise, start).classifier
    head = head_layers(experiment.loaded.model)[0]
    head.weight.copy_(probe.weight / config.model.head_scale)
    head.bias.copy_(probe.bias)


def recipes() -> list[Recipe]:
    """Everything that is tried."""
    return [Recipe("base", path) for path in (10, 30)]


class Sweep:
    """The CSV, what is in it, and the workers."""

    def __init__(self, asked: argparse.Namespace, pool: Any):
        self.asked, self.pool, self.rows = asked, pool, []
        if asked.output.exists():
            with asked.output.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        self.end = time.time() + asked.seconds

    def add(self, jobs: Iterable[Job], share: float) -> None:
        """Runs what is not there yet, starting none after this share of the time."""
        deadline = self.end - (1 - share) * self.asked.seconds
        done = {tuple(row[name] for name in COLUMNS[:5]) for row in self.rows}
        done |= {(row["recipe"].rpartition(", ")[2], *list(row.values())[1:5]) for row in self.rows}
        todo = [
            replace(job, device=self.asked.device, small=self.asked.small, deadline=deadline)
            for job in jobs
            if job.key not in done
        ]
        for found in self.pool.imap_unordered(guarded, todo):
            for row in found or ():
                new = not self.asked.output.exists()
                with self.asked.output.open("a", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS, restval="")
                    if new:
                        writer.writeheader()
                    writer.writerow(row)
                self.rows.append({name: str(row.get(name, "")) for name in COLUMNS})
        print(f"{len(todo)} jobs, {len(self.rows)} rows, {self.end - time.time():.0f} s left", flush=True)

    def scores(self, epsilon: float) -> dict[tuple[str, float], tuple[float, int]]:
        """Mean accuracy of every recipe beside the median recipe of the same seed, and the number of seeds."""
        found: dict[tuple[str, float], dict[str, float]] = {}
        for row in self.rows:
            if row["split"] == "dev" and row["epsilon"] == f"{epsilon:g}" and float(row["path"]):
                found.setdefault((row["recipe"], float(row["path"])), {})[row["seed"]] = float(row["accuracy"])
        seeds = {seed for own in found.values() for seed in own}
        usual = {s: float(np.median([own[s] for own in found.values() if s in own])) for s in seeds}
        return {
            name: (float(np.mean([value - usual[s] for s, value in own.items()])), len(own))
            for name, own in found.items()
        }


def guarded(job: Job) -> list[dict[str, Any]] | None:
    """A job whose failure is printed, and does not end the others."""
    try:
        return run(job)
    except Exception as error:
        print(f"{job.key}: {type(error).__name__}: {error}", flush=True)
        return None


def choose(sweep: Sweep, epsilons: Iterable[float], least: int) -> dict[float, tuple[str, float]]:
    """The recipe with the best sum over ε of its best path's score, and that path for each ε; of those with at least
    ``least`` seeds.
    """
    best: dict[str, dict[float, tuple[float, float]]] = {}
    for epsilon in epsilons:
        for (name, path), (score, seeds) in sweep.scores(epsilon).items():
            if seeds >= least:
                own = best.setdefault(name, {})
                own[epsilon] = max(own.get(epsilon, (-1.0, 0.0)), (score, path))
    whole = {name: own for name, own in best.items() if len(own) == len(tuple(epsilons))}
    if not whole:
        return {}
    name = max(whole, key=lambda one: sum(score for score, _ in whole[one].values()))
    return {epsilon: (name, path) for epsilon, (_, path) in whole[name].items()}


def sigma_of(plan: tuple[float, int, int, int]) -> float:
    """The noise multiplier of a plan: ε, batch, rounds, local steps, for clients of the usual size."""
    epsilon, batch, rounds, local_steps = plan
    return noise_multiplier_for(epsilon, 1e-5, min(1.0, batch / SAMPLES), rounds * local_steps)


def main() -> None:
    """Sweeps, chooses and tests."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="CSV, appended to")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--seconds", type=float, default=1e9, help="no run starts after so many")
    parser.add_argument("--small", action="store_true", help="tiny runs, to try the script")
    asked = parser.parse_args()
    every, epsilons = recipes(), (6.0, 1.0)
    if asked.small:
        every = every[::8]
    by_name = {(one.name, float(one.path)): one for one in every}
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        sweep = Sweep(asked, pool)
        plans = {one: _plan_of(one) for one in every}
        wanted = sorted({(epsilon, *plan) for plan in plans.values() for epsilon in epsilons})
        sigmas = dict(zip(wanted, pool.map(sigma_of, wanted, chunksize=1), strict=True))

        def jobs(chosen: Iterable[Recipe], seeds: Iterable[int], epsilon: float) -> list[Job]:
            return [Job(r, epsilon, "dev", s, sigmas[(epsilon, *plans[r])]) for s in seeds for r in chosen]

        waves = [(len(every), (100, 101), 0.5), (16, (102, 103), 0.62), (6, range(104, 108), 0.74)]
        for keep, seeds, share in waves:
            todo = []
            for epsilon in epsilons:
                ranked = sorted(by_name, key=lambda n: sweep.scores(epsilon).get(n, (0.0, 0))[::-1][::-1], reverse=True)
                todo += jobs([by_name[name] for name in ranked[:keep]], seeds, epsilon)
            sweep.add(sorted(todo, key=lambda job: (job.seed, -job.epsilon)), share)
        chosen = choose(sweep, epsilons, least=2 if asked.small else 4)
        print("chosen", chosen, flush=True)
        final = []
        for seed in range(10):
            for epsilon, name in chosen.items():
                recipe = by_name[name]
                lora = dataclasses.replace(
                    recipe, name=f"{recipe.name} lora", changes=(*recipe.changes, ("federation.strategy", "lora"))
                )
                final += [Job(one, epsilon, "test", seed) for one in (recipe, lora, replace(recipe, path=0.0))]
        sweep.add(final, 1.0)


def _plan_of(recipe: Recipe) -> tuple[int, int, int]:
    config = configuration(Job(recipe, 6.0, "dev", 0))
    return config.optimizer.batch_size, config.federation.rounds, config.federation.local_steps


if __name__ == "__main__":
    main()
