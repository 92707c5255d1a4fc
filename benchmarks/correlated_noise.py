"""What correlated noise saves and costs: ``python benchmarks/correlated_noise.py optimisers|time|accuracy``.

* ``optimisers``: error of the state after steps of pure noise, by optimiser and schedule, relative to independent noise
  of the same ε.
* ``time``: seconds of a private step with each mechanism, alternating, on the demo's model and data.
* ``accuracy``: the demo's FFA-LoRA with each mechanism at the same ε, a few seeds; rows go to
  ``benchmarks/data/correlated_noise.csv``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from csv_tables import extend_table

from ffalora.config import OptimizerConfig, load_config
from ffalora.privacy.accountants import noise_multiplier_for
from ffalora.privacy.correlated_noise import CorrelatedNoise
from ffalora.privacy.correlation import MECHANISMS
from ffalora.privacy.factors import choose_noise
from ffalora.training.optim import Moments, lr_factor
from ffalora_kernels import privatize_step_

DATA = Path(__file__).parent / "data" / "correlated_noise.csv"
DEMO = Path(__file__).parents[1] / "ffalora" / "configs" / "demo.yaml"
STEPS, RATE, EPSILON, DELTA = 40, 64 / 2331, 8.0, 1e-5
#: Gradient beside the noise for Adam, in units of the clipping norm.
GRADIENT, NUMBERS = 0.2, 4000


def noise_of(mechanism: str) -> torch.Tensor:
    """The noise of all steps, float64 ``[T,P]``, at the same ε."""
    rows = torch.randn(STEPS, NUMBERS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if mechanism == "independent":
        return noise_multiplier_for(EPSILON, DELTA, RATE, STEPS) * rows
    correlation, sigma = choose_noise(mechanism, STEPS, RATE, DELTA, EPSILON, None)
    noise = CorrelatedNoise.begin(correlation, NUMBERS)
    for row in rows:
        noise.shape_(row)
    return sigma * correlation.sensitivity * rows


def errors(noise: torch.Tensor, optimizer: OptimizerConfig) -> np.ndarray:
    """RMS error of the state, mean over the steps and after the last; for Adam relative to how far it moved."""
    state, moments, one = torch.zeros(1, NUMBERS), Moments.zeros(optimizer, 1, NUMBERS), torch.ones(1).double()
    is_adam, states = optimizer.name == "adamw", []
    for step, row in enumerate(noise):
        moments.age += 1
        privatize_step_(
            state, (row + GRADIENT * is_adam)[None], client_id=moments.age, step=moments.age, noise_std=0 * one,
            denominator=one, lr=one * lr_factor(optimizer, step, STEPS), key=0, optimizer=optimizer.name,
            beta1=optimizer.beta1 if is_adam else optimizer.momentum, **moments.tensors(),
        )  # fmt: skip
        states.append(state[0].double())
    path = torch.stack(states)
    moved = path.mean(1, keepdim=True)
    square = (path - moved * is_adam).square()
    return np.array([square.mean().sqrt(), square[-1].mean().sqrt()]) / (abs(float(moved[-1])) if is_adam else 1.0)


def compare_optimisers() -> None:
    noise = {mechanism: noise_of(mechanism) for mechanism in MECHANISMS}
    for changes in (
        {},
        {"momentum": 0.9},
        {"schedule": "cosine"},
        {"name": "adamw"},
        {"name": "adamw", "schedule": "cosine"},
    ):
        optimizer = OptimizerConfig(**changes)
        alone = errors(noise["independent"], optimizer)
        found = {m: (errors(noise[m], optimizer) / alone).round(2).tolist() for m in MECHANISMS[1:]}
        print(changes or "sgd", found)


def compare_times(rounds: int) -> None:
    """One model and one engine; only the clients' ledgers differ."""
    from ffalora.federated.experiment import build, make_participants
    from ffalora.federated.simulate import run_round

    built = build(_config("independent", 0))
    runs, seconds = {}, {mechanism: [] for mechanism in MECHANISMS}
    for mechanism in MECHANISMS:
        config = _config(mechanism, 0).with_noise("seeded")
        participants = make_participants(config, built.partition, built.train)
        for participant in participants:
            participant.lr = 0.1
        runs[mechanism] = replace(built, config=config, participants=participants)
    servers = {mechanism: run.strategy.begin() for mechanism, run in runs.items()}
    for _ in range(rounds + 1):  # the first round warms up
        for mechanism, run in runs.items():
            started = time.perf_counter()
            run_round(run, servers[mechanism])
            seconds[mechanism].append(time.perf_counter() - started)
    alone = np.array(seconds["independent"][1:])
    for mechanism in MECHANISMS:
        own = np.array(seconds[mechanism][1:])
        print(f"{mechanism:<12} median {np.median(own):.4f} s a round, ratio {np.median(own / alone):.4f}", flush=True)


def compare_accuracy(seeds: range, epsilons: list[float]) -> None:
    from ffalora.federated.simulate import simulate

    for epsilon, seed, mechanism in product(epsilons, seeds, MECHANISMS):
        with tempfile.TemporaryDirectory() as folder:
            config = _config(mechanism, seed, epsilon)
            metrics = simulate(config, Path(folder) / "run", progress=False).summary["metrics"]
        row = {"epsilon": epsilon, "mechanism": mechanism, "seed": seed}
        row |= {name: round(metrics[name], 5) for name in ("accuracy", "loss")}
        extend_table(DATA, tuple(row), [row])


def _config(mechanism: str, seed: int, epsilon: float = 6.0):
    given = {"seed": seed, "privacy.mechanism": mechanism, "privacy.target_epsilon": epsilon, "baselines": False}
    return load_config(DEMO, given | {"federation.evaluate_every": 1000, "methods": {}}).runs()["ffa"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("optimisers", "time", "accuracy"))
    parser.add_argument("--rounds", type=int, default=30, help="time: of each mechanism")
    parser.add_argument("--seeds", type=int, default=3, help="accuracy: how many")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[6.0], help="accuracy: targets")
    chosen = parser.parse_args()
    if chosen.what == "optimisers":
        compare_optimisers()
    elif chosen.what == "time":
        compare_times(chosen.rounds)
    else:
        compare_accuracy(range(chosen.seeds), chosen.epsilons)


if __name__ == "__main__":
    main()
