"""``ffalora plan``: batch, steps and noise from ε, sizes and the time there is."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import ConfigCommand
from .output import NumberRange, given_names, json_option
from .running import hide_loading_bars

if TYPE_CHECKING:
    from ..planning.plan import Plan, Plans
    from ..planning.scale import Network, Pace, Scale


class _Count(click.ParamType):
    """A whole number, which may be written as 1e6."""

    name = "INT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (1 <= number < math.inf and number == int(number)):
            self.fail(f"{value!r} is no whole number from 1", param, ctx)
        return int(number)


_COUNT, _RATE = _Count(), NumberRange(0, min_open=True)


@click.command("plan", cls=ConfigCommand, short_help="Batch, steps and noise from ε, sizes and the time there is.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--seconds", type=NumberRange(0, min_open=True), help="Time for training; without it, any.")
@click.option("--clients", type=_COUNT, help="Size of a federation to plan for, 1e6 say, instead of batch and steps.")
@click.option("--drawn", type=_COUNT, help="Its clients of a round.  [federation.participation]")
@click.option("--gpus", type=_COUNT, help="Devices like this machine's that would simulate it.  [1]")
@click.option("--up", type=_RATE, default=20.0, show_default=True, help="A client's upload, Mbit/s.")
@click.option("--down", type=_RATE, default=100.0, show_default=True, help="A client's download, Mbit/s.")
@click.option("--link", type=_RATE, default=10.0, show_default=True, help="Between devices, and of a server, Gbit/s.")
@click.option("--latency", type=_RATE, default=3.0, show_default=True, help="Of a round's messages, s.")
@json_option
def command(
    config: Path | None,
    seconds: float | None,
    clients: int | None,
    drawn: int | None,
    gpus: int | None,
    up: float,
    down: float,
    link: float,
    latency: float,
    as_json: bool,
    overrides: dict[str, Any],
) -> None:
    """Choose batch, rounds and local steps for the budget of CONFIG, and show what other choices would give.

    The first method of CONFIG is planned; a few samples are timed, nothing is trained or written. Efficiency is how
    much of what ε allows reaches the result: least possible noise over the plan's noise. With --clients or --gpus it
    counts instead what a federation of that size takes: memory, bytes, rounds an hour.
    """
    from ..config import load_config
    from ..files.numbers import to_json
    from ..planning.plan import make_plans

    _check_used(bool(clients or gpus))
    hide_loading_bars()
    first = next(iter(load_config(config, overrides).runs().values())).with_noise("seeded")
    if clients or gpus:
        from ..federated.experiment import build
        from ..planning.scale import Network, at_scale, measure_pace

        experiment = build(first)
        many = clients or len(experiment.participants)
        some = drawn or first.federation.cohort(many)
        network = Network(1e6 * up, 1e6 * down, 1e9 * link, 1e9 * link, latency)
        pace = measure_pace(experiment)
        scale = at_scale(experiment, pace, many, some, gpus or 1, network)
        shown = {"pace": asdict(pace), "scale": asdict(scale), "network": asdict(network)}
        click.echo(to_json(shown) if as_json else scale_text(pace, scale, network))
        return
    plans, target = make_plans(first, seconds or math.inf), first.privacy.target_epsilon or 0.0
    click.echo(to_json({"target_epsilon": target, **asdict(plans)}) if as_json else text_of(plans, target))


def _check_used(is_of_scale: bool) -> None:
    """Refuses what the plan that is asked for does not look at."""
    idle = {"seconds"} if is_of_scale else {"drawn", "up", "down", "link", "latency"}
    for name in sorted(idle & given_names()):
        remedy = "leave out --clients and --gpus" if is_of_scale else "give --clients or --gpus"
        raise click.UsageError(f"--{name} has no effect here; {remedy}, or leave it out")


def scale_text(pace: Pace, scale: Scale, network: Network) -> str:
    """What a federation of a size takes, for a terminal."""
    from ..report.tables import bytes_text

    held = (
        f"{bytes_text(scale.process_bytes)} in the first process, {bytes_text(scale.row_bytes)} of it for drawn clients"
    )
    return "\n".join(
        [
            f"{scale.clients:,} clients, {scale.drawn:,} of them in each round",
            f"measured here: {pace.client:.3g} s a client and {pace.fixed:.3g} s a round, {pace.evaluation:.3g} s an "
            f"evaluation, {1e6 * pace.books:.3g} µs for what is written down of each client that there is",
            f"memory         {held}; {bytes_text(scale.disk_bytes)} on the disk",
            f"wire           {bytes_text(scale.up)} up and {bytes_text(scale.down)} down a client and round, "
            f"{bytes_text(scale.traffic)} in all",
            f"simulated      {scale.simulated:.3g} s a round, {3600 / scale.simulated:.3g} rounds an hour: "
            f"{scale.processes} like this, {network.link / 1e9:g} Gbit/s between them",
            f"real           {scale.real:.3g} s a round, {3600 / scale.real:.3g} rounds an hour: sites like this, "
            f"{network.up / 1e6:g} Mbit/s up, {network.down / 1e6:g} down, server {network.server / 1e9:g} Gbit/s, "
            f"{network.latency:g} s for messages",
        ]
    )


def text_of(plans: Plans, target_epsilon: float) -> str:
    """The plan for a terminal."""
    from ..report import Table, plain_text

    entries = [
        ("chosen" if plans.fits else "shortest", plans.chosen),
        ("as configured", plans.own),
        *(("or", plan) for plan in plans.others),
    ]
    head = ("plan", "batch", "rounds × steps", "σ", "efficiency", "signal/noise", "rate", "seconds", "up / client")
    table = Table("", head, tuple((name, *_cells(plan)) for name, plan in entries))
    sizes = ", ".join(map(str, plans.sizes[:8])) + (", …" if len(plans.sizes) > 8 else "")
    chosen, cost = plans.chosen, plans.cost
    too_long = [] if plans.fits else ["No plan fits into --seconds; the shortest is:"]
    lines = [
        f"ε = {target_epsilon:g} for each of {len(plans.sizes)} clients ({sizes} samples)",
        f"{plans.numbers:,} trained numbers",
        f"measured here: {1e3 * cost.seconds_per_sample:.2f} ms a sample and {1e3 * cost.seconds_per_step:.2f} ms a "
        f"step, {cost.seconds_per_evaluation:.2g} s an evaluation, {cost.peak_bytes / 2**20:.0f} MiB at most",
        f"\n{plain_text(table)}\n",
        *too_long,
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
