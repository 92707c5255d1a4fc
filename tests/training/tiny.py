"""A tiny classifier, its data, and an engine on it: what the privacy tests share."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification

from ffalora.adapters import AdapterConfig, Adapters, attach
from ffalora.config import OptimizerConfig, PrivacyConfig
from ffalora.data.examples import Ragged, TokenizedDataset
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.noise import SeededNoise
from ffalora.privacy.sampling import SeededDraw
from ffalora.training.engine import Engine
from ffalora.training.participant import Participant


def tiny_model(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_labels=3,
        max_position_embeddings=32,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def tiny_data(samples: int = 40, seed: int = 0, longest: int = 9) -> TokenizedDataset:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, 60, rng.integers(3, longest + 1)).tolist() for _ in range(samples)]
    return TokenizedDataset(Ragged(rows), rng.integers(0, 3, samples), pad_token_id=0)


def losses(output, targets):
    return F.cross_entropy(output.logits.float(), targets, reduction="none")


def ledger(
    client_id: int, samples: int, batch: float, sigma: float = 1.0, max_steps: int = 100, **changes
) -> PrivacyLedger:
    terms = dict(noise_multiplier=sigma, delta=1e-5, max_steps=max_steps, accountant="rdp") | changes
    return PrivacyLedger(client_id=client_id, dataset_size=samples, sample_rate=min(1.0, batch / samples), **terms)


def tiny_engine(
    trained: str = "b",
    head: str = "frozen",
    optimizer: dict | None = None,
    privacy: dict | None = None,
    seed: int = 0,
    device: str = "cpu",
    **changes,
) -> tuple[Engine, Adapters]:
    model = tiny_model().to(device)
    adapters = attach(model, AdapterConfig(rank=4, trained=trained, head=head, target_modules="all-linear"))
    with torch.no_grad():
        for i, layer in enumerate(adapters.layers.values()):
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    private = {"unit": "sample", "noise_multiplier": 1.0, "max_grad_norm": 0.5} | (privacy or {})
    if private["unit"] == "none":
        private = {"unit": "none"}
    engine = Engine(
        model=model,
        adapters=adapters,
        data=changes.pop("data", None) or tiny_data(),
        losses=losses,
        optimizer=OptimizerConfig(**{"normalize": False, "lr": 0.5, "batch_size": 8} | (optimizer or {})),
        privacy=PrivacyConfig(**private),
        noise=SeededNoise.from_seed(seed),
        draw=SeededDraw(seed),
        seed=seed,
        device=torch.device(device),
        **changes,
    )
    return engine, adapters


def participants(clients: int, samples: int = 40, batch: float = 8, sigma: float = 1.0) -> list[Participant]:
    parts = np.array_split(np.arange(samples), clients)
    return [Participant(i, part, ledger(i, len(part), batch, sigma)) for i, part in enumerate(parts)]
