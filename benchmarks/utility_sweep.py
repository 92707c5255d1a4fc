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
import gc
import multiprocessing
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import concatenate_datasets
from utility_recipes import DEMO, Job, Recipe, configuration, recipes

from ffalora.baselines import ProbePlan, linear_probe, noise_of, zero_shot
from ffalora.baselines.clients import ClientFeatures
from ffalora.config import load_config
from ffalora.data.load import LoadedData
from ffalora.federated.compared import compare, features_of
from ffalora.federated.experiment import Experiment, build
from ffalora.federated.heads import head_layers
from ffalora.federated.simulate import evaluate_views, run_round
from ffalora.privacy.accountants import noise_multiplier_for
from ffalora.privacy.sampling import SeededDraw
from ffalora.runs.data import load_run_data
from ffalora.training.optim import lr_factor
from ffalora.training.rates import head_rate, noise_variance

COLUMNS = (
    "recipe", "path", "epsilon", "split", "seed", "accuracy", "tail_accuracy", "loss", "lr", "head_lr",
    "numbers", "seconds", "device",
)  # fmt: skip
BASELINES = "baseline: "
SAMPLES = 2334


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
            "head_lr": experiment.participants[0].head_lr,
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
    for participant in experiment.participants:
        participant.lr = lr
        participant.head_lr = recipe.head * head_rate(variance, width, factors) / config.model.head_scale


@torch.no_grad()
def start_at_probe(experiment: Experiment, share: float) -> None:
    """Starts the head where a private probe ends that takes ``share`` of μ²; training keeps the rest."""
    config, train = experiment.config, experiment.train
    every = torch.from_numpy(np.asarray(train.labels, dtype=np.int64))
    features = torch.nn.functional.normalize(
        features_of(experiment, experiment.engine.data, np.arange(len(every))), dim=1
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
    probe = linear_probe(clients, 2, plan, ledgers, draw, noise, start)
    head = head_layers(experiment.loaded.model)[0]
    head.weight.copy_(probe.weight / config.model.head_scale)
    head.bias.copy_(probe.bias)


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
    finally:
        gc.collect()  # what a run leaves holds the device's memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def choose(sweep: Sweep, epsilons: Sequence[float], lora: bool) -> dict[float, tuple[str, float]]:
    """The recipe of FFA-LoRA, or of LoRA, with the best sum over ε of its best path's score, and that path for each ε;
    of those with the most seeds that any has.
    """
    best: dict[str, dict[float, tuple[float, float]]] = {}
    for epsilon in epsilons:
        own = {n: s for n, s in sweep.scores(epsilon).items() if n[0].startswith("lora") == lora}
        most = max((seeds for _, seeds in own.values()), default=0)
        for (name, path), (score, seeds) in own.items():
            if seeds >= most - 2:
                paths = best.setdefault(name, {})
                paths[epsilon] = max(paths.get(epsilon, (-1.0, 0.0)), (score, path))
    whole = {name: paths for name, paths in best.items() if len(paths) == len(epsilons)}
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
    epsilons = (6.0, 1.0)
    every = {epsilon: recipes(epsilon)[:: 20 if asked.small else 1] for epsilon in epsilons}
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:
        sweep = Sweep(asked, pool)
        plans = {recipe.name: _plan_of(recipe) for recipe in every[epsilons[0]]}
        wanted = sorted({(epsilon, *plan) for epsilon in epsilons for plan in plans.values()})
        sigmas = dict(zip(wanted, pool.map(sigma_of, wanted, chunksize=1), strict=True))
        for keep, seeds, share in WAVES:
            todo = []
            for epsilon, each in every.items():
                scores = sweep.scores(epsilon)
                ranked = sorted(each, key=lambda r: scores.get((r.name, r.path), (0.0, 0))[0], reverse=True)[:keep]
                todo += [
                    Job(recipe, epsilon, "dev", seed, sigmas[(epsilon, *plans[recipe.name])])
                    for recipe in ranked
                    for seed in seeds
                ]
            half = len(todo) // 2
            mixed = [job for pair in zip(todo[:half], todo[half:], strict=True) for job in pair]
            sweep.add(sorted(mixed, key=lambda job: job.seed), share)
        chosen = {lora: choose(sweep, epsilons, lora) for lora in (False, True)}
        print("chosen", chosen, flush=True)
        sweep.add(final_jobs(every, chosen), 1.0)


#: Of each: how many recipes go on for each ε, with which further seeds, until which share of the time.
WAVES = ((1000, (100, 101), 0.5), (18, (102, 103), 0.63), (8, (104, 105, 106, 107), 0.75))


def final_jobs(every: dict[float, list[Recipe]], chosen: dict[bool, dict[float, tuple[str, float]]]) -> list[Job]:
    """The chosen recipes and the baselines on the test split."""
    jobs = []
    for seed in range(10):
        for epsilon, each in every.items():
            by_name = {(one.name, one.path): one for one in each}
            jobs += [Job(by_name[own[epsilon]], epsilon, "test", seed) for own in chosen.values() if own]
            for layers in (3, 1):
                read = Recipe(f"{layers} layers read", 0.0, (("model.pooled_layers", layers),))
                jobs.append(Job(read, epsilon, "test", seed))
    return jobs


def _plan_of(recipe: Recipe) -> tuple[int, int, int]:
    config = configuration(Job(recipe, 6.0, "dev", 0))
    return config.optimizer.batch_size, config.federation.rounds, config.federation.local_steps


if __name__ == "__main__":
    main()
