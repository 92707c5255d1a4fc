"""Ends ranks, sites and servers at random moments, and counts what is left each time.

    python benchmarks/federation_kills.py --kind rank --runs 10
    python benchmarks/federation_kills.py --kind site --runs 10
    python benchmarks/federation_kills.py --kind server --runs 10
    python benchmarks/federation_kills.py --kind process --runs 10

rank: a process of ``torchrun … simulate``, or torchrun. process: ``ffalora simulate`` by itself. site: a process of one
site of ``ffalora flower`` (the one that trains, SuperNode, SuperExec, client app, or the site's command): the
federation must come to its end by itself. server: the command, the SuperLink, or the server app. What was ended is then
resumed. Each run is a row of ``benchmarks/data/federation_kills.csv``: processes left behind, files under their final
names that cannot be read, clients whose ledgers count less than was released, and whether the run came to its end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from csv_tables import extend_table, read_table
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("data") / "federation_kills.csv"
COLUMNS = ("kind", "run", "victim", "signal", "after", "rounds", "orphans", "unreadable", "undercounted", "ended")
MARK, SIGNALS = "FFALORA_KILLS", (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ROUNDS, STEPS = 4, 2
#: Kinds whose runs take seconds.
SHORT = ("rank", "process")
#: What a command line holds, for each kind of victim.
VICTIMS = {
    "rank": {"torchrun": "torch.distributed.run", "a rank": "-m ffalora simulate"},
    "process": {"simulate": "-m ffalora simulate"},
    "site": {
        "training process": "flower.trainer", "SuperNode": "flower.supernode", "SuperExec": "flower.superexec",
        "client app": "multiprocessing.forkserver", "site's command": "ffalora site",
    },
    "server": {"command": "ffalora flower", "SuperLink": "flower-superlink", "server app": "flwr-serverapp"},
}  # fmt: skip


def marked(value: str) -> dict[int, str]:
    """Command lines of running processes whose environment holds the mark, by id."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={value}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue
    return {number: line for number, line in found.items() if line}


def unreadable(folder: Path) -> int:
    """Files under their final names that are not whole."""
    count = 0
    for path in folder.rglob("*"):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_text().splitlines()]
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as file:
                    file.keys()
        except Exception as error:
            print(f"{path}: {error}")
            count += 1
    return count


def undercounted(folder: Path, ledgers: list[Path]) -> int:
    """Clients whose ledger counts fewer steps than the rounds took in which their stated ε grew."""
    rows = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    found = 0
    for place in ledgers:
        said = [0.0, *(row["epsilon_per_client"].get(place.stem, 0.0) for row in lines)]
        took = sum(later > earlier for earlier, later in itertools.pairwise(said))
        found += STEPS * took > (json.loads(place.read_text())["steps_taken"] if place.exists() else 0)
    return found


class Attempt:
    """One command, whatever it starts, and how it is ended."""

    def __init__(self, command: list[str], folder: Path, log: Path):
        self.value = uuid.uuid4().hex
        environment = os.environ | {MARK: self.value, "OMP_NUM_THREADS": "1"}
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def strike(self, wanted: str, how: signal.Signals, within: float = 60.0) -> bool:
        """Signals one of the processes whose command line holds ``wanted``, when there is one."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline and self.process.poll() is None:
            able = [number for number, line in marked(self.value).items() if wanted in line]
            if able:
                try:
                    os.kill(random.choice(able), how)
                    return True
                except ProcessLookupError:
                    continue
            time.sleep(0.01)
        return False

    def orphans(self, patience: float = 20.0) -> int:
        """Processes that are still there some time after the command has ended; ends them."""
        deadline = time.monotonic() + patience
        while (left := marked(self.value)) and time.monotonic() < deadline:
            time.sleep(0.2)
        for number, line in left.items():
            print(f"left: {number} {line}")
            os.kill(number, signal.SIGKILL)
        return len(left)

    def wait(self, seconds: float) -> int | None:
        """The exit status; None where it took too long."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


def commands(kind: str) -> tuple[list[str], list[str]]:
    """A run, and its continuation, in a folder that holds ``run.yaml``."""
    if kind in SHORT:
        shared = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if kind == "rank" else []
        simulate = ["-m", "ffalora", "simulate", "run.yaml", "--output", "out"]
        return [sys.executable, *shared, *simulate], [sys.executable, *simulate, "--resume"]
    run = [sys.executable, "-m", "ffalora", "flower", "run.yaml", "--output", "out", "--timeout", "60"]
    return run, [*run, "--resume"]


def one(kind: str, run: int, folder: Path) -> dict[str, object]:
    """A run that is struck at a random moment after its first charge, and its continuation."""
    victim, wanted = random.choice(list(VICTIMS[kind].items()))
    how, output = random.choice(SIGNALS), folder / "out"
    first, again = commands(kind)
    attempt = Attempt(first, folder, folder / "log")
    places = [output / "checkpoint/ledgers" if kind in SHORT else output / "clients" / str(c) for c in range(2)]
    ledgers = [place / f"{client}.json" for client, place in enumerate(places)]
    while not any(place.exists() for place in ledgers) and attempt.process.poll() is None:
        time.sleep(0.01)
    after = random.uniform(0.0, 3.0 if kind in SHORT else 15.0)
    time.sleep(after)
    attempt.strike(wanted, how)
    status = attempt.wait(30 if kind in SHORT else 240)
    orphans = attempt.orphans()
    rows = output / "metrics.jsonl"
    row = {
        "kind": kind, "run": run, "victim": victim, "signal": how.name, "after": round(after, 2), "orphans": orphans,
        "rounds": len(rows.read_text().splitlines()) if rows.exists() else 0,
        "unreadable": unreadable(output), "undercounted": undercounted(output, ledgers),
    }  # fmt: skip
    if status != 0 and kind != "site" and not (output / "summary.json").exists():
        continued = Attempt(again, folder, folder / "log")
        status = continued.wait(240)
        row["orphans"] = orphans + continued.orphans()
        row["unreadable"] = max(unreadable(output), row["unreadable"])
        row["undercounted"] = max(undercounted(output, ledgers), row["undercounted"])
    row["ended"] = (output / "summary.json").exists()
    if not row["ended"] or any(row[name] for name in ("orphans", "unreadable", "undercounted")):
        print((folder / "log").read_text()[-4000:])
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=VICTIMS, required=True)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(f"{arguments.kind} {arguments.seed}")
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "federated")]
    from small_runs import PRIVATE, save_model, save_texts, small_config

    from ffalora.config import to_yaml

    earlier = sum(row["kind"] == arguments.kind for row in read_table(TABLE))
    for run in range(earlier, earlier + arguments.runs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ["FFALORA_LEDGERS"] = str(folder / "ledgers")
            config = small_config(
                save_model(folder / "model", layers=1), save_texts(folder / "texts.csv", rows=80),
                clients__count=2, federation__rounds=ROUNDS, federation__local_steps=STEPS, **PRIVATE,
                privacy__noise="secure", federation__weighting="uniform",
            )  # fmt: skip
            (folder / "run.yaml").write_text(to_yaml(config))
            row = one(arguments.kind, run, folder)
        print(row, flush=True)
        extend_table(TABLE, COLUMNS, [row])


if __name__ == "__main__":
    main()
