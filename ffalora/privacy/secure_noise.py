"""Normals from a cryptographic generator, for noise that nobody can subtract later.

Each draw takes a fresh 256-bit key from the operating system, runs ChaCha20 (RFC 8439) with it and forgets it; the key
is never returned, stored or logged, and a forked process shares none. Every number is the sum of four Box-Muller
normals over 2: a single normal computed in floating point leaves gaps between the values it can take, and those gaps
can give the noiseless value away (Holohan and Braghin, "Secure Random Sampling in Differential Privacy", ESORICS 2021,
arXiv:2107.10138; Mironov, CCS 2012).

The C++ extension draws inside one call. Where it is not built the same construction is made of ``os.urandom``, the
operating system's own cryptographic generator: as safe, only slower. ``source()`` tells which. On CUDA devices
``add_secure_gaussian_`` draws in place where ``cuda_noise`` can, and copies from the processor otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ffalora_kernels import dispatch

from . import cuda_noise

#: Blocks of 64 random bytes that the fallback turns into numbers at once.
_BLOCKS = 1 << 14


def source() -> str:
    """Where the randomness of this installation comes from: 'chacha20' (C++) or 'os.urandom'."""
    return "os.urandom" if _extension() is None else "chacha20"


def secure_gaussian(shape: int | Sequence[int], std: float = 1.0) -> Tensor:
    """Independent normals of mean 0, different on every call, whatever the seeds.

    Args:
        shape: of the result.
        std: standard deviation, at least 0.

    Returns:
        float64 tensor on the CPU.

    Raises:
        ValueError: ``std`` is negative or not finite.
        OSError: the operating system gives no entropy.
    """
    numbers = torch.zeros(shape, dtype=torch.float64)
    _add(numbers.view(-1), std)
    return numbers


def add_secure_gaussian_(total: Tensor, std: float | Tensor) -> None:
    """Adds secure noise in place: ``total[c] += std[c]·z``.

    Args:
        total: float64 ``[C,P]``, sums of clipped gradients, on any device.
        std: standard deviation of every row, or float64 ``[C]``, one a row.

    Raises:
        ValueError: a wrong shape or dtype, or a standard deviation that is negative or not finite.
        OSError: the operating system gives no entropy.
    """
    if total.dim() != 2 or total.dtype != torch.float64:
        raise ValueError(f"total must be float64 [C,P], got {total.dtype} {tuple(total.shape)}")
    deviations = std.tolist() if isinstance(std, Tensor) and std.dim() else [float(std)] * total.shape[0]
    if len(deviations) != total.shape[0]:
        raise ValueError(f"std must be one number or one a row of total ({total.shape[0]}), got {len(deviations)}")
    for deviation in deviations:
        _check(deviation)
    for row, deviation in zip(total, deviations, strict=True):
        if row.device.type == "cpu" and row.is_contiguous():
            _add(row, deviation)
        elif row.device.type == "cuda" and row.is_contiguous() and cuda_noise.usable(row.device.index or 0):
            cuda_noise.add(row, deviation)
        else:
            row += secure_gaussian(row.shape, deviation).to(row.device)


def _add(numbers: Tensor, std: float) -> None:
    """Adds ``std·z`` to contiguous float64 numbers ``[n]``."""
    _check(std)
    if std == 0 or numbers.numel() == 0:
        return
    extension = _extension()
    if extension is not None:
        extension.add_secure_normals(numbers.data_ptr(), numbers.numel(), std, torch.get_num_threads())
    else:
        _add_from_system(numbers, std)


def _add_from_system(numbers: Tensor, std: float) -> None:
    """As ``_add``, from the operating system's generator."""
    for part in numbers.split(2 * _BLOCKS):
        blocks = (part.numel() + 1) // 2
        words = torch.frombuffer(bytearray(os.urandom(64 * blocks)), dtype=torch.int64).view(blocks, 8)
        part += std * _normals_of_words(words)[: part.numel()]


def _normals_of_words(words: Tensor) -> Tensor:
    """Two normals from each row of eight random words (int64 ``[n,8]``), as ``secure_pair`` in csrc makes them."""
    unit = ((words >> 12) & (2**52 - 1)).double() * 2.0**-52 + 2.0**-53
    radius, angle = (-2.0 * unit[:, 0::2].log()).sqrt(), unit[:, 1::2] * (2.0 * math.pi)
    return 0.5 * torch.stack([(radius * angle.cos()).sum(1), (radius * angle.sin()).sum(1)], 1).view(-1)


def _check(std: float) -> None:
    if not (0 <= std < math.inf):
        raise ValueError(f"std must be finite and at least 0, got {std}")


def _extension():
    module, _ = dispatch.load("cpp")
    return None if module is None else module._cpu
