"""The federated methods by name. A new one is a file here and a line in the table."""

from .base import Answers, Mean, Strategy, weighted_mean
from .factors import aggregation_gap
from .fedex import FedEx
from .fedsa import FedSA
from .fedsb import FedSB
from .fedsvd import FedSVD
from .ffa import FFALoRA
from .flexlora import FlexLoRA
from .flora import FLoRA
from .hetlora import HetLoRA
from .lalora import LALoRA
from .lora import LoRAFedAvg
from .prism import PRISM
from .rolora import RoLoRA
from .wire import ServerState, Wire

_METHODS: tuple[type[Strategy], ...] = (
    LoRAFedAvg,
    FFALoRA,
    FedSVD,
    FedSB,
    RoLoRA,
    LALoRA,
    PRISM,
    FedSA,
    FedEx,
    FLoRA,
    FlexLoRA,
    HetLoRA,
)
STRATEGIES: dict[str, type[Strategy]] = {strategy.name: strategy for strategy in _METHODS}

__all__ = [
    "STRATEGIES",
    "Answers",
    "LALoRA",
    "Mean",
    "ServerState",
    "Strategy",
    "Wire",
    "aggregation_gap",
    "weighted_mean",
]
