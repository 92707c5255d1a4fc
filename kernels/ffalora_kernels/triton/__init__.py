"""Triton kernels, one family a file. Importing this package needs triton and raises ImportError without it."""

import triton  # noqa: F401

IMPLEMENTATIONS: dict = {}
