"""The federated methods by name. A new one is a file here and a line in the table."""

from .base import ServerState, Strategy, aggregation_gap
from .ffa import FFALoRA
from .lora import LoRAFedAvg

STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in (FFALoRA, LoRAFedAvg)}

__all__ = ["STRATEGIES", "ServerState", "Strategy", "aggregation_gap"]
