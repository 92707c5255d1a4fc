"""What answers on GPUs where no backend was asked for by name: the Triton kernels, and torch's products at ranks beyond
``MAX_RANK``, for which no kernel is compiled. (``outer`` is for any rank, and makes ``g`` there.)
"""

from __future__ import annotations

from torch import Tensor

from .torch_products import torch_dh, torch_expand
from .triton import IMPLEMENTATIONS as KERNELS
from .triton.configs import MAX_RANK


def expand(y: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int) -> None:
    """``expand_``, at any rank."""
    by_torch = b.shape[2] > MAX_RANK
    (torch_expand if by_torch else KERNELS["expand_"])(y, h, b, offsets, client, scale, longest)


def backward(
    dy: Tensor, h: Tensor, b: Tensor, offsets: Tensor, client: Tensor, scale: float, longest: int,
    arena: Tensor, column: int, squares: Tensor | None, slot: int, accumulate: bool, deterministic: bool,
) -> Tensor:  # fmt: skip
    """``backward``, at any rank."""
    if b.shape[2] <= MAX_RANK:
        return KERNELS["backward"](
            dy, h, b, offsets, client, scale, longest, arena, column, squares, slot, accumulate, deterministic
        )
    KERNELS["outer"](dy, h, offsets, scale, longest, arena, column, squares, slot, accumulate)
    return torch_dh(dy, h, b, offsets, client, scale)


IMPLEMENTATIONS = KERNELS | {"expand_": expand, "backward": backward}
