"""LoRA whose gradients are clipped and noised in coordinates of the product ``b a`` (after PRISM, arXiv 2606.00944)."""

from ...adapters import Adapters
from ...adapters.layers import LowRank
from ...config import Config, ConfigError
from .base import Facts
from .lora import LoRAFedAvg


class PRISM(LoRAFedAvg):
    """Both factors are trained, sent and averaged as LoRA's are; a step is one of their product, whichever factors it
    happens to be split into (``training.coordinates``). A number's noise is as large in the product whichever factor it
    enters by, where LoRA's grows with the other factor.

    Raises:
        ConfigError: a rank above the size of a layer, whose ``a`` has no so many directions.
    """

    name = "prism"
    steady = False
    whitens = True
    facts = Facts(up="a, b", down="a, b", aggregation="average of each factor", privacy="sample level")

    def __init__(self, adapters: Adapters, config: Config, clients: int):
        super().__init__(adapters, config, clients)
        for name, layer in adapters.layers.items():
            if isinstance(layer, LowRank) and layer.rank > (least := min(layer.lora_A.shape[1], layer.lora_B.shape[0])):
                raise ConfigError(
                    f"adapter.rank={layer.rank}: layer {name} has no more than {least} directions, and "
                    f"federation.strategy={self.name!r} needs as many as the rank: lower it there (by "
                    "adapter.rank_pattern)"
                )
