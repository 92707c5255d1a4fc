"""What ``ffalora plan --clients`` predicts beside what is measured: seconds of a round, memory, bytes, at small sizes.

    python benchmarks/plan_scale.py --clients 1000 3000 10000 --drawn 100
    torchrun --nproc-per-node 2 benchmarks/plan_scale.py --clients 1000 --drawn 100

The plan is made in a process of its own, from a federation of 64 clients, before anything of the size is built.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from federation_scale import save_model, save_texts

from ffalora.config import Config, from_mapping
from ffalora.federated.experiment import build
from ffalora.federated.simulate import simulate
from ffalora.models import choose_device
from ffalora.planning.measure import peak_bytes
from ffalora.planning.scale import at_scale, measure_pace
from ffalora.training.workers import joined

_OWN, _SAMPLES = 64, 20


def job(folder: Path, clients: int, drawn: int, strategy: str) -> Config:
    """A federation of ``clients`` with 20 samples each, a tiny encoder, private."""
    texts = folder / f"texts-{clients}.csv"
    if not texts.exists():
        save_texts(texts, int(clients * _SAMPLES / 0.9) + 10)
    return from_mapping(
        {
            "model": {"name": str(folder / "model"), "dtype": "float32"},
            "data": {
                "name": str(texts), "max_length": 24, "validation_fraction": 0.0, "test_fraction": 0.1,
                "max_evaluation_samples": 100,
            },
            "clients": {"count": clients},
            "federation": {
                "strategy": strategy, "rounds": 4, "local_steps": 4, "participation": drawn / clients,
                "evaluate_every": 100,
            },
            "optimizer": {"lr": 1.0, "batch_size": 8},
            "privacy": {"unit": "sample", "noise_multiplier": 1.0, "noise": "seeded"},
            "baselines": False,
        }
    )  # fmt: skip


def predict(folder: Path, arguments: argparse.Namespace, processes: int) -> None:
    """Prints the plans as JSON."""
    experiment = build(job(folder, _OWN, _OWN, arguments.strategy))
    pace = measure_pace(experiment)
    plans = [at_scale(experiment, pace, clients, arguments.drawn, processes) for clients in arguments.clients]
    print(json.dumps([(plan.simulated, plan.process_bytes, plan.up) for plan in plans]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000])
    parser.add_argument("--drawn", type=int, default=100)
    parser.add_argument("--strategy", default="ffa")
    parser.add_argument("--predict", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.predict:
        predict(arguments.predict, arguments, arguments.processes)
        return
    with joined() as workers, tempfile.TemporaryDirectory() as own:
        folder = Path(workers.same_for_all(own))
        if workers.leads:
            save_model(folder / "model", 64)
            alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
            again = [*sys.argv, "--predict", str(folder), "--processes", str(workers.size)]
            said = subprocess.run(
                [sys.executable, *again], env=alone, capture_output=True, text=True, check=True
            ).stdout
            plans = json.loads(said.splitlines()[-1])
            for clients in arguments.clients:
                job(folder, clients, arguments.drawn, arguments.strategy)
        workers.same_for_all(None)
        for place, clients in enumerate(arguments.clients):  # ascending: the peak is that of the largest until then
            config = job(folder, clients, arguments.drawn, arguments.strategy)
            result = simulate(config, folder / f"run-{clients}", progress=False)
            if workers.leads:
                seconds = min(row["seconds"] for row in result.rounds[:-1])  # the last one evaluates
                found = (seconds, peak_bytes(choose_device(config.device)), result.summary["bytes_up_per_client_round"])
                for name, wanted, took in zip(("seconds", "bytes held", "bytes up"), plans[place], found, strict=True):
                    print(
                        f"{clients} clients, {name}: {wanted:.4g} predicted, {took:.4g} measured, {wanted / took:.2f}"
                    )
        workers.same_for_all(None)


if __name__ == "__main__":
    main()
