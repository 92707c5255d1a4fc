"""Triton kernels, one family a file. Importing this package needs triton and raises ImportError without it."""

from .backward import backward
from .clip import clip_reduce_
from .expand import expand_
from .optim import privatize_step_
from .outer import outer

IMPLEMENTATIONS = {
    "expand_": expand_,
    "backward": backward,
    "outer": outer,
    "clip_reduce_": clip_reduce_,
    "privatize_step_": privatize_step_,
}
