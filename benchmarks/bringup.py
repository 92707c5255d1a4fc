"""Everything to do on a borrowed GPU, in one command and without a network: python benchmarks/bringup.py

Stages, in this order; each has minutes of its own, a log in the output folder, and rows in a CSV after every case:

    extension   builds the C++ kernels and, where nvcc is, the CUDA library of secure noise
    gate        every case of the kernels' tests and every benchmarked shape against float64, shared out over processes,
                which compile in parallel and so fill Triton's cache for what follows
    tests       the tests that need a GPU
    sanitizer   compute-sanitizer over small cases, where it is installed
    measure     benchmarks/gpu.py: operations, layers, steps, memory, counters
    tune        benchmarks/tune.py: launch configurations

Called again with the same output it goes on where it stopped. What the machine lacks can be carried beside the checkout
as wheels (``--wheels FOLDER``): they are unpacked into the output folder, nothing is installed. Torch 2.9 or newer and
the Triton that came with it must be there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipFile

import checkout

STAGES = ("extension", "gate", "tests", "sanitizer", "measure", "tune")
#: How the stages divide the minutes; what one leaves over is for those after it.
SHARES = {"extension": 0.12, "gate": 0.25, "tests": 0.05, "sanitizer": 0.08, "measure": 0.4, "tune": 0.1}
#: Cases that compute-sanitizer runs: it is slow, and these write every kind of output.
SANITIZED = ("expand-plain", "backward-plain", "outer-plain", "clip-flat", "step-sgd")
TIMED_OUT = 124


@dataclass
class BringUp:
    """One sitting.

    Attributes:
        output: folder of logs and tables.
        device: 'cuda', or 'cpu' to try the script itself.
        quick: tiny shapes.
        processes: that compile and check at once.
        environment: of every process that is started.
        results: exit status and seconds of each stage.
    """

    output: Path
    device: str
    quick: bool
    processes: int
    environment: dict[str, str]
    results: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        return self.output / "gpu.csv"

    def run(self, name: str, command: list[str], seconds: float) -> int:
        """Runs a command with its output in ``NAME.log``; its exit status, 124 where the time ran out. What it has
        started ends with it: the next stage has the device to itself.
        """
        with (self.output / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, cwd=checkout.ROOT,
                start_new_session=True,
            )  # fmt: skip
            try:
                return process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                return TIMED_OUT
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def script(self, name: str) -> list[str]:
        """The beginning of a command that runs a script of this folder."""
        return [sys.executable, "-u", str(Path(__file__).with_name(name))]


def build_extension(sitting: BringUp, seconds: float) -> int:
    """Builds in place; a failure leaves the plain-torch reference and noise from the processor, and is said."""
    return sitting.run("extension", [sys.executable, "setup.py", "build_ext", "--inplace"], seconds)


def check_kernels(sitting: BringUp, seconds: float) -> int:
    """The correctness gate, shared out over processes."""
    command = [*sitting.script("gate.py"), "--device", sitting.device, "--output", str(sitting.table)]
    command += ["--processes", str(sitting.processes), *(["--quick"] if sitting.quick else [])]
    return sitting.run("gate", command, seconds)


def run_tests(sitting: BringUp, seconds: float) -> int:
    """The tests that need a GPU, but those that the gate ran."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--ignore", "tests/kernels/test_gpu.py", "tests"]
    return sitting.run("tests", command, seconds)


def run_sanitizer(sitting: BringUp, seconds: float) -> int:
    """Bounds and races of some cases."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or sitting.device == "cpu":
        return sitting.run("sanitizer", [sys.executable, "-c", "print('compute-sanitizer is not there')"], seconds)
    status, end = 0, time.monotonic() + seconds
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "3", *sitting.script("gate.py")]
        command += ["--device", sitting.device, "--only", *SANITIZED]
        status = status or sitting.run("sanitizer", command, end - time.monotonic())
    return status


def measure(sitting: BringUp, seconds: float) -> int:
    """All sections of the benchmark."""
    command = [*sitting.script("gpu.py"), "--device", sitting.device, "--output", str(sitting.table)]
    command += ["--minutes", f"{seconds / 60:.2f}", *(["--quick"] if sitting.quick else [])]
    return sitting.run("measure", command, seconds + 60)


def tune(sitting: BringUp, seconds: float) -> int:
    """Launch configurations; a time that does not suffice is no failure."""
    if sitting.device == "cpu":
        return sitting.run("tune", [sys.executable, "-c", "print('tuning needs a GPU')"], seconds)
    command = [*sitting.script("tune.py"), "--output", str(sitting.output / "tune.csv")]
    return sitting.run("tune", [*command, "--minutes", f"{seconds / 60:.2f}"], seconds + 60)


RUN: dict[str, Callable[[BringUp, float], int]] = dict(
    zip(STAGES, (build_extension, check_kernels, run_tests, run_sanitizer, measure, tune), strict=True)
)


def unpack_missing(wheels: Path | None, target: Path) -> list[str]:
    """Unpacks the wheels whose package cannot be imported into ``target``; their names."""
    found = []
    for wheel in sorted(wheels.glob("*.whl")) if wheels else []:
        with ZipFile(wheel) as archive:
            tops = {name.split("/")[0].split(".")[0] for name in archive.namelist() if ".dist-info/" not in name}
            if not any(importlib.util.find_spec(top) for top in tops):
                archive.extractall(target)
                found.append(wheel.name)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where a stage that ran to its end failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/bringup"), help="logs and tables [runs/bringup]")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of packages that this machine may lack")
    parser.add_argument("--minutes", type=float, default=20.0, help="for all stages together [20]")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="run these only")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu (to try the script itself)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does everything work?")
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1), help="that compile at once")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    site = options.output.resolve() / "site"
    carried = unpack_missing(options.wheels, site)
    roots = [str(site), str(checkout.ROOT), str(checkout.ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots)), "PYTHONUNBUFFERED": "1"}
    sitting = BringUp(options.output.resolve(), options.device, options.quick, options.processes, environment)
    print(f"unpacked: {', '.join(carried) or 'nothing'}", flush=True)
    run_stages(sitting, [name for name in STAGES if name in options.stage], 60 * options.minutes)
    failed = [name for name, (status, _) in sitting.results.items() if status not in (0, TIMED_OUT)]
    return int(bool(failed))


def run_stages(sitting: BringUp, wanted: list[str], seconds: float) -> None:
    """Runs the stages, prints the end of each one's log, and keeps statuses in ``stages.json``."""
    end, rest = time.monotonic() + seconds, sum(SHARES[name] for name in wanted)
    for name in wanted:
        started = time.monotonic()
        status = RUN[name](sitting, (end - started) * SHARES[name] / rest)
        rest -= SHARES[name]
        sitting.results[name] = status, round(time.monotonic() - started, 1)
        text = (sitting.output / f"{name}.log").read_text().splitlines()
        print(f"{name}: status {status}, {sitting.results[name][1]} s", *text[-6:], sep="\n    ", flush=True)
        (sitting.output / "stages.json").write_text(json.dumps(sitting.results, indent=1))


if __name__ == "__main__":
    sys.exit(main())
