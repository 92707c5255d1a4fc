"""What ``utility_sweep.py`` tries: recipes of private fine-tuning, and the run that each of them is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ffalora.config import Config, load_config

DEMO = Path(__file__).parents[1] / "ffalora" / "configs" / "demo.yaml"


@dataclass(frozen=True)
class Recipe:
    """What is tried.

    Attributes:
        changes: dotted keys of the configuration in which it differs from the demo.
        path: how far all steps together may carry an adapter, in its units (rate times the sum of the schedule).
        head: the head's rate, relative to what its noise allows.
        probe_share: share of the squared signal (of μ²) that a private probe takes first, where the head then starts.
    """

    name: str
    path: float
    changes: tuple[tuple[str, Any], ...] = ()
    head: float = 1.0
    probe_share: float = 0.0


@dataclass(frozen=True)
class Job:
    """One run, or (``recipe.path`` 0) the baselines of its data."""

    recipe: Recipe
    epsilon: float
    split: str
    seed: int
    sigma: float | None = None
    device: str = "cpu"
    small: bool = False
    deadline: float = float("inf")

    @property
    def key(self) -> tuple[str, ...]:
        """Of its row."""
        return (self.recipe.name, f"{self.recipe.path:g}", f"{self.epsilon:g}", self.split, str(self.seed))


def configuration(job: Job) -> Config:
    """The run that a job is."""
    changes: dict[str, Any] = {
        "methods": {},
        "seed": job.seed,
        "device": job.device,
        "baselines": False,
        "data.evaluate_on": "test" if job.split == "test" else "validation",
        "adapter.layers_to_transform": [4, 5],
        "optimizer.batch_size": 512,
        "optimizer.token_budget": 32768 if job.device != "cpu" else None,
        "federation.one_pass": "auto",
        "privacy.target_epsilon": job.epsilon,
    } | dict(job.recipe.changes)
    if job.sigma is not None:
        changes |= {"privacy.target_epsilon": None, "privacy.noise_multiplier": job.sigma}
    if job.small:
        changes |= {"federation.rounds": 2, "federation.local_steps": 1, "optimizer.batch_size": 16}
    changes["federation.evaluate_every"] = changes.get("federation.rounds", 25)
    return load_config(DEMO, changes)


def recipes(epsilon: float) -> list[Recipe]:
    """Everything that is tried. Where ε is small, steps carry more noise, and paths are shorter in proportion to it."""
    layers, modules, batch = "adapter.layers_to_transform", "adapter.target_modules", "optimizer.batch_size"
    rank = lambda r: (("adapter.rank", r), ("adapter.alpha", r))  # noqa: E731
    scale = lambda h: (("model.head_scale", h), ("privacy.max_grad_norm", h / 3))  # noqa: E731
    lora = (("federation.strategy", "lora"),)
    found = [Recipe("base", path) for path in (0.01, 3.0, 10.0, 30.0, 60.0)]
    grid: dict[str, tuple[tuple[tuple[str, Any], ...], tuple[float, ...]]] = {
        "layer 5": (((layers, [5]),), (10.0, 30.0, 60.0)),
        "lora": (lora, (1.0, 3.0, 10.0)),
        "all layers": (((layers, [0, 1, 2, 3, 4, 5]),), (3.0, 10.0, 30.0)),
        "layers 2-5": (((layers, [2, 3, 4, 5]),), (10.0, 30.0)),
        "layers 0-3": (((layers, [0, 1, 2, 3]),), (10.0, 30.0)),
        "scale 6": (scale(6.0), (10.0, 30.0)),
        "scale 10": (scale(10.0), (10.0, 30.0, 60.0)),
        "rank 2": (rank(2), (10.0, 30.0)),
        "rank 1": (rank(1), (10.0, 30.0)),
        "rank 32": (rank(32), (10.0, 30.0)),
        "query, value": (((modules, ["query", "value"]),), (30.0, 60.0)),
        "output": (((modules, ["layer.4.output.dense", "layer.5.output.dense"]), (layers, None)), (30.0, 60.0)),
        "batch 1024": (((batch, 1024),), (10.0, 30.0)),
        "batch 256": (((batch, 256),), (10.0, 30.0)),
        "100 steps": ((("federation.rounds", 50),), (10.0, 30.0)),
        "head share .5": ((("privacy.head_share", 0.5),), (10.0, 30.0)),
        "head share .8": ((("privacy.head_share", 0.8),), (10.0, 30.0)),
        "one layer read": ((("model.pooled_layers", 1),), (3.0, 10.0, 30.0)),
        "six layers read": ((("model.pooled_layers", 6),), (10.0, 30.0)),
        "lora, layer 5": (((layers, [5]), *lora), (3.0, 10.0)),
        "scale 10, all layers": ((*scale(10.0), (layers, [0, 1, 2, 3, 4, 5])), (10.0, 30.0)),
        "scale 10, batch 1024": ((*scale(10.0), (batch, 1024)), (10.0, 30.0)),
    }
    found += [Recipe(name, path, changes) for name, (changes, paths) in grid.items() for path in paths]
    found += [Recipe(f"head x {times:g}", 10.0, head=times) for times in (0.5, 2.0)]
    found += [Recipe("probe first", path, probe_share=0.5) for path in (10.0, 30.0)]
    found += [Recipe("probe first, scale 10", path, scale(10.0), probe_share=0.5) for path in (10.0, 30.0)]
    return [replace(one, path=float(f"{one.path * epsilon / 6:.3g}")) for one in found]
