"""LoRA whose gradients are clipped and noised in coordinates of the product ``b a`` (after PRISM, arXiv 2606.00944)."""

from .lora import LoRAFedAvg


class PRISM(LoRAFedAvg):
    """Both factors are trained, sent and averaged as LoRA's are; a step is one of their product, whichever factors it
    happens to be split into (``training.coordinates``). Noise is as large in the product whichever factor it enters by,
    where LoRA's grows with the other factor.
    """

    name = "prism"
    steady = False
    whitens = True
