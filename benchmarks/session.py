"""One sitting at a benchmark: where rows go, what is measured already, how long is left."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from gate import GATE_CASE, case_names, gate_row, run_gate
from harness import Clock, release
from peers import STEPS
from provider import Factory
from record import OK, Row, append, commit, device_name, latest, read, stamp, versions
from step_bench import run_steps
from workload import Workload


@dataclass
class Session:
    """State of a sitting.

    Attributes:
        output: CSV that rows are appended to.
        quick: tiny shapes.
        again: measure cases again that the output holds already, of this commit and device.
        end: ``time.monotonic()`` after which no further case of the current section starts.
        gate: of the rows to come.
        copy_gb_per_s: copy bandwidth of this run.
        rows: of this sitting, those found in the output included.
    """

    device: torch.device
    output: Path
    quick: bool
    again: bool
    end: float
    gate: str = "not run"
    copy_gb_per_s: float = 1.0
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        here = device_name(self.device), commit()
        self._done = {} if self.again else latest([r for r in read(self.output) if (r.device, r.commit) == here])
        self.clock = Clock(self.device, flush=not self.quick)
        self.steps_clock = Clock(self.device, flush=False)

    def wants(self, section: str, case: str, providers: list[str]) -> bool:
        """Whether a case is missing for one of its providers and there is time for it."""
        if all((section, case, provider) in self._done for provider in providers):
            self.rows += [self._done[section, case, provider] for provider in providers]
            return False
        if time.monotonic() > self.end:
            print(f"  no time left for {section}: {case}; run again to go on")
            return False
        return True

    def keep(self, rows: list[Row]) -> None:
        """Appends rows to the output and prints them."""
        stamped = [stamp(row, self.device) for row in rows]
        append(self.output, stamped)
        self.rows += stamped
        for row in stamped:
            speed = f"{row.gb_per_s:8.1f} GB/s {100 * row.copy_share:4.0f}%" if row.gb_per_s == row.gb_per_s else ""
            text = f"{row.ms:9.3f} ms {speed}" if row.status == OK else row.status
            print(f"  {row.case:<58} {row.provider:<28} {text}", flush=True)


def check_results(session: Session) -> None:
    """The correctness gate, unless the output holds its row; a red one is recorded in every row that follows."""
    if session.wants("gate", GATE_CASE, ["ours"]):
        row = gate_row(*run_gate(session.device, case_names(session.quick)))
        session.keep([row])
        session.gate = row.gate
    elif session.rows and session.rows[-1].section == "gate":
        session.gate = session.rows[-1].gate


def measure_steps(
    session: Session,
    section: str,
    jobs: list[tuple[Workload, list[str]]],
    repeats: int,
    seconds: float,
    factories: dict[str, Factory] = STEPS,
) -> None:
    """Whole steps of several workloads, each with its list of providers."""
    for work, names in jobs:
        if session.wants(section, work.name, names):
            clock, gate = session.steps_clock, session.gate
            session.keep(run_steps(work, names, section, clock, repeats, seconds, gate, factories))
        release()


def add_options(parser: argparse.ArgumentParser, output: str, minutes: float, sections: Sequence[str]) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--section", nargs="+", choices=sections, default=list(sections), help="run these only")
    parser.add_argument("--output", type=Path, default=Path(output), help=f"rows are appended to this CSV [{output}]")
    parser.add_argument("--minutes", type=float, default=minutes, help="start no further case after this long")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does everything work?")
    parser.add_argument("--again", action="store_true", help="measure cases again that the output holds already")


def open_session(options: argparse.Namespace, device: torch.device) -> Session:
    """A session from the options; prints where and what it measures."""
    print(f"{device_name(device)}\n{versions()}\ncommit {commit()}, rows go to {options.output}", flush=True)
    return Session(device, options.output, options.quick, options.again, time.monotonic() + 60 * options.minutes)


def run_sections(
    session: Session,
    run: dict[str, Callable[[Session], None]],
    wanted: Sequence[str],
    shares: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Runs sections in their order; 'device' and 'gate' come first whenever anything is measured.

    ``shares`` divides the time that is left among the wanted sections that it names, so that none can use up the
    others'; what one of them leaves over is for those after it. A section that it does not name has all the time.
    """
    measures = set(wanted) - {"plots"}
    last = session.end
    for name, section in run.items():
        if name in wanted or (measures and name in ("device", "gate")):
            rest = sum(share for other, share in shares.items() if other in wanted)
            left, session.end = last - time.monotonic(), last
            if name in shares:
                session.end = last - left * (1 - shares[name] / rest)
                shares = {other: share for other, share in shares.items() if other != name}
            started = time.monotonic()
            print(name, flush=True)
            section(session)
            print(f"  {name} took {time.monotonic() - started:.0f} s", flush=True)
    session.end = last


def exit_status(session: Session) -> int:
    """1 where the gate is red or a result of ours was wrong."""
    mine = [row for row in session.rows if row.provider.startswith("ours")]
    return int(session.gate == "red" or any(row.status.startswith(("wrong", "failed")) for row in mine))
