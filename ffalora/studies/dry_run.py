"""A study without its model and data: every cell takes two local steps on stand-ins, through the code that a real run
takes, and what a real run trains and sends is counted in full size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from ..config import Config, ConfigError, from_mapping, merge
from ..data.load import load_data
from .architectures import FullSize, full_size
from .grid import Cell, Grid, Place, load_grid
from .plan import planned_runs
from .protocol import Scale, Tried
from .results import StudyResult
from .runner import run_study
from .stand_ins import write_data, write_model
from .study import load_study, study_names

_STEPS, _BATCH, _EVALUATED, _ANSWER = 2, 8, 4, 4


@dataclass(frozen=True, kw_only=True)
class StandInGrid(Grid):
    """A grid whose every cell is one run of two local steps on stand-ins; all else is as the study asks.

    Attributes:
        stand_ins: folder that they are written to.
    """

    stand_ins: Path

    def tried(self, place: Place) -> Tried:
        """The first of what would be tried: nothing is chosen."""
        return {key: values[:1] for key, values in super().tried(place).items()}

    def config(self, cell: Cell) -> Config:
        """The cell's configuration with a small model, small data, and an end after two steps."""
        return on_stand_ins(super().config(cell), self.stand_ins)


def on_stand_ins(config: Config, folder: Path) -> Config:
    """``config`` with stand-ins for a model or data that are no local files, one round of two steps, and small batches.

    Raises:
        ConfigError: there is no stand-in for its model or its data.
    """
    changes: dict[str, object] = {
        "device": "cpu",
        "federation.rounds": 1,
        "federation.local_steps": _STEPS,
        "optimizer.batch_size": min(config.optimizer.batch, _BATCH),
        "optimizer.warmup_steps": min(config.optimizer.warmup_steps, 1),
        "data.max_evaluation_samples": _EVALUATED,
    }
    if config.data.answer_tokens is not None:
        changes["data.answer_tokens"] = min(config.data.answer_tokens, _ANSWER)
    if not Path(config.model.name).exists():
        changes["model.name"] = str(write_model(config.model.name, folder))
    if not Path(config.data.name).exists():
        changes["data.name"] = write_data(config, folder)
    return from_mapping(merge(config.model_dump(), changes))


@dataclass(frozen=True)
class DryRun:
    """What was checked.

    Attributes:
        grid: of which every cell was run.
        cells: their number.
        sizes: by method and condition, in full size; without those whose model is a local one.
    """

    grid: Grid
    cells: int
    sizes: dict[tuple[str, str], FullSize] = field(default_factory=dict)

    def to_text(self) -> str:
        """In a few lines: what ran, and what a client sends by method (of conditions that agree, once)."""
        at = self.grid.study.scales[self.grid.scale]
        config = self.grid.config(_first_cells(self.grid)[0])
        choosing, judging = planned_runs(self.grid)
        lines = [
            f"{self.grid.name}, scale {self.grid.scale}, {at.base}: {self.cells} cells "
            f"({len(self.grid.methods)} methods, {len(self.grid.conditions)} conditions) took {_STEPS} local steps "
            f"each on stand-ins for {config.model.name} and {config.data.name}, were evaluated and saved. In full: "
            f"{choosing} runs to choose values and {judging} or more to report, of {config.federation.rounds} rounds "
            "unless a condition says otherwise."
        ]
        grouped: dict[tuple[str, FullSize], list[str]] = {}
        for (method, condition), size in self.sizes.items():
            grouped.setdefault((method, size), []).append(condition)
        for (method, size), conditions in grouped.items():
            where = "" if len(conditions) == len(self.grid.conditions) else f" ({', '.join(conditions)})"
            lines.append(
                f"  {method}{where}: {size.trained:,} of {size.parameters:,} numbers trained in {size.layers} layers, "
                f"{size.bytes_up:,} bytes up a client and round"
            )
        return "\n".join(lines)


def dry_run(grid: Grid) -> DryRun:
    """Takes every method through every condition of ``grid`` on stand-ins in a temporary folder.

    Raises:
        ConfigError: a cell does not fit, or does not report what tables and claims need. Whatever a real run raises.
    """
    with TemporaryDirectory() as name, _apart(Path(name) / "cache"):
        folder = Path(name)
        given = {f.name: getattr(grid, f.name) for f in fields(grid)}
        small = StandInGrid(**given | {"seeds": range(1), "is_powered": False}, stand_ins=folder)
        result = run_study(small, folder / "study", progress=False)
        _check_metrics(result)
        sizes = _sizes(grid, small)
    return DryRun(grid, len(result.results), sizes)


def rehearsals(scale: Scale, protocol: str | None = None) -> Iterator[Grid]:
    """What tries a whole scale: every cell of every study on its own base; beside it the small part of a study on
    another base where more than the base differs, and once on every base that is left.
    """
    tried, studies = set(), {name: load_study(name) for name in study_names()}
    at = {name: study.scales[scale] for name, study in studies.items() if scale in study.scales}
    for name in at:
        yield load_grid(name, scale, "verdict", protocol=protocol)
    others = [(name, base, other) for name in at for base, other in at[name].other_bases.items()]
    for name, base, other in sorted(others, key=lambda each: not (each[2].metric or each[2].conditions)):
        if other.metric or other.conditions or base not in tried:
            tried.add(base)
            yield load_grid(name, scale, "smoke", base=base, protocol=protocol)


def _check_metrics(result: StudyResult) -> None:
    """Every cell reports what tables and claims compare."""
    for name in {result.grid.study.metric, *(claim.metric for claim in result.grid.study.claims if claim.metric)}:
        values = result.values(name)
        for cell in (each.cell for each in result.results):
            if (cell.method, cell.condition, cell.seed) not in values:
                raise ConfigError(
                    f"study {result.grid.name}: {cell.method}, {cell.condition} reports no {name}, which the study "
                    "compares"
                )


def _first_cells(grid: Grid) -> list[Cell]:
    """One cell a method and condition, with the first of what would be tried."""
    return [cell for cell in grid.verdict_cells(grid.first_chosen()) if cell.seed == grid.seeds[0]]


def _sizes(grid: Grid, small: Grid) -> dict[tuple[str, str], FullSize]:
    known: dict[str, FullSize] = {}
    found = {}
    for cell in _first_cells(grid):
        config = grid.config(cell)
        if Path(config.model.name).exists():
            continue
        key = f"{config.model.name} {config.data.task} {config.federation.strategy} {config.adapter} {config.clients}"
        if key not in known:
            known[key] = full_size(config, _labels(small.config(cell)))
        found[cell.method, cell.condition] = known[key]
    return found


def _labels(config: Config) -> int:
    """Outputs of the task head, as the data decide them."""
    data = config.data
    return load_data(data.name, task=data.task, input_columns=data.text, split_names=data.splits).num_labels


@contextmanager
def _apart(folder: Path) -> Iterator[None]:
    """Within the block ``datasets`` keeps what it converts in ``folder``, without bars, and transformers does not warn
    of every new head.
    """
    import datasets
    from datasets.utils.logging import is_progress_bar_enabled
    from transformers.utils import logging

    cache, shows_bars, verbosity = datasets.config.HF_DATASETS_CACHE, is_progress_bar_enabled(), logging.get_verbosity()
    datasets.config.HF_DATASETS_CACHE = folder
    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = cache
        logging.set_verbosity(verbosity)
        if shows_bars:
            datasets.enable_progress_bars()
