"""Accuracy when one of five clients is hostile, with the plain average and with each robust mean.

    python benchmarks/robust_means.py [--rounds 6] [--output benchmarks/data/robust_means.csv]

FFA-LoRA on the crowd-rated movie sentences, five equal clients, no privacy, the pretrained MiniLM encoder. The hostile
client sends its update with the sign turned, its update a million times, or what it learns from turned labels. The last
layer is adapted and the head is trained. Rows:
attack, mean, accuracy, loss, test rows, rounds. ``norm-bounded`` takes each round's median norm as its bound.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ffalora.config import from_mapping
from ffalora.federated.cohort import train_cohort
from ffalora.federated.experiment import Experiment, build
from ffalora.federated.robust import ROBUST_MEANS, robust_mean
from ffalora.federated.simulate import close_round, evaluate_views, open_round
from ffalora.federated.strategies import weighted_mean
from ffalora.federated.strategies.wire import ServerState
from ffalora.files.numbers import rows_to_csv

ATTACKS = ("none", "sign-flipped", "times-a-million", "labels-flipped")
_HOSTILE = 0
_CONFIG = {
    "data": {"name": "movie-reviews", "max_samples": 1000, "max_length": 32, "max_evaluation_samples": 400},
    "adapter": {"target_modules": ["layer.5.attention.self.query", "layer.5.attention.self.value"], "head": "trained"},
    "model": {"head_scale": 3.0},
    "clients": {"count": 5},
    "federation": {"local_steps": 3, "weighting": "uniform", "evaluate_every": 1000},
    "optimizer": {"name": "adamw", "lr": 0.03, "batch_size": 32},
}


def main() -> None:
    """Measures every pair of attack and mean, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6, help="communication rounds of each run")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data" / "robust_means.csv")
    asked = parser.parse_args()
    experiment = build(from_mapping(_CONFIG | {"federation": _CONFIG["federation"] | {"rounds": asked.rounds}}))
    start = experiment.strategy.begin().row.clone()
    rows = []
    for attack in ATTACKS:
        for name in (None, *ROBUST_MEANS):
            experiment.mean = weighted_mean if name is None else robust_mean(name, hostile=1)
            metrics = run(experiment, ServerState(start.clone()), attack, asked.rounds)
            rows.append(
                {
                    "attack": attack,
                    "mean": name or "plain",
                    "accuracy": round(metrics["accuracy"], 4),
                    "loss": round(metrics["loss"], 4),
                    "test_rows": min(400, len(experiment.evaluation)),
                    "rounds": asked.rounds,
                }
            )
            print(rows[-1], flush=True)
    asked.output.write_text(rows_to_csv(rows))


def run(experiment: Experiment, server: ServerState, attack: str, rounds: int) -> dict[str, float]:
    """The metrics after ``rounds`` in which one client is hostile in the way that ``attack`` names."""
    labels, samples = experiment.engine.data.labels, experiment.participants[_HOSTILE].samples
    true = labels.copy()
    if attack == "labels-flipped":
        labels[samples] = 1 - labels[samples]
    for participant in experiment.participants:
        participant.steps_taken = 0
    for _ in range(rounds):
        opened = open_round(experiment, server)
        report = train_cohort(experiment, server, opened.cohort, opened.rows)
        update = opened.rows[_HOSTILE] - server.row
        factor = {"sign-flipped": -1.0, "times-a-million": 1e6}.get(attack, 1.0)
        opened.rows[_HOSTILE] = server.row + factor * update
        close_round(experiment, server, opened, report, 0.0)
    labels[:] = true
    return evaluate_views(experiment, server)


if __name__ == "__main__":
    main()
