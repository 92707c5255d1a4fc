"""LoRA with FedAvg (FedIT; Zhang et al., ICASSP 2024): both factors are trained, sent and averaged each by itself."""

from .base import Answers, Facts, ServerState, Strategy
from .factors import aggregation_gap


class LoRAFedAvg(Strategy):
    """Inexact: the product of the averages is not the average of the products (see ``aggregation_gap``)."""

    name = "lora"
    trained = "both"
    exact = False
    averages = True
    facts = Facts(up="a, b", down="a, b", aggregation="average of each factor")

    def aggregate(self, server: ServerState, answers: Answers) -> float:
        super().aggregate(server, answers)
        return aggregation_gap(self.layout, answers.rows, answers.weights)
