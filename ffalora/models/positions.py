"""How long a sequence a model can read."""

from __future__ import annotations

from typing import Any

from torch import nn


def max_positions(model: nn.Module) -> int | None:
    """Tokens that the longest sequence of a model may have, special ones included; None where it says no limit.

    That is its ``max_position_embeddings``, but less where the first positions are kept for padding, as RoBERTa and
    those that came of it (XLM-R, CamemBERT, MPNet) do: 512 of 514.
    """
    made_for: Any = getattr(model, "config", None)
    text = made_for.get_text_config() if hasattr(made_for, "get_text_config") else made_for
    said = getattr(text, "max_position_embeddings", None)
    if not isinstance(said, int) or said < 1:
        return None
    tables = [
        module for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]  # fmt: skip
    kept = [table.padding_idx + 1 for table in tables if table.padding_idx is not None]
    return said - max(kept, default=0)
