"""Chooses each method's learning rate under the paper's protocol on the validation split, with a seed of its own.

    python benchmarks/tune_paper.py           # every cell that benchmarks/data/paper_tuning.csv does not hold yet

Rows are appended; ffalora/studies/theory/base.yaml takes the best row of each method.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from csv_tables import extend_table, read_table

from ffalora.config import load_config, merge
from ffalora.federated.simulate import simulate

TABLE = Path(__file__).parent / "data" / "paper_tuning.csv"
COLUMNS = ("method", "lr", "max_grad_norm", "rounds", "seed", "validation_accuracy", "validation_loss", "epsilon")
GRID = {"ffa": (50.0, 100.0, 200.0, 400.0, 800.0), "lora": (10.0, 30.0, 90.0, 270.0, 810.0)}
SEED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ffalora/studies/theory/base.yaml", help="the protocol")
    parser.add_argument("--clip", type=float, nargs="+", default=[0.1], help="clipping norms to try")
    parser.add_argument("--method", nargs="+", default=list(GRID), choices=list(GRID), help="methods to tune")
    options = parser.parse_args()
    done = {tuple(row[c] for c in COLUMNS[:5]) for row in read_table(TABLE)}
    base = load_config(options.config)
    for method in options.method:
        for clip in options.clip:
            for lr in GRID[method]:
                cell = (method, str(lr), str(clip), str(base.federation.rounds), str(SEED))
                if cell not in done:
                    _append(cell, _run(base.runs()[method], lr, clip))


def _run(config, lr: float, clip: float) -> tuple[float, float, float]:
    changes = {
        "seed": SEED,
        "optimizer.lr": lr,
        "privacy.max_grad_norm": clip,
        "data.evaluate_on": "validation",
        "data.max_evaluation_samples": None,
        "federation.evaluate_every": config.federation.rounds,
    }
    cell = type(config).model_validate(merge(config.model_dump(exclude={"methods"}), changes))
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(cell, Path(folder) / "run").summary
    return result["metrics"]["accuracy"], result["metrics"]["loss"], result["epsilon"]


def _append(cell: tuple[str, ...], figures: tuple[float, ...]) -> None:
    row = [*cell, *(f"{f:.4f}" for f in figures)]
    extend_table(TABLE, COLUMNS, [dict(zip(COLUMNS, row, strict=True))])
    print(*row)


if __name__ == "__main__":
    main()
