"""Private steps by one process, and shared by several, in turns: samples a second, each process with one thread.

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 benchmarks/ranks.py

The job is MiniLM on the movie reviews at one site, query, key and value of every layer adapted. While the first process
works alone, the others wait. Steps hold drawing, passes, clipping, the sum over processes, noise and update.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch.distributed as dist

from ffalora.config import Config, from_mapping
from ffalora.federated.experiment import build
from ffalora.federated.one_site import alone
from ffalora.training.workers import ALONE, Workers, joined


def job(batch: int) -> Config:
    """A private run of one site whose logical batches have this expected size."""
    return alone(
        from_mapping(
            {
                "model": {"name": "all-MiniLM-L6-v2", "cache_frozen_layers": "never"},
                "data": {"name": "movie-reviews"},
                "adapter": {"target_modules": ["query", "key", "value"]},
                "federation": {"rounds": 1000},
                "optimizer": {"batch_size": batch},
                "privacy": {"unit": "sample", "noise": "seeded", "noise_multiplier": 1.0, "accountant": "rdp"},
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128, help="expected size of a logical batch")
    parser.add_argument("--steps", type=int, default=2, help="logical steps of a turn")
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    with joined() as workers:
        experiment = build(job(arguments.batch))
        state = experiment.adapters.state()[None]
        found: dict[Workers, list[float]] = {ALONE: [], workers: []}
        for turn in range(arguments.turns + 1):
            for who, rates in found.items():
                dist.barrier()
                started = time.perf_counter()
                rows, taken = state.clone(), experiment.participants[0].steps_taken
                experiment.engine.workers = who
                if who is not ALONE or workers.leads:
                    report = experiment.engine.train(experiment.participants, rows, arguments.steps)
                dist.barrier()
                if turn and workers.leads:  # the first turn warms up
                    rates.append(float(report.samples.sum()) / (time.perf_counter() - started))
                for participant in experiment.participants:  # every turn takes the same steps
                    participant.steps_taken = taken
                    if participant.ledger is not None:
                        participant.ledger.steps_taken = taken
        if workers.leads:
            one, all_together = (statistics.median(rates) for rates in found.values())
            ratios = [b / a for a, b in zip(*found.values(), strict=True)]
            print(f"one process {one:.1f}, {workers.size} processes {all_together:.1f} samples a second (medians)")
            print(
                f"ratio of turns: median {statistics.median(ratios):.2f}, all {', '.join(f'{r:.2f}' for r in ratios)}"
            )


if __name__ == "__main__":
    main()
