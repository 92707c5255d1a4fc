"""LoRA with FedAvg (FedIT; Zhang et al., ICASSP 2024): both factors are trained, sent and averaged each by itself."""

from .base import Strategy


class LoRAFedAvg(Strategy):
    """Inexact: the product of the averages is not the average of the products (see ``aggregation_gap``)."""

    name = "lora"
    trained = "both"
    exact = False
    summary = "LoRA + FedAvg: a and b trained and averaged each; inexact"
