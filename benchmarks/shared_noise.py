"""Accuracy where the server adds the noise and where clients bring it in shares: ``benchmarks/data/shared_noise.csv``.

    python benchmarks/shared_noise.py [--seeds 3] [--noise 0.5]

The demo's data and model, clients as units, all of them in every round: noise of one σ by the server, and in shares at
several numbers of bits. A row is one seed of noise; ``std`` is that of the noise on each number of the sum over C.
What is there is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from checkout import ROOT
from csv_tables import extend_table, read_table

from ffalora.config import Config, load_config
from ffalora.federated.client_level import client_level_mean, make_client_level
from ffalora.federated.experiment import Experiment, build
from ffalora.federated.simulate import run_round

TABLE = ROOT / "benchmarks/data/shared_noise.csv"
COLUMNS = ("noise_at", "bits", "sigma", "seed", "clients", "rounds", "std", "accuracy")
VARIANTS = (("server", 0), ("clients", 16), ("clients", 12))
FEDERATION = {
    "methods": {}, "federation.strategy": "ffa", "federation.rounds": 4, "federation.local_steps": 1,
    "federation.evaluate_every": 4, "federation.weighting": "uniform", "optimizer.batch_size": 32, "baselines": False,
    "clients.count": 60, "clients.partition": "iid", "clients.proportions": None, "data.max_evaluation_samples": 1000,
    "privacy.unit": "client", "privacy.target_epsilon": None, "privacy.max_grad_norm": 0.5, "privacy.delta": 1e-3,
    "privacy.accountant": "rdp", "privacy.noise": "seeded",
}  # fmt: skip


def configuration(sigma: float, seed: int, noise_at: str, bits: int) -> Config:
    """Of one row."""
    changes = {"seed": seed, "privacy.noise_multiplier": sigma, "privacy.noise_at": noise_at}
    changes |= {"privacy.sum_bits": bits} if bits else {}
    return load_config(ROOT / "ffalora/configs/demo.yaml", FEDERATION | changes)


def measured(experiment: Experiment, config: Config) -> tuple[float, float]:
    """Standard deviation of the noise over C, and accuracy after all rounds; the experiment is left as it was."""
    adapters, clients = experiment.adapters, len(experiment.participants)
    level = make_client_level(config, clients, "", adapters.layout.size)
    experiment.client_level, experiment.mean = level, client_level_mean(level, adapters)
    server = experiment.strategy.begin()
    start = server.row.clone()
    for _ in range(config.federation.rounds):
        row = run_round(experiment, server)
    adapters.layout.scatter(start)
    for participant in experiment.participants:
        participant.steps_taken = 0
    return level.noise_std / config.privacy.max_grad_norm, row["metrics"]["accuracy"]


def rows(sigma: float, seeds: int, known: set[tuple[str, ...]]) -> Iterator[dict[str, object]]:
    """Those that are not ``known``; data and clients are those of seed 0, the noise is each seed's own."""
    experiment = build(configuration(sigma, 0, *VARIANTS[0]))
    for seed in range(seeds):
        for noise_at, bits in VARIANTS:
            if (noise_at, str(bits), f"{sigma:g}", str(seed)) in known:
                continue
            config = configuration(sigma, seed, noise_at, bits)
            std, accuracy = measured(experiment, config)
            yield dict(
                noise_at=noise_at, bits=bits, sigma=f"{sigma:g}", seed=seed, clients=len(experiment.participants),
                rounds=config.federation.rounds, std=f"{std:.5f}", accuracy=f"{accuracy:.4f}",
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, default=0.5, help="σ")
    given = parser.parse_args()
    known = {(r["noise_at"], r["bits"], r["sigma"], r["seed"]) for r in read_table(TABLE)}
    for row in rows(given.noise, given.seeds, known):
        extend_table(TABLE, COLUMNS, [row])
        print(row, flush=True)


if __name__ == "__main__":
    main()
