"""Why two mechanisms are left out, computed: ``python benchmarks/not_offered.py``. No run is needed.

* Tree aggregation (Dwork et al. 2010; Kairouz et al. 2021), decoded by least squares over all nodes (Honaker 2015;
  Denisov et al. 2022): its prefix error beside that of a BLT for the same steps and participations.
* Truncated Poisson batches, laid out for one shape: rows that are computed over rows that are drawn, where the cap
  costs at most a hundredth of δ, beside physical batches of 32 and 64 rows, of which the last is padded.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import binom

from ffalora.privacy.factors import blt_factor

SAMPLES, STEPS, DELTA, EPSILON = 2331, 40, 1e-5, 6.0


def tree_error(steps: int, separation: int) -> float:
    """RMS prefix error of the tree for noise multiplier 1: sensitivity of the nodes times the best decoder's length."""
    leaves, nodes, size = 1 << (steps - 1).bit_length(), [], 1
    while size <= leaves:
        for start in range(0, steps, size):
            nodes.append(np.zeros(steps))
            nodes[-1][start : start + size] = 1.0
        size *= 2
    encoder = np.array(nodes)
    decoder = np.tril(np.ones((steps, steps))) @ np.linalg.pinv(encoder)
    sensitivity = max(np.linalg.norm(encoder[:, first::separation].sum(axis=1)) for first in range(separation))
    return float(sensitivity * np.linalg.norm(decoder) / math.sqrt(steps))


def padded(batch: int, physical: int) -> float:
    """Rows computed over rows drawn, with physical batches of one size."""
    drawn = np.arange(SAMPLES + 1)
    chance = binom.pmf(drawn, SAMPLES, batch / SAMPLES)
    return float((np.ceil(drawn / physical) * physical) @ chance / batch)


def capped(batch: int) -> float:
    """The same, with one batch of the least cap whose truncation costs at most a hundredth of δ."""
    spent = STEPS * (1.0 + math.exp(EPSILON)) * binom.sf(np.arange(SAMPLES + 1), SAMPLES, batch / SAMPLES)
    return float(np.flatnonzero(spent <= DELTA / 100)[0] / batch)


def main() -> None:
    print("steps  separation  tree over BLT")
    for steps, separation in ((40, 36), (40, 9), (110, 36), (110, 9), (500, 36), (500, 9)):
        ratio = tree_error(steps, separation) / blt_factor(steps, separation).prefix_error()
        print(f"{steps:>5}  {separation:>10}  {ratio:>13.2f}")
    print("\nbatch  of 32 rows  of 64 rows  one shape, capped")
    for batch in (64, 256, 1165):
        print(f"{batch:>5}  {padded(batch, 32):>10.2f}  {padded(batch, 64):>10.2f}  {capped(batch):>17.2f}")


if __name__ == "__main__":
    main()
