"""Run folders as ``simulate`` writes them, with made-up figures: for tests of what reads them."""

import json
from pathlib import Path

from ffalora.config import Config, to_yaml

CLASSES = {"client-0": {"negative": 90, "positive": 810}, "client-1": {"negative": 810, "positive": 90}}


def write_run(config: Config, folder: Path, rounds: int | None = None, skill: float = 0.2) -> None:
    """A finished run of ``config`` (or one interrupted after ``rounds``) whose accuracy rises by ``skill``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    total = config.federation.rounds
    rows = []
    for number in range(1, (total if rounds is None else rounds) + 1):
        private = config.privacy.unit != "none"
        epsilon = round(6.0 * (number / total) ** 0.5, 4)
        accuracy = 0.5 + skill * number / total + 0.01 * config.seed
        rows.append(
            {
                "round": number,
                "seconds": 2.5,
                "metrics": {"loss": 1.0 - accuracy, "accuracy": accuracy, "macro_f1": accuracy - 0.02},
                "epsilon": epsilon if private else None,
                "epsilon_per_client": {"0": epsilon, "1": epsilon} if private else {},
                "bytes_up": 590_000,
                "bytes_down": 1_180_000,
                "update_gap": 0.0,
                "nonfinite": 0,
                "padding": 0.1,
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = [
        {"client": name, "samples": sum(classes.values()), "share": 0.5, "classes": classes}
        for name, classes in CLASSES.items()
    ]
    (folder / "partition.json").write_text(json.dumps(table))
    environment = {"ffalora": "0.1.0", "device": "cpu", "backends": {"cpp": "available"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "privacy.txt").write_text("Privacy of this run: ε = 6 at most, at δ = 1e-05\n  caveat <script>\n")
