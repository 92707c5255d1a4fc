"""The federated methods by name. A new one is a file here and a line in the table."""

from .base import ServerState, Strategy, weighted_mean
from .factors import aggregation_gap
from .ffa import FFALoRA
from .lora import LoRAFedAvg

_METHODS: tuple[type[Strategy], ...] = (
    LoRAFedAvg,
    FFALoRA,
)
STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in _METHODS}

__all__ = ["STRATEGIES", "ServerState", "Strategy", "aggregation_gap", "weighted_mean"]
