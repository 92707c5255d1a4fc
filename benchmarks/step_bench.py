"""Checks and times whole training steps: everybody's gradients against the definition first, then everybody in turn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from harness import (
    Clock,
    PeakMemory,
    Timing,
    interleave,
    recorded_bytes,
    relative_error,
    release,
    survived,
    synchronize,
    verdict,
)
from peers import STEPS
from peft_steps import expected_sums
from provider import Factory, Provider, Sums
from record import OK, OUT_OF_MEMORY, Row
from workload import Workload

#: Steps that a timed call takes, by device: on a GPU the host prepares a step while the device is at the one before.
STEPS_A_CALL = {"cuda": 10, "cpu": 1}
#: RMS(error)/RMS(reference) of a step's gradients by the number format of the base. In bfloat16 the error is that of
#: the model's own activations, passed through all its layers.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.15}


def run_steps(
    work: Workload,
    names: Iterable[str],
    section: str,
    clock: Clock,
    repeats: int,
    seconds: float,
    gate: str = "not run",
    factories: dict[str, Factory] = STEPS,
) -> list[Row]:
    """One row a provider: time of a step, on a GPU its peak memory above what is in use before it, error of
    gradients.

    Everybody's model is kept while steps take turns. Who runs out of memory beside the others is measured once more,
    alone, and its row says so (``alone``).
    """
    chosen = list(names)
    bench = StepBench(work, section, clock, repeats, seconds, gate, factories)
    rows = {row.provider: row for row in bench.measure(chosen)}
    release()
    for name in chosen:
        if rows[name].status == OUT_OF_MEMORY and len(chosen) > 1:
            (alone,) = bench.measure([name])
            rows[name] = replace(alone, config=alone.config | {"alone": True})
            release()
    return list(rows.values())


@dataclass
class StepBench:
    """Settings of :func:`run_steps`, and the expected gradients that were computed so far."""

    work: Workload
    section: str
    clock: Clock
    repeats: int
    seconds: float
    gate: str
    factories: dict[str, Factory]
    expected: dict[tuple[str, bool], Sums] = field(default_factory=dict)

    def measure(self, names: list[str]) -> list[Row]:
        """Rows of these providers, whose models live together and whose steps take turns."""
        providers: dict[str, Provider] = {}
        rows: dict[str, Row] = {}
        for name in names:
            timing, memory, error = Timing(), math.nan, math.nan
            recorded = recorded_bytes(self.clock.device)
            with survived(timing):
                provider = self.factories[name](self.work)
                error = self.error(provider)
                if not math.isnan(error):
                    timing.status = verdict(error, TOLERANCE[provider.dtype or self.work.dtype])
                if self.clock.device.type == "cuda":
                    memory = peak_of_a_step(provider, self.clock.device, len(self.work.draws))
                    memory += (recorded_bytes(self.clock.device) - recorded) / 2**20
                if timing.status == OK:
                    providers[name] = provider
            rows[name] = Row(
                self.section, self.work.name, name, timing.status, self.gate, peak_mib=memory, error=error,
                config=settings(self.work),
            )  # fmt: skip
            provider = None
            release()
        count = STEPS_A_CALL[self.clock.device.type]
        calls = {name: partial(take, provider, count) for name, provider in providers.items()}
        timings = interleave(calls, self.clock, self.repeats, self.seconds, warmup=1)
        for name, timing in timings.items():
            timing.samples = [ms / count for ms in timing.samples]
            rows[name] = replace(
                rows[name],
                **timing.columns(),
                config=rows[name].config | {"steps_a_call": count} | paired(timing, timings.get("floor")),
            )
        return list(rows.values())

    def error(self, provider: Provider) -> float:
        """Error of a provider's gradients of the first batch; NaN where there are none to compare."""
        if provider.sums is None:
            return math.nan
        kind = provider.trained, provider.clips
        if kind not in self.expected:
            self.expected[kind] = expected_sums(self.work, 0, *kind)
        found = sums_error(provider.sums(0), self.expected[kind])
        return math.inf if math.isnan(found) else found


def take(provider: Provider, count: int, number: int) -> None:
    """The call of that number, of ``count`` steps."""
    provider.take(number * count, count)


def settings(work: Workload) -> dict:
    """The workload's settings, for the ``config`` column."""
    return {
        "dtype": str(work.dtype).removeprefix("torch."),
        "attention": work.attention,
        "rank": work.rank,
        "targets": list(work.targets),
        "batches": len(work.draws),
        "expected_batch": round(work.expected, 2),
    } | work.extra


def paired(timing: Timing, floor: Timing | None) -> dict:
    """Median and 20% and 80% quantiles of a step over the floor's step of the same round."""
    if floor is None or len(floor.samples) != len(timing.samples) or not timing.samples:
        return {}
    ratios = Timing([mine / least for mine, least in zip(timing.samples, floor.samples, strict=True)])
    return {"to_floor": [round(ratios.quantile(share), 4) for share in (0.5, 0.2, 0.8)]}


def peak_of_a_step(provider: Provider, device: torch.device, draws: int) -> float:
    """Peak memory in MiB of a step of any of the logical batches, each for the second time (the first one allocates
    what stays).
    """
    provider.take(0, draws)
    synchronize(device)
    with PeakMemory(device) as memory:
        provider.take(0, draws)
    return memory.mib


def sums_error(found: Sums, expected: Sums) -> float:
    """RMS(error)/RMS(reference) over all tensors together; infinite where their names differ."""
    if set(found) != set(expected):
        return math.inf
    names = sorted(expected)
    flat = [torch.cat([sums[n].detach().double().reshape(-1).cpu() for n in names]) for sums in (found, expected)]
    return relative_error(*flat)
