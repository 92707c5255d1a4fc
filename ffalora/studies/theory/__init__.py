"""Theory made measurable: discordance, noise in the product, smoothness, gradient norms, convergence.

:func:`measure` trains LoRA and FFA-LoRA side by side and takes every measurement; each is a module of its own that
works on tensors. Derivations are in ``docs/theory.md``.
"""

from .folder import read_theory
from .measurements import Effort
from .page import run_theory, theory_command
from .study import TheoryResult, measure, theory_config

__all__ = ["Effort", "TheoryResult", "measure", "read_theory", "run_theory", "theory_command", "theory_config"]
