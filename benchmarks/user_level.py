"""Accuracy where samples and where users are protected, at the same ε: ``benchmarks/data/user_level.csv``.

    python benchmarks/user_level.py [--seeds 2] [--epsilons 8]
    python benchmarks/user_level.py --table

Ten review sentences of each of 500 films (rotten-tomatoes, one site, films apart in train and test); a film's sentences
are those of one user. Every row draws a quarter of its users, or samples, in each of 50 steps, at the demo's
defaults. ``checked`` is ε by dp-accounting's own accountant from σ, q, steps and group alone. What is there is not run
again.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas
from checkout import ROOT
from csv_tables import extend_table, read_table
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from scipy.stats import binom

from ffalora.config import Config, load_config
from ffalora.data.embedded import find
from ffalora.data.load import load_data
from ffalora.federated.experiment import build
from ffalora.federated.simulate import simulate
from ffalora.privacy.accounting import PrivacyLedger

DATA, TABLE = "rotten-tomatoes", ROOT / "benchmarks/data/user_level.csv"
COLUMNS = ("unit", "epsilon", "seed", "accuracy", "checked", "sigma", "drawn", "group")
USER = {"privacy.unit": "user", "data.user": "movie"}
#: Names of the rows, and what they set.
SETTINGS = {
    "samples": {"privacy.unit": "sample", "data.user": "movie"},
    "users, all their samples": USER | {"privacy.samples_per_user": 10},
    "users, 2 of their samples": USER | {"privacy.samples_per_user": 2},
    "users, as groups of 10 samples": USER | {"privacy.draws": "samples", "privacy.samples_per_user": 10},
    "users, as groups of 2 samples": USER | {"privacy.draws": "samples", "privacy.samples_per_user": 2},
}
SHARE, DELTA, ROWS = 0.25, 1e-5, 10


@cache
def sentences() -> Path:
    """A table of the first sentences of each film."""
    films = pandas.concat([rows.to_pandas() for rows in load_data(DATA, user_column="movie").splits.values()])
    own = find(DATA)
    films["label"] = [(own.label_names or ())[label] for label in films["label"]]
    path = Path(tempfile.mkdtemp()) / "films.csv"
    films.groupby("movie", sort=True).head(ROWS).to_csv(path, index=False)
    return path


def configuration(unit: str, epsilon: float, seed: int) -> Config:
    """The demo's, on one site of films."""
    changes = {
        "methods": {}, "seed": seed, "data.name": str(sentences()), "clients.count": 1, "clients.partition": "iid",
        "clients.proportions": None, "federation.evaluate_every": 1000, "baselines": False, "data.text": "text",
        "data.label_texts": {name: list(texts) for name, texts in (find(DATA).label_texts or {}).items()},
        "data.public_texts": list(find(DATA).public_texts or ()),
        "privacy.target_epsilon": epsilon, "privacy.delta": DELTA,
    } | SETTINGS[unit]  # fmt: skip
    config = load_config(ROOT / "ffalora/configs/demo.yaml", changes)
    [ledger] = build(config).ledgers.values()
    return load_config(
        ROOT / "ffalora/configs/demo.yaml", changes | {"optimizer.batch_size": round(SHARE * ledger.dataset_size)}
    )


def checked_epsilon(ledger: PrivacyLedger) -> float:
    """ε of the ledger's steps by dp-accounting, from the mechanism's own description."""
    sigma, rate, group = ledger.noise_multiplier, ledger.sample_rate, ledger.group
    step: dp_event.DpEvent = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    if group > 1:
        drawn = np.arange(group + 1)
        step = dp_event.MixtureOfGaussiansDpEvent(sigma, drawn.tolist(), binom.pmf(drawn, group, rate).tolist())
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    return accountant.compose(step, ledger.max_steps).get_epsilon(ledger.delta)


def measured(unit: str, epsilon: float, seed: int) -> dict[str, object]:
    """One row."""
    config = configuration(unit, epsilon, seed)
    [ledger] = build(config).ledgers.values()
    with tempfile.TemporaryDirectory() as folder:
        result = simulate(config, Path(folder) / "run", progress=False)
    return dict(
        unit=unit, epsilon=epsilon, seed=seed, accuracy=f"{result.summary['metrics']['accuracy']:.6f}",
        checked=f"{checked_epsilon(ledger):.4f}", sigma=f"{ledger.noise_multiplier:.4f}", drawn=ledger.dataset_size,
        group=ledger.group,
    )  # fmt: skip


def table() -> str:
    """Mean accuracy over seeds, their number, and σ, in Markdown."""
    rows = read_table(TABLE)
    lines = ["| protected | drawn from | ε | σ | accuracy | seeds |", "| --- | --- | --- | --- | --- | --- |"]
    for unit in SETTINGS:
        for epsilon in sorted({row["epsilon"] for row in rows}, key=float, reverse=True):
            found = [row for row in rows if (row["unit"], row["epsilon"]) == (unit, epsilon)]
            if found:
                mean = float(np.mean([float(row["accuracy"]) for row in found]))
                first = found[0]
                cells = [unit, first["drawn"], f"{float(epsilon):g}", f"{float(first['sigma']):.2f}", f"{mean:.3f}"]
                lines.append(f"| {' | '.join([*cells, str(len(found))])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[8.0])
    parser.add_argument("--table", action="store_true", help="print what was measured")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    rows = read_table(TABLE)
    for seed in range(arguments.seeds):
        for epsilon in arguments.epsilons:
            for unit in SETTINGS:
                if any((r["unit"], float(r["epsilon"]), int(r["seed"])) == (unit, epsilon, seed) for r in rows):
                    continue
                rows.append({name: str(value) for name, value in measured(unit, epsilon, seed).items()})
                print(", ".join(rows[-1].values()), flush=True)
                extend_table(TABLE, COLUMNS, rows[-1:])


if __name__ == "__main__":
    main()
