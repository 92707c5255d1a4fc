"""The language-model demo over seeds, with its noise and without: ``benchmarks/data/language_demo.csv``.

    python benchmarks/language_demo.py [--seeds 5] [--rows ffa plain ...]
    python benchmarks/language_demo.py --table

``ffa`` and ``lora`` are the demo's methods at ε = 8, ``correlated`` the first with banded-mf noise; ``plain`` is
FFA-LoRA's recipe without noise, clipped as it is; ``untrained`` and ``commonest`` are what the page shows beside them.
Scores are of the test questions. What is there is not run again.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from checkout import ROOT
from csv_tables import extend_table, read_table

from ffalora.config import load_config
from ffalora.federated.compared import COMMONEST, UNTRAINED
from ffalora.federated.simulate import simulate

TABLE = ROOT / "benchmarks/data/language_demo.csv"
COLUMNS = ("row", "seed", "exact_match", "loss", "epsilon", "seconds")
PLAIN = {"privacy.target_epsilon": None, "privacy.noise_multiplier": 0.0}
#: Names of the trained rows: the demo's method, and what differs from the demo.
ROWS = {
    "ffa": ("ffa", {}),
    "lora": ("lora", {}),
    "correlated": ("ffa", {"privacy.mechanism": "banded-mf"}),
    "plain": ("ffa", PLAIN),
}


def measure(row: str, seed: int) -> None:
    """Trains a row with a seed, and writes down its score and, once, those it has to beat."""
    method, changes = ROWS[row]
    config = load_config(ROOT / "ffalora/configs/demo-lm.yaml", {"seed": seed} | changes).runs()[method]
    with tempfile.TemporaryDirectory() as folder:
        summary = simulate(config, Path(folder) / "run", progress=False).summary
    found = [(row, summary["metrics"], summary["epsilon"], summary["seconds"])]
    if row == "ffa":
        before = {baseline["name"]: baseline["metrics"] for baseline in summary["baselines"]}
        found += [("untrained", before[UNTRAINED], None, None), ("commonest", before[COMMONEST], None, None)]
    for name, metrics, epsilon, seconds in found:
        scores = {"exact_match": metrics["exact_match"], "loss": metrics.get("loss")}
        line = {"row": name, "seed": seed, **scores, "epsilon": epsilon, "seconds": seconds}
        extend_table(TABLE, COLUMNS, [line])


def table() -> str:
    """Means of each row over seeds, with Student's 95% intervals, and the share of the gain that privacy leaves."""
    from scipy.stats import t

    found: dict[str, list[float]] = {}
    for line in read_table(TABLE):
        found.setdefault(line["row"], []).append(float(line["exact_match"]))
    lines = ["| | seeds | right answers | 95% interval |", "| --- | --- | --- | --- |"]
    for name, scores in found.items():
        mean, count = float(np.mean(scores)), len(scores)
        wide = t.ppf(0.975, count - 1) * np.std(scores, ddof=1) / count**0.5 if count > 1 else float("nan")
        lines.append(f"| {name} | {count} | {mean:.3f} | {mean - wide:.3f} to {mean + wide:.3f} |")
    if {"ffa", "plain", "untrained"} <= found.keys():
        start = np.mean(found["untrained"])
        share = (np.mean(found["ffa"]) - start) / (np.mean(found["plain"]) - start)
        lines += ["", f"ε = 8 keeps {share:.0%} of what the recipe gains without noise."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--table", action="store_true", help="print what is there")
    chosen = parser.parse_args()
    if chosen.table:
        print(table())
        return
    there = {(line["row"], int(line["seed"])) for line in read_table(TABLE)}
    for seed, row in product(range(chosen.seeds), chosen.rows):
        if (row, seed) not in there:
            measure(row, seed)


if __name__ == "__main__":
    main()
