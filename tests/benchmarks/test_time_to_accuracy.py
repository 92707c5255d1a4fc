"""Seconds to an accuracy: a rival is evaluated as anybody would evaluate it, and its last run counts."""

from types import SimpleNamespace

import bench_path  # noqa: F401
import numpy as np
import time_to_accuracy as page
import torch
from torch import nn


class Half(nn.Module):
    """Two logits, half of which dropout would take."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids, attention_mask):
        return self.dropout(torch.ones(len(input_ids), 2))


def test_a_model_is_evaluated_without_dropout_and_goes_on_training():
    class Examples(SimpleNamespace):
        lengths = np.arange(64)

        def __len__(self):
            return 64

        def collate(self, rows):
            return {"input_ids": torch.zeros(len(rows), 1), "attention_mask": torch.ones(len(rows), 1)}, None

    model = Half().train()
    assert torch.equal(page.logits_of(model, Examples()), torch.ones(64, 2))
    assert model.training and model.dropout.training


def test_of_several_runs_the_last_counts(tmp_path, monkeypatch):
    head = ",".join(page.COLUMNS)
    rows = [
        "ffalora,100,5,10.0,0.80", "opacus,100,5,25.0,0.70", "opacus,100,10,50.0,0.79",
        "opacus,100,5,24.0,0.79", "ffalora,101,5,11.0,0.79", "opacus,101,5,30.0,0.79", "opacus,101,5,31.0,0.70",
    ]  # fmt: skip
    (tmp_path / "table.csv").write_text("\n".join([head, *(f"{row},cpu,abc,2026-01-01" for row in rows)]) + "\n")
    monkeypatch.setattr(page, "TABLE", tmp_path / "table.csv")
    lines = page.table(0.78).splitlines()[2:]
    assert lines == ["| cpu | 100 | 10.0 s | 24.0 s | 2.4 |", "| cpu | 101 | 11.0 s | nan s | nan |"]
