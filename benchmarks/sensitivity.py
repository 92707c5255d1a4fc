"""What one record moves the clipped sum by, over random models, dropouts, layouts and units: at most C in float32.

``python benchmarks/sensitivity.py`` measures 500 cases of each format and writes ``benchmarks/data/sensitivity.csv``,
one row a case; the tests take the first of the same cases, and the same with users in the place of samples. Cases in
bfloat16 are measured beside them: there the shape of a batch rounds what the other records contribute.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from ffalora.adapters import AdapterConfig, attach
from ffalora.config import OptimizerConfig, PrivacyConfig
from ffalora.data.examples import Ragged, TokenizedDataset
from ffalora.data.tasks import classification_losses
from ffalora.data.users import Owners
from ffalora.models import MeanPooledClassifier
from ffalora.models.load import cast_base
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.client_level import clip_updates
from ffalora.privacy.noise import SeededNoise
from ffalora.privacy.sampling import SeededDraw
from ffalora.training.drawn import count_drawn
from ffalora.training.engine import Engine
from ffalora.training.participant import Participant
from ffalora.training.sensitivity import moves, probe_sensitivity, tight_norm

TABLE = Path(__file__).parent / "data" / "sensitivity.csv"
CASES, WORDS, CLASSES = 500, 60, 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A random model, how it is adapted, how its batches are laid out, and what is protected."""

    number: int
    dtype: str
    unit: str
    packed: bool
    layers: int
    hidden: int
    trained: str
    rank: int
    head: str
    dropout: float
    model_dropout: float
    clipping: str
    clients: int
    token_budget: int

    @classmethod
    def random(cls, number: int, dtype: str = "float32") -> Case:
        """The case of this number."""
        rng = np.random.default_rng([number, 17])
        packed, trained = bool(rng.random() < 0.4), str(rng.choice(["b", "both", "core"]))
        return cls(
            number,
            dtype,
            unit=str(rng.choice(["sample", "sample", "client"])),
            packed=packed,
            layers=int(rng.integers(1, 4)),
            hidden=int(rng.choice([8, 16, 32, 48])),
            trained=trained,
            rank=int(rng.integers(1, 6)),
            head="frozen" if packed else str(rng.choice(["frozen", "trained"])),
            dropout=float(rng.choice([0.0, 0.1, 0.5])),
            model_dropout=0.0 if packed else float(rng.choice([0.0, 0.1, 0.3])),
            clipping=str(rng.choice(["flat", "flat", "per-layer", "automatic"])),
            clients=int(rng.integers(1, 4)) if trained == "b" else 1,
            token_budget=int(rng.choice([20, 60, 1000])),
        )


def ratio(case: Case) -> float:
    """The largest ``‖Σ(D) - Σ(D - x)‖ / C`` of the case, x a sample, a user or a client."""
    rng = np.random.default_rng([case.number, 18])
    torch.manual_seed(case.number)
    engine = _engine(case, _data(rng))
    groups = np.array_split(np.arange(len(engine.data.lengths)), 4 if case.unit == "client" else case.clients)
    ledgers = []
    for i, group in enumerate(groups):
        drawn = count_drawn(engine.privacy, engine.owners, group)
        ledgers.append(PrivacyLedger(i, drawn, min(1.0, 8 / drawn), 1.0, 1e-5, 50, accountant="rdp", unit=case.unit))
    cohort = [Participant(i, g, ledgers[i]) for i, g in enumerate(groups)]
    state = engine.adapters.state()[None] + 0.05 * torch.randn(1, engine.adapters.layout.width)
    if case.unit != "client":
        return probe_sensitivity(engine, cohort, state.repeat(len(cohort), 1), records=4).largest.ratio
    plain = [dataclasses.replace(one, ledger=None) for one in cohort]
    limit = tight_norm(_updates(engine, plain, state, np.arange(4)).norm(dim=1).double())

    def clipped_sum(rows: np.ndarray) -> torch.Tensor:
        return clip_updates(_updates(engine, plain, state, rows), limit)[0] / limit

    found = moves(clipped_sum, np.arange(4), {i: "each" for i in range(4)}, "clipped")
    return max(move.ratio for move in found)


def _updates(engine: Engine, clients: list[Participant], start: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Two steps of some clients in one pass where they share ``a``, else one after another."""
    cohort = [dataclasses.replace(clients[i]) for i in rows]
    state = start.repeat(len(cohort), 1)
    if engine.adapters.config.trained == "b":
        engine.train(cohort, state, 2)
    else:
        for i, one in enumerate(cohort):
            engine.train([one], state[i : i + 1], 2)
    return start - state


def _data(rng: np.random.Generator) -> TokenizedDataset:
    rows = [rng.integers(1, WORDS, rng.integers(2, 14)).tolist() for _ in range(24)]
    return TokenizedDataset(Ragged(rows), rng.integers(0, CLASSES, len(rows)), pad_token_id=0)


def _engine(case: Case, data: TokenizedDataset) -> Engine:
    config = BertConfig(
        vocab_size=WORDS, hidden_size=case.hidden, num_hidden_layers=case.layers, num_attention_heads=2,
        intermediate_size=2 * case.hidden, max_position_embeddings=32, num_labels=CLASSES, initializer_range=0.2,
        hidden_dropout_prob=case.model_dropout, attention_probs_dropout_prob=case.model_dropout,
        attn_implementation="eager",
    )  # fmt: skip
    model: nn.Module = (
        MeanPooledClassifier(BertModel(config), CLASSES, 0.3, 3.0, case.number)
        if case.packed
        else BertForSequenceClassification(config)
    )
    cast_base(model, getattr(torch, case.dtype))
    model.train(case.model_dropout > 0)
    adapters = attach(
        model,
        AdapterConfig(
            rank=case.rank, trained=case.trained, head=case.head, dropout=case.dropout,
            target_modules=["query", "value"], seed=case.number,
        ),
    )  # fmt: skip
    privacy, owners = PrivacyConfig(unit="none"), None
    if case.unit != "client":
        privacy = PrivacyConfig(
            unit=case.unit, noise_multiplier=1.0, max_grad_norm=1.0, clipping=case.clipping, samples_per_user=4
        )
    if case.unit == "user":
        owners = Owners.of(np.random.default_rng([case.number, 19]).integers(0, 7, len(data)).tolist())
    return Engine(
        model=model, adapters=adapters, data=data, losses=classification_losses,
        optimizer=OptimizerConfig(lr=0.5, batch_size=8), privacy=privacy, noise=SeededNoise.from_seed(case.number),
        draw=SeededDraw(case.number), token_budget=case.token_budget, packed=case.packed,
        owners=owners,
    )  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else CASES
    worst = {}
    with open(TABLE, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*(f.name for f in dataclasses.fields(Case)), "ratio"])
        writer.writeheader()
        for dtype in ("float32", "bfloat16"):
            for number in range(count):
                case = Case.random(number, dtype)
                found = ratio(case)
                writer.writerow(dataclasses.asdict(case) | {"ratio": f"{found:.7f}"})
                worst[dtype, case.unit] = max(found, worst.get((dtype, case.unit), 0.0))
    for (dtype, unit), found in worst.items():
        print(f"{dtype} {unit}: at most {found:.7f} C")


if __name__ == "__main__":
    main()
