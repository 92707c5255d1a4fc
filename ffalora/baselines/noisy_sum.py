"""Gaussian noise on sums that leave a client, from either source of noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffalora_kernels import privatize_step_

from ..privacy.noise import NoiseSource


def noisy_sum(
    total: Tensor, std: Sequence[float], noise: NoiseSource, client_ids: Sequence[int], steps: Sequence[int]
) -> Tensor:
    """``total[c] + std[c]·z``, rounded to float32 and returned as float64 ``[C,P]``.

    Args:
        total: float64 ``[C,P]``; secure noise is added in place, so the caller keeps no sum without noise.
        std: standard deviation of each row.
        noise: secure, or a function of key, client, step and column.
        client_ids, steps: which noise a seeded source gives.
    """
    noise_std, key = noise.before_step_(total, torch.tensor(std, dtype=torch.float64))
    one = torch.ones(len(total), dtype=torch.float64)
    result = torch.zeros(total.shape, dtype=torch.float32)
    privatize_step_(
        result,
        total,
        client_id=torch.tensor(client_ids, dtype=torch.int64),
        step=torch.tensor(steps, dtype=torch.int64),
        noise_std=noise_std,
        denominator=one,
        lr=-one,
        key=key,
    )
    return result.double()
