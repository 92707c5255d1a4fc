"""Whole runs of a study: those that may be rows of one cohort, trained together and one by one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness import interleave
from record import Row
from session import Session

from ffalora.config import Config
from ffalora.federated.experiment import build
from ffalora.federated.simulate import simulate
from ffalora.federated.together import simulate_together
from ffalora.studies.grid import TUNING_SEEDS, load_grid

_BATCHES = (64, 16)
_TOGETHER, _ALONE = "ours, runs together", "ours, one run after another"


def choosing_runs(batch_size: int, quick: bool) -> list[Config]:
    """The runs among which the privacy study chooses FFA-LoRA's learning rate at ε = 6."""
    changes = {"optimizer.batch_size": batch_size} | (
        {"federation.rounds": 1, "data.max_samples": 400} if quick else {}
    )
    grid = load_grid("privacy", "laptop", "verdict", changes)
    cells = [cell for cell in grid.tuning_cells(("ffa", "eps-6")) if cell.seed == TUNING_SEEDS[0]]
    return [grid.config(cell) for cell in (cells[:2] if quick else cells)]


def measure_runs(session: Session) -> None:
    """Whole runs, loading and evaluation included; the table of frozen states is there before the clock starts."""
    for batch_size in _BATCHES[-1:] if session.quick else _BATCHES:
        configs = choosing_runs(batch_size, session.quick)
        case = f"{len(configs)} learning rates, MiniLM movie reviews, Poisson {batch_size}, 3 clients"
        if not session.wants("runs", case, [_TOGETHER, _ALONE]):
            continue
        build(configs[0])
        with tempfile.TemporaryDirectory() as folder:
            calls = {
                _TOGETHER: lambda n, top=Path(folder), configs=configs: _together(configs, top / f"together-{n}"),
                _ALONE: lambda n, top=Path(folder), configs=configs: _one_by_one(configs, top / f"alone-{n}"),
            }
            timings = interleave(calls, session.clock, 1 if session.quick else 3, 180.0, warmup=0)
        session.keep(
            [Row("runs", case, name, gate=session.gate, **timing.columns()) for name, timing in timings.items()]
        )


def gain_together(found: dict[str, Row]) -> float:
    """How many times as long one run after another takes."""
    return found[_ALONE].ms / found[_TOGETHER].ms


def _together(configs: list[Config], top: Path) -> None:
    simulate_together({top / str(i): config for i, config in enumerate(configs)})


def _one_by_one(configs: list[Config], top: Path) -> None:
    for i, config in enumerate(configs):
        simulate(config, top / str(i), progress=False)
