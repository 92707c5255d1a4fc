"""Where the time and the memory of a training job go: a few of its own steps under torch's profiler."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from ..config import Config
from .cohort import trains_in_one_pass
from .experiment import Experiment, build
from .turns import local_training

#: Parts of a step, in the order they are shown.
PARTS = ("base products", "adapters", "attention", "clipping", "noise and optimiser", "data", "everything else")
_ADAPTER_OPS = ("ffalora::expand_", "ffalora::backward", "ffalora::outer")
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear")
_ATTENTION = ("softmax", "attention")
_DATA = "ffalora: data"


@dataclass(frozen=True)
class Profile:
    """What a few steps of a job cost.

    Attributes:
        milliseconds: mean time of a logical step by part (``PARTS``), on the device that computes.
        steps: how many were profiled; samples, tokens: of them all.
        padding: share of the computed tokens that was padding.
        memory: bytes by what holds them; ``peak`` is the most at once while training.
        trace: file for chrome://tracing or Perfetto.
    """

    milliseconds: dict[str, float]
    steps: int
    samples: int
    tokens: int
    padding: float
    memory: dict[str, int]
    trace: Path

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return vars(self) | {"trace": str(self.trace)}

    def to_text(self) -> str:
        """One screen."""
        total = sum(self.milliseconds.values()) or 1.0
        lines = [
            f"{self.steps} logical steps, {self.samples} samples, {self.tokens} tokens; "
            f"{100 * self.padding:.0f}% of the computed tokens were padding",
            f"\n{'time of a logical step':<26}{total:10.1f} ms",
        ]
        for part in PARTS:
            value = self.milliseconds[part]
            lines.append(f"  {part:<24}{value:10.1f} ms {100 * value / total:5.1f}%  {'#' * round(40 * value / total)}")
        lines.append(f"\n{'memory':<26}")
        lines += [f"  {name:<24}{size / 2**20:10.1f} MiB" for name, size in self.memory.items()]
        return "\n".join([*lines, f"\ntrace {self.trace}"])


def profile_run(config: Config, folder: Path, steps: int = 3, warmup: int = 1) -> Profile:
    """Takes a few logical steps of the job that ``config`` describes and measures them. The model is left behind.

    Args:
        config: of one method; its first client trains (all of them, where a round runs in one pass).
        folder: made if missing; receives ``trace.json`` and ``profile.json``.
        steps: logical steps under the profiler; warmup: steps before it (compilation, first allocations).

    Raises:
        ConfigError, DataError: as a run would; ValueError: fewer than one step.
    """
    if steps < 1 or warmup < 0:
        raise ValueError(f"steps must be at least 1 and warmup not negative, got {steps} and {warmup}")
    experiment = build(config.model_copy(update={"federation": _enough_steps(config, steps + warmup)}))
    folder.mkdir(parents=True, exist_ok=True)
    train = _trainer(experiment)
    if warmup:
        train(warmup)
    device = experiment.engine.device
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with _data_marked(experiment), profile(activities=activities, record_shapes=True, profile_memory=not cuda) as trace:
        report = train(steps)
    trace.export_chrome_trace(str(folder / "trace.json"))
    ranks = {layer.rank for layer in experiment.adapters.layers.values()}
    found = Profile(
        milliseconds=time_by_part(trace, ranks, steps, cuda),
        steps=steps,
        samples=int(report.samples.sum()),
        tokens=report.tokens,
        padding=report.padding,
        memory=_memory(experiment, trace, cuda),
        trace=folder / "trace.json",
    )
    (folder / "profile.json").write_text(json.dumps(found.as_dict(), indent=2), encoding="utf-8")
    return found


def time_by_part(trace: Any, ranks: set[int], steps: int, cuda: bool = False) -> dict[str, float]:
    """Milliseconds of a step by part: each operation's own time, sorted by its name and the shapes it was given.

    A matrix product with a dimension of an adapter's rank belongs to the adapters; a batched one to attention.
    """
    milliseconds = dict.fromkeys(PARTS, 0.0)
    for event in trace.key_averages(group_by_input_shape=True):
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        milliseconds[part_of(event.key, event.input_shapes or [], ranks)] += own / 1e3 / steps
    return milliseconds


def part_of(name: str, shapes: list[Any], ranks: set[int]) -> str:
    """The part of a step that an operation belongs to."""
    sizes = {size for shape in shapes if isinstance(shape, (list, tuple)) for size in shape if isinstance(size, int)}
    if name in _ADAPTER_OPS:
        return "adapters"
    if name == "ffalora::clip_reduce_":
        return "clipping"
    if name == "ffalora::privatize_step_":
        return "noise and optimiser"
    if name == _DATA:
        return "data"
    if any(word in name for word in _ATTENTION):
        return "attention"
    if name in _PRODUCTS:
        if sizes & ranks:
            return "adapters"
        return "attention" if name in ("aten::bmm", "aten::baddbmm") else "base products"
    return "everything else"


def _enough_steps(config: Config, steps: int) -> Any:
    """The federation section with enough rounds for the steps: a private client may take no more than was planned."""
    federation = config.federation
    rounds = max(federation.rounds, -(-steps // federation.local_steps))
    return federation.model_copy(update={"rounds": rounds})


def _trainer(experiment: Experiment) -> Callable[[int], Any]:
    """A function that takes logical steps as the first round would."""
    strategy, participants = experiment.strategy, experiment.participants
    server = strategy.begin()
    strategy.load(server, trains=True)
    cohort = participants if trains_in_one_pass(experiment, len(participants)) else participants[:1]
    clients = [participant.client_id for participant in cohort]
    rows, mask = strategy.start(server, clients), strategy.mask(server, clients)
    train = local_training(experiment.engine, strategy)
    return lambda steps: train(cohort, rows, steps, mask=mask)


@contextmanager
def _data_marked(experiment: Experiment) -> Iterator[None]:
    """Within the block the collating of batches appears in the trace under its own name."""
    engine, data = experiment.engine, experiment.engine.data

    class Marked:
        lengths = data.lengths

        def collate(self, indices: Sequence[int] | np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
            with record_function(_DATA):
                return data.collate(indices)

    engine.data = Marked()
    try:
        yield
    finally:
        engine.data = data


def _memory(experiment: Experiment, trace: Any, cuda: bool) -> dict[str, int]:
    """Bytes of weights, factors, arena and state, and the peak of what the steps allocated."""
    parts, arena = experiment.adapters.memory(), experiment.engine.arena
    found = {
        "base weights": parts.base,
        "adapters": parts.frozen_factors + parts.trained,
        "arena": arena.gradients.nbytes + arena.squares.nbytes,
    }
    if cuda:
        return found | {"peak": torch.cuda.max_memory_allocated(experiment.engine.device)}
    return found | {"activations, at most": _most_at_once(trace)}


def _most_at_once(trace: Any) -> int:
    """The largest sum of what was allocated and not yet freed in the profiled steps."""
    moments = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(moments, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
