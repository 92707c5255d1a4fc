"""The C++ kernels of csrc/ behind the operations' signatures. Raises ImportError where the extension was not built."""

from . import _cpu  # noqa: F401

IMPLEMENTATIONS: dict = {}
