"""The discordance of clients that differ by noise alone, round by round, from a run's rows and its configuration.

Rows hold the closed form of the noise that all steps up to a round leave in the average's product. Its quadratic part
is ``Q = s²(vΣw²)²NRK``, summed over layers, with v the variance that these steps leave in each number of a client.
Those of one round leave ``p·v``, p being their share of the squared learning rates, and cause ``E‖D‖² = s²(pv)²NRK``
times ``Σw² - 2Σw³ + (Σw²)²`` (``docs/theory.md``, section 2). For n clients of equal weight this is ``p²Q(n - 1)``.
"""

from __future__ import annotations

import math

from ...config import Config
from ...training.optim import lr_factor
from .plots import Rows

_CLOSE = 1e-6  # weights that pass are equal to about a thousandth; the result depends on the square of that


def discordance_by_noise(rows: Rows, config: Config) -> dict[int, float]:
    """``√E‖D‖²`` by round, in units of the weights, were the round's noise all that tells the clients apart.

    Empty where rows and configuration do not say it: without noise, where clients weigh unequally, and where their
    number is the data's. Weights are not in the rows, but whether they are equal is: the noise of all steps in the
    average is ``Σw²`` times that of all steps of one client, whose single step is in the rows too, and ``Σw² = 1/n``
    for equal weights only.

    Args:
        rows: of one run; config: its own.
    """
    measured = [row for row in rows if row.get("noise")]
    clients, steps = config.clients.count, config.federation.local_steps
    if not measured or clients is None:
        return {}
    last = measured[-1]
    total = config.federation.rounds * steps
    squares = [lr_factor(config.optimizer, step, total) ** 2 for step in range(total)]
    so_far = squares[: last["round"] * steps]
    averaged, one = last["noise"]["expected"]["quadratic"], last["noise"]["one_step"]["quadratic"]
    if averaged and not math.isclose(
        math.sqrt(averaged / one), sum(so_far) / max(so_far) / clients, rel_tol=_CLOSE, abs_tol=0.0
    ):
        return {}
    unit = math.sqrt(averaged * (clients - 1)) / sum(so_far)
    rounds = [row["round"] for row in rows if row["discordance"]]
    return {number: unit * sum(squares[(number - 1) * steps : number * steps]) for number in rounds}
