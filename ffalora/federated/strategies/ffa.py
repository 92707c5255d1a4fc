"""FFA-LoRA (Sun, Li, Li, Ding, ICLR 2024): ``a`` is random and frozen, ``b`` is trained, sent and averaged."""

from .base import Facts, Strategy


class FFALoRA(Strategy):
    """Averaging is exact, since ``mean(b_k) a = mean(b_k a)``; half of LoRA's traffic on square layers."""

    name = "ffa"
    trained = "b"
    exact = True
    averages = True
    moves_rows_only = True
    facts = Facts(up="b", down="b")
