"""Rounds of a real federation on this machine beside those of the simulator: seconds, the first round apart.

    python benchmarks/flower_rounds.py --clients 3 --rounds 4

MiniLM on the movie reviews, private, every layer adapted. A Flower round is the time from one row of ``metrics.jsonl``
to the next: messages, polling, processes, training, aggregation and evaluation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from ffalora.config import Config, from_mapping
from ffalora.federated.flower.loopback import run_on_loopback
from ffalora.federated.simulate import simulate
from ffalora.runs.folder import completed_rows


def job(clients: int, rounds: int, batch: int, local_steps: int) -> Config:
    """The federation that both run."""
    return from_mapping(
        {
            "model": {"name": "all-MiniLM-L6-v2", "cache_frozen_layers": "never"},
            "data": {"name": "movie-reviews", "max_evaluation_samples": 200},
            "adapter": {"target_modules": ["query", "key", "value"]},
            "clients": {"count": clients},
            "federation": {"rounds": rounds, "local_steps": local_steps, "weighting": "uniform"},
            "optimizer": {"batch_size": batch},
            "privacy": {"unit": "sample", "noise": "seeded", "noise_multiplier": 1.0, "accountant": "rdp"},
            "baselines": False,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--local-steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", choices=["flower", "SecAgg+"])
    arguments = parser.parse_args()
    config = job(arguments.clients, arguments.rounds, arguments.batch, arguments.local_steps)
    with tempfile.TemporaryDirectory() as place:
        simulate(config, Path(place, "simulator"), progress=False)
        simulated = show("simulator", Path(place, "simulator"))
        for name, limit in {"flower": None, "SecAgg+": 4.0}.items():
            if arguments.only in (None, name):
                run_on_loopback(config, Path(place, name), limit, shared_streams=True, timeout=300)
                show(name, Path(place, name), simulated)


def show(name: str, folder: Path, unit: float | None = None) -> float:
    """Prints the seconds of every round but the first; the median."""
    seconds = [row["seconds"] for row in completed_rows(folder, 10**6)][1:]
    median = statistics.median(seconds)
    print(f"{name:9} {median:.2f} s a round, {median / (unit or median):.2f} times; rounds: {seconds}", flush=True)
    return median


if __name__ == "__main__":
    main()
