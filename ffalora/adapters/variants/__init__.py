"""Other adapters with random factors frozen and the zero one trained: linear in what is trained, exact to average."""

from .base import Variant
from .bottleneck import Bottleneck
from .loha import LoHa
from .lokr import LoKr
from .vera import VeRA

VARIANTS: dict[str, type[Variant]] = {"vera": VeRA, "loha": LoHa, "lokr": LoKr, "bottleneck": Bottleneck}

__all__ = ["VARIANTS", "Bottleneck", "LoHa", "LoKr", "Variant", "VeRA"]
