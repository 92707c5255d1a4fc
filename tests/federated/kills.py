"""Kills private runs with SIGKILL at random moments, resumes them, and checks what is left each time.

``python tests/federated/kills.py --mode seeded --kills 25 --runs 3`` prints one JSON object a run. Every attempt is a
process of its own (forked after everything is imported), and writes a byte for each noisy result to a witness file the
moment the result exists: what the ledgers on the disk say must never be less.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from small_runs import CLIENT_LEVEL, PRIVATE, save_model, save_texts, small_config

from ffalora.federated import simulate as simulate_module
from ffalora.federated.simulate import simulate
from ffalora.privacy import client_level as client_level_module
from ffalora.runs.folder import CHECKPOINT, LEDGERS, METRICS, rows_of
from ffalora.training import step as step_module

MODES = {
    "seeded": PRIVATE | {"optimizer__momentum": 0.9, "optimizer__keep_moments": True},
    "secure": PRIVATE | {"privacy__noise": "secure"},
    "client-seeded": CLIENT_LEVEL,
    "client-secure": CLIENT_LEVEL | {"privacy__noise": "secure"},
}


class HalfWritten(AssertionError):
    """A file under its final name that cannot be read."""


def config_of(mode: str, folder: Path, rounds: int):
    model, texts = folder / "model", folder / "texts.csv"
    if not model.exists():
        save_model(model, layers=1)
        save_texts(texts, rows=60)
    changes = {"federation__rounds": rounds, "federation__evaluate_every": 1000, "data__max_evaluation_samples": 4}
    return small_config(model, texts, **MODES[mode] | changes)


def attempt(config, folder: Path, witness: Path, resume: bool, kill_after: float | None) -> bool:
    """One process that runs or resumes; True if it came to its end, False if it was killed.

    ``kill_after`` seconds count from its first noisy result; negative ones from its start.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _watch(witness)
            simulate(config, folder, resume=resume, progress=False)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after is not None:
        before, began = _size(witness), time.monotonic() if kill_after < 0 else None
        while began is None or time.monotonic() < began + abs(kill_after):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return _ended(status)
            if began is None and _size(witness) > before:
                began = time.monotonic()
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
    return _ended(os.waitpid(pid, 0)[1])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _ended(status: int) -> bool:
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise RuntimeError("an attempt failed by itself, see above")
    return True


def _watch(witness: Path) -> None:
    """Writes the names of the ledgers that a noisy result belongs to, as soon as it exists."""
    handle = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def wrap(module, name_of):
        real = module.privatize_step_

        def step(state, total, **options):
            real(state, total, **options)
            os.write(handle, "".join(f"{name_of(c)}\n" for c in options["client_id"].tolist()).encode())

        module.privatize_step_ = step

    if simulate_module.simulate is simulate:
        wrap(step_module, str)
        wrap(client_level_module, lambda _: "population")


def check_folder(folder: Path) -> None:
    """Every file with a final name can be read."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.suffix in (".partial", ".part"):
            continue
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():
                        file.get_tensor(name)
            elif path.suffix == ".jsonl":
                rows_of(path.read_bytes())
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".yaml":
                yaml.safe_load(path.read_text())
        except Exception as error:
            raise HalfWritten(f"{path}: {error}") from error


def charged(folder: Path) -> dict[str, int]:
    """Steps that the ledgers on the disk have counted, by name."""
    found = {p.stem: json.loads(p.read_text())["steps_taken"] for p in (folder / LEDGERS).glob("*.json")}
    if (folder / CHECKPOINT).exists():
        with safe_open(folder / CHECKPOINT, framework="pt") as file:
            ledgers = json.loads(file.metadata()["ffalora"])["ledgers"]
        for name, ledger in ledgers.items():
            found[name] = max(found.get(name, 0), ledger["steps_taken"])
    return found


def undercounted(folder: Path, witness: Path, names: set[str]) -> dict[str, int]:
    """Noisy results that no ledger on the disk has counted, by name; empty is as it must be."""
    results = Counter(witness.read_text().split()) if witness.exists() else Counter()
    counted = charged(folder)
    return {n: results[n] - counted.get(n, 0) for n in names if results[n] > counted.get(n, 0)}


def ledger_names(config) -> set[str]:
    return {"population"} if config.privacy.unit == "client" else {str(i) for i in range(config.clients.count)}


def one_run(mode: str, folder: Path, kills: int, rounds: int, rng: random.Random) -> dict:
    """A run that is killed up to ``kills`` times; then it may finish. Returns the counts."""
    config = config_of(mode, folder, rounds)
    run, witness = folder / "run", folder / "witness"
    attempt(config, folder / "whole", folder / "whole-witness", False, None)
    rows = [json.loads(line) for line in (folder / "whole" / METRICS).read_text().splitlines()]
    training = sum(row.get("seconds", 0.3) for row in rows)  # secure client-level runs keep them secret
    done, killed, attempts, secure = False, 0, 0, "secure" in mode
    while not done:
        limit = rng.uniform(0, 0.5) * training if rng.random() < 0.8 else -rng.uniform(0.05, 2)
        limit = limit if killed < kills else None
        done = attempt(config, run, witness, attempts > 0, limit)
        attempts += 1
        killed += not done
        check_folder(run)
        if secure and (missing := undercounted(run, witness, ledger_names(config))):
            raise AssertionError(f"{mode}: noisy results that no ledger counts: {missing}")
    results = Counter(witness.read_text().split())
    counted = charged(run)
    report = {
        "mode": mode,
        "rounds": rounds,
        "kills": killed,
        "half_written_files": 0,
        "noisy_results": sum(results[n] for n in ledger_names(config)),
        "charged_steps": sum(counted[n] for n in ledger_names(config)),
    }
    if secure:
        report["undercounted"] = 0
    else:
        report["bit_identical"] = _same_run(folder / "whole", run)
        if not report["bit_identical"]:
            raise AssertionError(f"{mode}: the resumed run differs from the uninterrupted one")
    return report


def _same_run(whole: Path, run: Path) -> bool:
    names = (CHECKPOINT, "adapter/adapter_model.safetensors", "adapter/head.safetensors", "privacy.txt")
    same = all((whole / n).read_bytes() == (run / n).read_bytes() for n in names if (whole / n).exists())
    rows = [
        [json.loads(line) | {"seconds": 0} for line in (f / METRICS).read_text().splitlines()] for f in (whole, run)
    ]
    return same and rows[0] == rows[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=[*MODES, "all"], default="all")
    parser.add_argument("--kills", type=int, default=5, help="most kills of a run")
    parser.add_argument("--runs", type=int, default=1, help="runs of each mode")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    for mode in MODES if arguments.mode == "all" else [arguments.mode]:
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder:
                report = one_run(mode, Path(folder), arguments.kills, arguments.rounds, rng)
                print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
