"""The operations of FFA-LoRA training: adapter forward and backward, per-segment gradients, clipping, noise and step.

Each operation has a contract (``ops``), a plain-torch definition (``reference``), a Triton kernel (``triton``) and a
C++ kernel (``cpu``); ``dispatch`` says which one answers. See kernels/README.md for derivations and byte counts.
"""

from .dispatch import BackendUnavailable, explain, use_backend
from .head_loss import linear_cross_entropy
from .openmp import share_openmp
from .ops import backward, clip_reduce_, expand_, outer, privatize_step_
from .products import adapted_input_gradient, adapted_product, base_input_gradient, base_product
from .segments import Segments

share_openmp()

__all__ = [
    "BackendUnavailable",
    "Segments",
    "adapted_input_gradient",
    "adapted_product",
    "backward",
    "base_input_gradient",
    "base_product",
    "clip_reduce_",
    "expand_",
    "explain",
    "linear_cross_entropy",
    "outer",
    "privatize_step_",
    "use_backend",
]
