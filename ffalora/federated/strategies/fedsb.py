"""Fed-SB (Singhal et al., 2025): an R × R core between two frozen factors is trained, sent and averaged."""

from .base import Facts, Strategy


class FedSB(Strategy):
    """Averaging is exact, since the product ``b core a`` is linear in the core; R² numbers a layer, whatever its size.

    Both frozen factors are drawn from the seed (``adapter.init: orthonormal`` suits them). The original takes them from
    a gradient on data, which would have to be public or a private release of its own.
    """

    name = "fedsb"
    trained = "core"
    exact = True
    averages = True
    moves_rows_only = True
    random_init = True
    facts = Facts(up="core (R²)", down="core (R²)")
