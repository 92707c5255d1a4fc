"""``ffalora plan``: batch, steps and noise from ε, sizes and the time there is."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import ConfigCommand
from .output import json_option
from .running import hide_loading_bars

if TYPE_CHECKING:
    from ..planning.plan import Plan, Plans


@click.command("plan", cls=ConfigCommand, short_help="Batch, steps and noise from ε, sizes and the time there is.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="Time for training; without it, any.")
@json_option
def command(config: Path | None, seconds: float | None, as_json: bool, overrides: dict[str, Any]) -> None:
    """Choose batch, rounds and local steps for the budget of CONFIG, and show what other choices would give.

    The first method of CONFIG is planned; a few samples are timed, nothing is trained or written. Efficiency is how
    much of what ε allows reaches the result: least possible noise over the plan's noise.
    """
    from ..config import load_config
    from ..files.numbers import to_json
    from ..planning.plan import make_plans

    hide_loading_bars()
    first = next(iter(load_config(config, overrides).runs().values())).with_noise("seeded")
    plans, target = make_plans(first, seconds or math.inf), first.privacy.target_epsilon or 0.0
    click.echo(to_json({"target_epsilon": target, **asdict(plans)}) if as_json else text_of(plans, target))


def text_of(plans: Plans, target_epsilon: float) -> str:
    """The plan for a terminal."""
    from ..report import Table, plain_text

    entries = [("chosen", plans.chosen), ("as configured", plans.own), *(("or", plan) for plan in plans.others)]
    head = ("plan", "batch", "rounds × steps", "σ", "efficiency", "signal/noise", "rate", "seconds", "up / client")
    table = Table("", head, tuple((name, *_cells(plan)) for name, plan in entries))
    sizes = ", ".join(map(str, plans.sizes[:8])) + (", …" if len(plans.sizes) > 8 else "")
    chosen, cost = plans.chosen, plans.cost
    lines = [
        f"ε = {target_epsilon:g} for each of {len(plans.sizes)} clients ({sizes} samples)",
        f"{plans.numbers:,} trained numbers",
        f"measured here: {1e3 * cost.seconds_per_sample:.2f} ms a sample, {cost.peak_bytes / 2**20:.0f} MiB at most",
        f"\n{plain_text(table)}\n",
        f"--optimizer.batch_size {chosen.batch} --federation.rounds {chosen.rounds} "
        f"--federation.local_steps {chosen.local_steps}",
    ]
    return "\n".join(lines)


def _cells(plan: Plan) -> tuple[str, ...]:
    from ..report.tables import bytes_text

    return (
        str(plan.batch),
        f"{plan.rounds} × {plan.local_steps}",
        f"{plan.sigma:.2f}",
        f"{100 * plan.efficiency:.0f}%",
        f"{plan.signal_to_noise:.2g}",
        f"{plan.lr:.3g}",
        f"{plan.seconds:.0f}",
        bytes_text(plan.bytes_up),
    )
