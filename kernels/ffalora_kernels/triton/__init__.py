"""Triton kernels, one family a file. Importing this package needs triton and raises ImportError without it."""

from .backward import backward
from .expand import expand_

IMPLEMENTATIONS = {
    "expand_": expand_,
    "backward": backward,
}
