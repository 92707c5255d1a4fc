"""A study of two methods under two conditions, on whatever model and data it is given; and a stand-in for training."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from ffalora.config import Config
from ffalora.runs.folder import CHECKPOINT, SUMMARY
from ffalora.studies.grid import Grid
from ffalora.studies.study import Study

DEFINITION = {
    "title": "A small study",
    "question": "Is b harder than a?",
    "source": "nobody",
    "axis": "hardness",
    "methods": {"lora": {"federation.strategy": "lora"}, "ffa": {"federation.strategy": "ffa"}},
    "conditions": {
        "a": {"says": "easy"},
        "b": {"says": "hard: noisy", "set": {"federation.local_steps": 1}},
        "c": {"says": "easy, off", "like": "a", "factor": {"optimizer.lr": 4, "adapter.alpha": 0.5}},
    },
    "claims": [{"says": "Hard costs LoRA more", "contrast": {"lora@a": 1, "lora@b": -1}, "paper": True}],
    "scales": {
        "laptop": {
            "base": "laptop",
            "smoke": {"seeds": 1, "methods": ["lora"], "conditions": ["a"]},
            "verdict": {"seeds": 2},
        }
    },
}
TRIED = {"lora": {"optimizer.lr": [1, 2, 4]}, "ffa": {"optimizer.lr": [8]}}
BASE = {"adapter": {"alpha": 8, "rank": 2}, "federation": {"rounds": 2}}


def small_grid(base=None, tried=None, is_powered=False, **changes) -> Grid:
    """The study's verdict grid; ``changes`` replace parts of its definition."""
    study = Study.model_validate(DEFINITION | changes)
    at = study.scales["laptop"]
    return Grid(
        "small", study, "laptop", "verdict", "user", base or BASE, list(study.methods), study.conditions,
        tried or TRIED, range(at.verdict.seeds), is_powered,
    )  # fmt: skip


class Trainer:
    """Stands in for ``simulate_together``: writes a run's summary and counts the runs of each folder.

    Accuracy is highest at learning rate 2, and falls with fewer local steps; ``stop_at`` is the run that Ctrl-C ends.
    """

    def __init__(self, stop_at: int = 0):
        self.stop_at, self.runs, self.configs, self.groups = stop_at, Counter(), {}, []

    def __call__(
        self, configs: Mapping[Path, Config], resume: bool = False, on_rounds: Callable[[int], None] | None = None
    ) -> None:
        self.groups.append(len(configs))
        for folder, config in configs.items():
            self._run(config, folder, resume)
            if on_rounds is not None:
                on_rounds(config.federation.rounds)

    def _run(self, config: Config, folder: Path, resume: bool) -> None:
        self.runs[folder] += 1
        self.configs[folder] = config
        if self.stop_at and sum(self.runs.values()) == self.stop_at:
            (folder / CHECKPOINT).parent.mkdir(parents=True)
            (folder / CHECKPOINT).write_text("a round")
            raise KeyboardInterrupt
        assert resume or not (folder / CHECKPOINT).exists(), "a run that was interrupted has to go on"
        folder.mkdir(parents=True, exist_ok=True)
        off = abs(config.optimizer.lr - 2)
        accuracy = 0.7 + 0.01 * config.federation.local_steps + 0.001 * (config.seed % 7) - 0.02 * off
        summary = {
            "metrics": {"loss": 1 - accuracy, "accuracy": accuracy}, "epsilon": None, "seconds": 3.5,
            "bytes_up_per_client_round": 64, "bytes_up": 640, "bytes_down": 640, "trained_numbers": 16,
            "seconds_per_round": 1.75,
        }  # fmt: skip
        (folder / SUMMARY).write_text(json.dumps(summary))
