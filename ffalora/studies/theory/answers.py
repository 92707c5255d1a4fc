"""From the rows of every method and seed to one verdict a question, a table and a plot, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from statistics import geometric_mean

import numpy as np

from ...config import Config
from ...report.plots import Plot
from ...report.tables import Table
from .convergence import Fit, fit_curve
from .gradients import QUANTILES
from .noise_alone import discordance_by_noise
from .plots import Rows, relative, theory_plots
from .words import compared, multiple, percent, span, text

_factors, _weights, _bound = itemgetter("factors"), itemgetter("weights"), itemgetter("bound")
_first, _last = itemgetter(0), itemgetter(-1)
Runs = Mapping[tuple[str, int], Rows]


def answer(runs: Runs, config: Config) -> tuple[list[Table], list[Plot], list[str]]:
    """Tables, plots and verdicts of measured runs, by (method, seed), of the study's configuration."""
    methods: dict[str, list[Rows]] = {}
    for (method, _), rows in runs.items():
        methods.setdefault(method, []).append(rows)
    questions = (_noise, _smoothness, _gradients, _convergence)
    found = [_discordance(methods, config.runs()), *(question(methods) for question in questions)]
    tables = [table for table, _ in found if table is not None]
    return tables, theory_plots(methods), [verdict for _, verdict in found]


def _discordance(methods: Mapping[str, list[Rows]], configs: Mapping[str, Config]) -> tuple[Table | None, str]:
    lines, said = [], []
    for method, seeds in methods.items():
        rounds = [[row for row in rows if row["discordance"]] for rows in seeds]
        count, zero = sum(map(len, rounds)), sum(row["discordance"]["total"] == 0 for rows in rounds for row in rows)
        mean = [float(np.mean([relative(row) for row in rows])) for rows in rounds if rows]
        most = [max(relative(row) for row in rows) for rows in rounds if rows]
        largest = [max(row["discordance"]["total"] for row in rows) for rows in rounds if rows]
        first = [row["discordance"]["total"] for rows in rounds for row in rows[:1]]
        alone = [discordance_by_noise(rows, configs[method]) for rows in seeds]
        times = [
            [row["discordance"]["total"] / noise[row["round"]] for row in rows if noise.get(row["round"])]
            for rows, noise in zip(rounds, alone, strict=True)
        ]
        over = multiple([geometric_mean(each) for each in times if each])
        lines.append(
            (
                method,
                text(largest),
                text(first),
                text([next(iter(noise.values())) for noise in alone if noise]),
                over,
                span([ratio for each in times for ratio in each]),
                percent(mean),
                percent(most),
                f"{zero} of {count}",
            )
        )
        said.append(
            f"{method} averages exactly, in all {count} rounds"
            if zero == count
            else f"{method} misses {percent(mean)} of a round's move, on average over rounds, by averaging its factors "
            "one by one" + (f"; its ‖D‖ is {over} times what noise alone would make" if any(times) else "")
        )
    head = (
        "method",
        "‖D‖, largest",
        "‖D‖, first round",
        "by noise alone, first round",
        "‖D‖ / by noise alone",
        "in single rounds",
        "‖D‖ / move, mean",
        "‖D‖ / move, largest",
        "rounds with exactly 0",
    )
    caption = (
        "Discordance of the average, D. By noise alone: the root of E‖D‖² in closed form, for clients of equal weight "
        "that differ by the round's noise and nothing else; ‖D‖ over it is a geometric mean over rounds and seeds with "
        "its interval over seeds, beside the smallest and the largest of single rounds."
    )
    return Table(caption, head, tuple(lines)), _sentence("Discordance", said)


def _noise(methods: Mapping[str, list[Rows]]) -> tuple[Table | None, str]:
    lines, said = [], []
    for method, seeds in methods.items():
        last = [rows[-1]["noise"] for rows in seeds if rows[-1].get("noise")]
        if not last:
            continue
        share, ratio = [each["share"] for each in last], [each["ratio"] for each in last]
        energy = [(each["expected"]["linear"] + each["expected"]["quadratic"]) ** 0.5 for each in last]
        one = [each["one_step_share"] for each in last]
        lines.append((method, text(energy), percent(share), percent(one), text(ratio)))
        said.append(
            f"the noise that {method} puts into ΔW has no quadratic part"
            if not any(share)
            else f"of the noise that {method} puts into ΔW {percent(share)} is quadratic at the end ({percent(one)} of "
            "what a single step of one client puts there)"
        )
    if not lines:
        return None, "Noise: no privacy was asked for, so there is none."
    head = ("method", "root of E‖noise in ΔW‖²", "quadratic share", "one client, one step", "drawn / expected")
    caption = "Noise of all steps, averaged over clients, at the final factors: closed form, and drawn again."
    return Table(caption, head, tuple(lines)), _sentence("Noise", said)


def _smoothness(methods: Mapping[str, list[Rows]]) -> tuple[Table | None, str]:
    lines, said = [], []
    growths: dict[str, list[float]] = {}
    for method, seeds in methods.items():
        points = [[row["smoothness"] for row in rows if row.get("smoothness")] for rows in seeds]
        if not any(len(each) > 1 for each in points):
            continue
        trains_a = seeds[0][0]["trained"] == "both"
        growth, base, size, bound = (
            [_end_over_start(each, value) for each in points]
            for value in (_factors, _weights, _both_norms if trains_a else _a_norm, _bound)
        )
        tight = [point["factors"] / point["bound"] for each in points for point in each]
        first, final = ([each[i]["factors"] for each in points if each] for i in (0, -1))
        growths[method] = growth
        grown = [multiple(ratios) for ratios in (growth, base, size, bound)]
        lines.append((method, multiple(first), multiple(final), *grown, f"{max(tight):.2g}"))
        said.append(
            f"over training {method}'s constant is multiplied by {grown[0]}, that of the weights by {grown[1]}, the "
            f"factors' part of the bound by {grown[2]}; the constant is within its bound at "
            f"{sum(value <= 1 for value in tight)} of {len(tight)} points"
        )
    if not lines:
        return None, "Smoothness: measured at fewer than two points."
    said += _pairs("growth", methods, growths)
    head = (
        "method",
        "at the start",
        "at the end",
        "constant",
        "L of the weights",
        "factors' part",
        "bound",
        "measured / bound, largest",
    )
    caption = (
        "Local smoothness over the trained factors; from the fourth column on what training multiplied it by. "
        "Geometric means with their intervals over seeds."
    )
    return Table(caption, head, tuple(lines)), _sentence("Smoothness", said)


def _gradients(methods: Mapping[str, list[Rows]]) -> tuple[Table | None, str]:
    lines, said = [], []
    spreads: dict[str, list[float]] = {}
    for method, seeds in methods.items():
        for when, i in (("start", 0), ("end", -1)):
            measured = [[row["gradients"]["all"] for row in rows if row.get("gradients")][i] for rows in seeds]
            middle = QUANTILES.index(0.5)
            tails = [each["quantiles"][-1] / each["quantiles"][middle] for each in measured]
            variation, clipped = ([each[key] for each in measured] for key in ("variation", "clipped"))
            median = [each["quantiles"][middle] for each in measured]
            figures = map(multiple, (median, variation, tails))
            lines.append((f"{method}, {when}", *figures, percent(clipped)))
        spreads[method] = variation
        said.append(
            f"at the end the standard deviation of {method}'s norms is {multiple(variation)} of their mean, and "
            f"{percent(clipped)} are above C"
        )
    said += _pairs("spread", methods, spreads)
    head = ("method", "median norm", "deviation / mean", "95% quantile / median", "share above C")
    caption = "Norms of single samples' gradients (private data); geometric means but for the last column."
    return Table(caption, head, tuple(lines)), _sentence("Gradients", said)


def _convergence(methods: Mapping[str, list[Rows]]) -> tuple[Table | None, str]:
    lines, said = [], []
    for method, seeds in methods.items():
        fits = [fit_rows(rows) for rows in seeds]
        best = [each[0] for each in fits if each]
        if not best:
            said.append(f"{method}: too few rounds, or no law settled")
            continue
        shown = sum(fit.determined for fit in best)
        laws = ", ".join(f"{law} {sum(f.law == law for f in best)}" for law in sorted({f.law for f in best}))
        rates = [next((f.rate.value for f in each if f.law == "power"), math.nan) for each in fits]
        first, last, highest = (
            [value([row["loss"] for row in rows]) for rows in seeds] for value in (_first, _last, max)
        )
        over = sum(high > start for high, start in zip(highest, first, strict=True))
        fit = text([each.r2 for each in best])
        lines.append(
            (
                method,
                *map(multiple, (first, highest, last)),
                laws,
                text(rates),
                f"{shown} of {len(seeds)}",
                fit,
                text([each.autocorrelation for each in best]),
            )
        )
        said.append(
            f"{method}'s loss determines the rate of a law in {shown} of {len(seeds)} runs (R² {fit})"
            + (f", but in {over} it first rises above its start, and the law is that of the way back" if over else "")
        )
    head = (
        "method",
        "loss at the start",
        "highest",
        "at the end",
        "better law (runs)",
        "power law's rate",
        "rates determined",
        "R²",
        "neighbouring residuals",
    )
    caption = (
        "Laws fitted to the loss after each round; a rate is determined where its interval excludes 0. Means of losses "
        "are geometric."
    )
    return Table(caption, head, tuple(lines)) if lines else None, _sentence("Convergence", said)


def fit_rows(rows: Rows) -> list[Fit]:
    """Both laws fitted to the loss after each round, the better first; none where there are fewer than five rounds."""
    after = [row for row in rows if row["round"] > 0 and np.isfinite(row["loss"])]
    if len(after) < 5:
        return []
    return fit_curve([row["round"] for row in after], [row["loss"] for row in after])


def _a_norm(point: Mapping[str, float]) -> float:
    """``s‖a‖²``, FFA-LoRA's factors' part of the bound up to the constant s."""
    return point["a_norm"] ** 2


def _both_norms(point: Mapping[str, float]) -> float:
    """``s(‖a‖² + ‖b‖²)``, LoRA's."""
    return point["a_norm"] ** 2 + point["b_norm"] ** 2


def _end_over_start(points: Rows, value: Callable[[Mapping[str, float]], float]) -> float:
    """What training multiplied a value by; NaN where it was measured at one point only."""
    return value(points[-1]) / value(points[0]) if len(points) > 1 else math.nan


def _pairs(what: str, methods: Mapping[str, list[Rows]], values: Mapping[str, list[float]]) -> list[str]:
    """Every method that trains both factors beside every one that trains b, where both have the same seeds."""
    kinds = {method: seeds[0][0]["trained"] for method, seeds in methods.items() if method in values}
    return [
        compared(what, one, values[one], other, values[other])
        for one, kind in kinds.items()
        for other, other_kind in kinds.items()
        if (kind, other_kind) == ("both", "b") and len(values[one]) == len(values[other])
    ]


def _sentence(question: str, said: Sequence[str]) -> str:
    return f"{question}: {'; '.join(said)}."
