"""LoRA with FedAvg (FedIT; Zhang et al., ICASSP 2024): both factors are trained, sent and averaged each by itself."""

from collections.abc import Sequence

from torch import Tensor

from .base import Facts, Mean, ServerState, Strategy, weighted_mean
from .factors import aggregation_gap


class LoRAFedAvg(Strategy):
    """Inexact: the product of the averages is not the average of the products (see ``aggregation_gap``)."""

    name = "lora"
    trained = "both"
    exact = False
    facts = Facts(
        summary="LoRA + FedAvg: a and b trained and averaged each; inexact",
        up="a, b",
        down="a, b",
        aggregation="average of each factor",
    )

    def aggregate(
        self, server: ServerState, clients: Sequence[int], rows: Tensor, weights: Tensor, mean: Mean = weighted_mean
    ) -> float:
        super().aggregate(server, clients, rows, weights, mean)
        return aggregation_gap(self.layout, rows, weights)
