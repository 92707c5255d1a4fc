"""Does a bfloat16 base cost accuracy? The demo's FFA-LoRA, shortened, with both formats and the same seeds and noise.

    python benchmarks/number_format.py            # every seed that benchmarks/data/number_format.csv does not hold yet

A seed fixes partition, samples and noise, and the factors are those of `adapter.seed`, so the two runs of a seed differ
in the format of the frozen base alone. What matters is their difference beside the spread from seed to seed. Accuracies
do not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from csv_tables import extend_table, read_table

TABLE = Path(__file__).parent / "data" / "number_format.csv"
CONFIG = Path(__file__).parents[1] / "ffalora" / "configs" / "demo.yaml"
FORMATS = ("float32", "bfloat16")
COLUMNS = ("method", "rounds", "seed", *(f"{name}_{what}" for name in FORMATS for what in ("accuracy", "loss")))
ROUNDS, SEEDS = 8, (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Comparison:
    """bfloat16 minus float32 over the seeds.

    Attributes:
        seeds: how many.
        float32, bfloat16: mean test accuracies.
        difference, low, high: mean difference with its 95% interval (Student's t over paired seeds).
        spread: standard deviation of the float32 accuracies from seed to seed.
    """

    seeds: int
    float32: float
    bfloat16: float
    difference: float
    low: float
    high: float
    spread: float


def compare(rows: Sequence[dict[str, str]]) -> Comparison:
    """The comparison of at least two seeds."""
    from scipy.stats import t

    wide, narrow = ([float(row[f"{name}_accuracy"]) for row in rows] for name in FORMATS)
    differences = [b - a for a, b in zip(wide, narrow, strict=True)]
    middle, n = statistics.mean(differences), len(differences)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
    return Comparison(
        n, statistics.mean(wide), statistics.mean(narrow), middle, middle - half, middle + half, statistics.stdev(wide)
    )


def run(seed: int, rounds: int) -> list[str]:
    """Test accuracy and loss of one seed in each format."""
    from ffalora.config import load_config, merge
    from ffalora.federated.simulate import simulate

    config = load_config(CONFIG).runs()["ffa"]
    figures = []
    for name in FORMATS:
        changes = {"seed": seed, "model.dtype": name, "federation.rounds": rounds, "federation.evaluate_every": rounds}
        cell = type(config).model_validate(merge(config.model_dump(exclude={"methods"}), changes))
        with tempfile.TemporaryDirectory() as folder:
            metrics = simulate(cell, Path(folder) / "run", progress=False).summary["metrics"]
        figures += [f"{metrics['accuracy']:.4f}", f"{metrics['loss']:.4f}"]
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of the shortened demo [{ROUNDS}]")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="seeds to run")
    parser.add_argument("--output", type=Path, default=TABLE, help="CSV that rows are appended to")
    options = parser.parse_args(arguments)
    done = {tuple(row[c] for c in COLUMNS[:3]) for row in read_table(options.output)}
    for seed in options.seeds:
        cell = ("ffa", str(options.rounds), str(seed))
        if cell in done:
            continue
        row = [*cell, *run(seed, options.rounds)]
        extend_table(options.output, COLUMNS, [dict(zip(COLUMNS, row, strict=True))])
        print(*row, flush=True)
    rows = read_table(options.output)
    if len(rows) > 1:
        found = compare(rows)
        print(
            f"{found.seeds} seeds: float32 {found.float32:.4f}, bfloat16 {found.bfloat16:.4f}, difference "
            f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}), from seed to seed {found.spread:.4f}"
        )


if __name__ == "__main__":
    main()
