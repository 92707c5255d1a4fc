"""Private fine-tuning on a CPU against every rival: whole steps on the embedded model and the movie reviews.

    python benchmarks/cpu.py              # all sections, in less than --minutes; run again to go on where it stopped

Sections: 'equal' (all providers on the same shapes, over the floor: forward pass and input gradients of the frozen
model without adapters), 'job' (the same private training job; rivals as their users run them, and once more given this
package's number format and attention), 'ablation' (our own features switched on one by one, then each switched off),
'cohort' (all clients in one pass or one after another), 'language' (a language model of SmolLM2's shape, likewise over
the floor), 'runs' (whole runs of a study, in one pass or one after another), 'rss' (peak resident memory, every
provider in a process of its own). Rivals take turns step by step in one process; times are medians with 20% and 80%
quantiles. The machine should do nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import copy_bandwidth, launch_floor, matmul_rate, peak_resident_bytes, resident_bytes
from language import measure_language
from minilm import ALL_LINEAR, QUERY_VALUE, as_users_of_ours, equal_shapes, movie_reviews, ours_as_chosen
from opacus_steps import opacus
from own_steps import cohort, ours
from peers import STEPS
from peft_steps import peft
from provider import Factory, Provider, given
from record import FAILED, OK, Row
from report import short_table
from run_bench import gain_together, measure_runs
from session import Session, add_options, check_results, exit_status, measure_steps, open_session, run_sections
from workload import Workload

SECTIONS = ("device", "gate", "equal", "job", "ablation", "cohort", "language", "runs", "rss", "plots")
FP32, BF16 = torch.float32, torch.bfloat16
HOOKS = "opacus hooks, a frozen"


def job_factories(work: Workload) -> dict[str, Factory]:
    """Who takes part in the training job; ours as it chooses on this processor."""
    chosen = ours_as_chosen(work)
    merged = chosen["dtype"] == FP32
    return {
        "peft": STEPS["peft"],
        "opacus hooks": STEPS["opacus hooks"],
        HOOKS: STEPS[HOOKS],
        "opacus functorch, a frozen": STEPS["opacus functorch, a frozen"],
        "opacus ghost, a frozen": STEPS["opacus ghost, a frozen"],
        "opacus hooks, a frozen, our format and attention": given(lambda w: opacus(w, "hooks", "b"), **chosen),
        "peft, our format and attention": given(peft, **chosen),
        "ours": given(lambda w: ours(w, merged=merged, packed=True), **chosen),
    }


def ablation_factories(work: Workload) -> dict[str, Factory]:
    """Ours from the plainest form up, one feature more each time; then the whole with one feature less."""
    fast = ours_as_chosen(work)["dtype"]
    merged = fast == FP32
    plain: dict[str, Any] = {"merged": False, "cut": False, "packed": False}
    whole: dict[str, Any] = {"merged": merged, "cut": True, "packed": True}

    def made(dtype: torch.dtype = fast, attention: str = "eager", **features: Any) -> Factory:
        return given(lambda w: ours(w, **features), dtype=dtype, attention=attention)

    steps: dict[str, Factory] = {
        "ours, plain: float32, sdpa, one padded batch": made(FP32, "sdpa", **plain),
        "ours, + sorted and cut": made(FP32, "sdpa", **plain | {"cut": True}),
        "ours, + eager attention": made(FP32, **plain | {"cut": True}),
        "ours, + merged weights": made(FP32, **plain | {"cut": True, "merged": True}),
    }
    if fast == BF16:
        steps["ours, + bfloat16 base, weights not merged"] = made(**plain | {"cut": True})
        steps["ours, all but the bfloat16 base"] = made(FP32, **whole | {"merged": True})
    return steps | {
        "ours, + packed: the whole": made(**whole),
        "ours, all but packed and cut": made(**whole | {"packed": False, "cut": False}),
        "ours, all but packed and eager attention": made(fast, "sdpa", **whole | {"packed": False}),
        "ours, passes of 4096 tokens": made(token_budget=4096, **whole),
        "ours, not packed, compiled": made(compiled=True, **whole | {"packed": False}),
    }


def measure_device(session: Session) -> None:
    """Copy bandwidth, rate of matrix products and launch floor of this processor."""
    session.copy_gb_per_s = copy_bandwidth(session.clock, 16 if session.quick else 128)
    size = 128 if session.quick else 1024
    rates = {name: matmul_rate(session.clock, dtype, size) for name, dtype in (("float32", FP32), ("bfloat16", BF16))}
    config = {"tflops": {k: round(v, 3) for k, v in rates.items()}, "launch_floor_ms": launch_floor(session.clock)}
    session.keep([Row("device", "copy", "torch", gb_per_s=session.copy_gb_per_s, copy_share=1.0, config=config)])


def measure_equal(session: Session) -> None:
    """Equal shapes, over the floor."""
    plain = {f"{name}, torch's products": torchs_products(STEPS[name]) for name in ("ours", "ours, merged")}
    names = ["floor", "peft", "peft, a frozen", HOOKS, "ours", "ours, merged", *plain]
    jobs = [
        (equal_shapes(QUERY_VALUE, 8, session.quick), names),
        (equal_shapes(ALL_LINEAR, 16, session.quick), names),
    ]
    measure_steps(session, "equal", jobs, 3 if session.quick else 30, 45.0, STEPS | plain)


def torchs_products(factory: Factory) -> Factory:
    """The factory with all products where torch has them: what its adapters cost, whatever computes the base."""

    def make(work: Workload) -> Provider:
        provider = factory(work)

        def step(number: int) -> None:
            with torch.backends.mkldnn.flags(enabled=False):
                provider.step(number)

        return replace(provider, step=step, several=None)

    return make


def measure_job(session: Session) -> None:
    """The same private training job."""
    work = movie_reviews(session.quick)
    factories = job_factories(work)
    measure_steps(session, "job", [(work, list(factories))], 2 if session.quick else 16, 90.0, factories)


def measure_ablation(session: Session) -> None:
    """What each of our features brings on that job."""
    work = movie_reviews(session.quick)
    factories = ablation_factories(work)
    if session.quick:
        del factories["ours, not packed, compiled"]
    measure_steps(session, "ablation", [(work, list(factories))], 2 if session.quick else 16, 50.0, factories)


def measure_cohort(session: Session) -> None:
    """A federated step of many clients: in one pass, or one after another."""
    for clients, expected in ((8, 8), (16, 4)):
        draws = 8 if session.quick else 8 * clients
        work = as_users_of_ours(movie_reviews(session.quick, expected, draws))
        named = Workload(**vars(work) | {"name": f"{clients} clients, {work.name}"})
        factories: dict[str, Factory] = {
            "ours, one pass": lambda w, clients=clients: cohort(w, clients, True),
            "ours, one after another": lambda w, clients=clients: cohort(w, clients, False),
        }
        measure_steps(session, "cohort", [(named, list(factories))], 2 if session.quick else 12, 20.0, factories)


def measure_rss(session: Session) -> None:
    """Peak resident memory of the training job, a process for each provider."""
    work = movie_reviews(session.quick)
    names = ["peft", HOOKS, "opacus ghost, a frozen", "ours"]
    if not session.wants("rss", work.name, names):
        return
    rows = []
    for name in names:
        command = [sys.executable, __file__, "--one", name, *(["--quick"] if session.quick else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            rows.append(Row("rss", work.name, name, f"{FAILED}: {done.stderr.strip().splitlines()[-1][:120]}"))
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append(Row("rss", work.name, name, OK, session.gate, peak_mib=found["peak_mib"], config=found))
    session.keep(rows)


def run_one(name: str, quick: bool) -> None:
    """Takes steps with one provider and prints this process's peak resident memory, whole and above the model's."""
    work = movie_reviews(quick)
    provider = job_factories(work)[name](work)
    before = resident_bytes()
    for number in range(4):
        provider.step(number)
    peak = peak_resident_bytes()
    print(json.dumps({"peak_mib": round(peak / 2**20, 1), "above_model_mib": round((peak - before) / 2**20, 1)}))


def draw_plots(session: Session) -> None:
    """Speed-ups, from the output alone; and the tables of the performance page, where the output is what it quotes."""
    import performance_page
    from plot import draw

    if session.output.resolve().parent == performance_page.DATA:
        performance_page.main([])
    for path in draw(session.output, session.output.parent):
        print(f"  {path}")


RUN: dict[str, Callable[[Session], None]] = {
    "device": measure_device, "gate": check_results, "equal": measure_equal, "job": measure_job,
    "ablation": measure_ablation, "cohort": measure_cohort, "language": measure_language, "runs": measure_runs,
    "rss": measure_rss, "plots": draw_plots,
}  # fmt: skip


def ratios(rows: list[Row]) -> str:
    """The few ratios that a reader wants first; medians, with the spread of paired steps where there is a floor."""
    lines = []
    by_section: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.status == OK:
            by_section.setdefault((row.section, row.case), {})[row.provider] = row
    for (section, case), found in by_section.items():
        if section in ("equal", "language"):
            for name, row in found.items():
                if name != "floor" and "to_floor" in row.config:
                    middle, low, high = row.config["to_floor"]
                    lines.append(f"{case}: {name} takes {middle:.3f} of the floor ({low:.3f} to {high:.3f})")
        elif section == "job" and "ours" in found:
            for name, row in found.items():
                if name != "ours":
                    lines.append(f"{case}: {name} takes {row.ms / found['ours'].ms:.2f} times as long as ours")
        elif section == "cohort" and len(found) == 2:
            gain = found["ours, one after another"].ms / found["ours, one pass"].ms
            lines.append(f"{case}: one after another takes {gain:.2f} times as long as one pass")
        elif section == "runs" and len(found) == 2:
            lines.append(f"{case}: one run after another takes {gain_together(found):.2f} times as long as together")
        elif section == "rss":
            lines += [f"{case}: {name} peaks at {row.peak_mib:.0f} MiB resident" for name, row in found.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen sections; 1 if the gate is red or a result of ours was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="threads of torch [its own choice]")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    add_options(parser, str(Path(__file__).parent / "data" / "cpu.csv"), 8.0, SECTIONS)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.one:
        run_one(options.one, options.quick)
        return 0
    session = open_session(options, torch.device("cpu"))
    run_sections(session, RUN, options.section)
    print(short_table(session.rows, ("job",)))
    print(ratios(session.rows))
    return exit_status(session)


if __name__ == "__main__":
    sys.exit(main())
