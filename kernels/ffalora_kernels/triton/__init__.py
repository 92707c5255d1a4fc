"""Triton kernels, one family a file. Importing this package needs triton and raises ImportError without it."""

from collections.abc import Callable

from .backward import backward
from .clip import clip_reduce_
from .cross_entropy import linear_cross_entropy
from .expand import expand_
from .launch import on_its_device
from .optim import privatize_step_
from .outer import outer

_LAUNCHERS: dict[str, Callable] = {
    "expand_": expand_,
    "backward": backward,
    "outer": outer,
    "clip_reduce_": clip_reduce_,
    "privatize_step_": privatize_step_,
    "linear_cross_entropy": linear_cross_entropy,
}
IMPLEMENTATIONS = {op: on_its_device(launcher) for op, launcher in _LAUNCHERS.items()}
