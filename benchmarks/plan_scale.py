"""What ``ffalora plan`` predicts beside what is measured at sizes that run here: seconds, memory, bytes.

    python benchmarks/plan_scale.py --clients 400 1200 3000 --drawn 100
    python benchmarks/plan_scale.py --run
    python benchmarks/plan_scale.py --clients 1200 --drawn 100 --processes 2

Federations (``ffalora plan --clients``): the plan is made from a federation of 64 clients of a tiny encoder, the run of
each size in processes of its own; what is measured is the time from one round to the next, the files of the run
included. ``--run``: MiniLM on the movie reviews with three clients, all rounds (``ffalora plan``). Each
comparison is a row of ``benchmarks/data/plan_scale.csv``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from csv_tables import extend_table
from federation_scale import save_model, save_texts

from ffalora.config import Config, from_mapping
from ffalora.federated.experiment import build
from ffalora.federated.simulate import Run, run_round, simulate
from ffalora.planning.measure import peak_bytes
from ffalora.planning.plan import make_plans
from ffalora.planning.scale import at_scale, measure_pace
from ffalora.training.workers import joined

_OWN, _SAMPLES = 64, 20
TABLE = Path(__file__).with_name("data") / "plan_scale.csv"
COLUMNS = ("job", "clients", "drawn", "processes", "strategy", "quantity", "predicted", "measured", "ratio")


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
                "strategy": strategy, "rounds": 5, "local_steps": 4, "participation": drawn / clients,
                "evaluate_every": 100,
            },
            "optimizer": {"lr": 1.0, "batch_size": 8},
            "privacy": {"unit": "sample", "noise_multiplier": 1.0, "noise": "seeded"},
            "baselines": False,
        }
    )  # fmt: skip


def reviews() -> Config:
    """A private run of three clients that evaluates after every round."""
    return from_mapping(
        {
            "model": {"name": "all-MiniLM-L6-v2"},
            "data": {"name": "movie-reviews", "max_evaluation_samples": 400},
            "clients": {"count": 3},
            "federation": {"rounds": 5, "local_steps": 2},
            "optimizer": {"batch_size": 64},
            "privacy": {"unit": "sample", "noise": "seeded", "target_epsilon": 6.0, "accountant": "rdp"},
            "baselines": False,
        }
    )


def predict(folder: Path, arguments: argparse.Namespace) -> None:
    """Prints the plans as JSON: seconds, bytes up, bytes held."""
    experiment = build(job(folder, _OWN, _OWN, arguments.strategy))
    pace = measure_pace(experiment)
    plans = [at_scale(experiment, pace, size, arguments.drawn, arguments.processes) for size in arguments.clients]
    print(json.dumps([(plan.simulated, plan.up, plan.process_bytes) for plan in plans]))


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Runs a federation, and prints what was measured in the first process as JSON: the least seconds from one round to
    the next, of those between the first and the last, which evaluates; what a client sends in each; the peak.
    """
    (clients,) = arguments.clients
    with joined() as workers:
        config = workers.from_lead(lambda: job(folder, clients, arguments.drawn, arguments.strategy))
        experiment, found = build(config), []
        experiment.workers = workers
        run = Run.open(experiment, folder / f"run-{clients}", resume=False)
        for _ in range(config.federation.rounds):
            started = time.perf_counter()
            workers.from_lead(partial(run.complete_round, run_round(experiment, run.server)))
            found.append(time.perf_counter() - started)
        if workers.leads:
            held = peak_bytes(experiment.engine.device)
            print(json.dumps((min(found[1:-1]), run.rows[-1]["bytes_up"] // arguments.drawn, held)))


def compare_run() -> None:
    """A whole run beside its plan."""
    config = reviews()
    plan = make_plans(config).own
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(config, Path(folder, "run"), progress=False)
    sent = result.summary["bytes_up"] // 3
    record("run of MiniLM", 3, 3, 1, "ffa", (plan.seconds, plan.bytes_up), (result.summary["seconds"], sent))


def record(job: str, clients: int, drawn: int, processes: int, strategy: str, wanted: tuple, found: tuple) -> None:
    """Prints comparisons, and adds them to the table. ``wanted`` and ``found``: seconds, bytes up, bytes held."""
    rows = []
    for name, predicted, measured in zip(("seconds", "bytes up", "bytes held"), wanted, found, strict=False):
        values = (f"{predicted:.4g}", f"{measured:.4g}", f"{predicted / measured:.2f}")
        rows.append(dict(zip(COLUMNS, (job, clients, drawn, processes, strategy, name, *values), strict=True)))
        print(f"{job}, {clients} clients, {name}: {values[0]} predicted, {values[1]} measured, {values[2]}", flush=True)
    extend_table(TABLE, COLUMNS, rows)


def alone(arguments: argparse.Namespace, *more: object, processes: int = 1) -> list:
    """What this script says with other arguments, in a process of its own or several."""
    shared = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    same = ["--drawn", arguments.drawn, "--strategy", arguments.strategy, "--processes", arguments.processes]
    command = [sys.executable, *shared, __file__, *map(str, (*same, *more))]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


def compare_federations(arguments: argparse.Namespace) -> None:
    """Federations beside their plans, each in processes of its own."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        alone(arguments, "--save", folder)
        plans = alone(arguments, "--clients", *arguments.clients, "--predict", folder)
        for plan, clients in zip(plans, arguments.clients, strict=True):
            measured = alone(arguments, "--clients", clients, "--measure", folder, processes=arguments.processes)
            record("federation", clients, arguments.drawn, arguments.processes, arguments.strategy, plan, measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000])
    parser.add_argument("--drawn", type=int, default=100)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", default="ffa")
    parser.add_argument("--run", action="store_true")
    for part in ("--save", "--predict", "--measure"):
        parser.add_argument(part, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        save_model(arguments.save / "model", 64)
        print("null")
    elif arguments.predict:
        predict(arguments.predict, arguments)
    elif arguments.measure:
        measure(arguments.measure, arguments)
    elif arguments.run:
        compare_run()
    else:
        compare_federations(arguments)


if __name__ == "__main__":
    main()
