"""Where the noise comes from: a seeded counter-based generator for simulation, or a cryptographic one."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ffalora_kernels import privatize_step_
from ffalora_kernels.reference import gaussian_ref

from .sampling import raw_words

#: Philox stream of the noisy counts of adaptive clipping; the noise on gradients has stream 0.
COUNT_STREAM = 1


@dataclass(frozen=True)
class SeededNoise:
    """Noise that is a pure function of (key, client, step, parameter): reproducible, hence removable by whoever holds
    the key.

    It is drawn inside ``privatize_step_``, in the same pass as the optimiser's update.
    """

    key: int
    mode = "seeded"

    @classmethod
    def from_seed(cls, seed: int | str) -> SeededNoise:
        """The noise of a run's seed, or of a name that holds one: a key unrelated to frozen factor and sampling."""
        digest = hashlib.sha256(f"ffalora noise {seed}".encode()).digest()
        return cls(int.from_bytes(digest[:8], "little", signed=True))

    def before_step_(self, total: Tensor, std: Tensor, leads: bool = True) -> tuple[Tensor, int]:
        """As :meth:`SecureNoise.before_step_`; ``total`` stays as it is, ``privatize_step_`` draws the noise."""
        return std, self.key

    def normals(self, total: Tensor, client_id: Tensor, step: Tensor, index: Tensor | None) -> Tensor:
        """The normals that ``privatize_step_`` would draw for these rows, rounded to float32; 0 in padding columns.

        Args:
            total: float64 ``[C,P]``, only for its shape and device. client_id, step: int64 ``[C]``.
            index: int32 ``[P]``, as in ``privatize_step_``.

        Returns:
            float64 ``[C,P]``.
        """
        drawn, one = torch.zeros_like(total, dtype=torch.float32), total.new_ones(len(total))
        privatize_step_(
            drawn,
            torch.zeros_like(total),
            client_id=client_id,
            step=step,
            noise_std=one,
            denominator=one,
            lr=-one,
            key=self.key,
            index=index,
        )
        return drawn.double()

    def words(self, count: int, client_id: int, step: int, stream: int) -> NDArray[np.uint64]:
        """Uniform 64-bit words for noise that is no Gaussian: the same arguments give the same words."""
        return raw_words(count, self.key % 2**64, client_id, step, stream)

    def normal(self, client_id: int, step: int, stream: int = COUNT_STREAM) -> float:
        """One standard normal beside the noise on the gradients: the same arguments give the same number."""
        return float(gaussian_ref(self.key, client_id, step, stream, torch.zeros(1, dtype=torch.int64)))


@dataclass(frozen=True)
class SecureNoise:
    """Noise from a cryptographic generator seeded by the operating system: never the same twice, its key never
    written.
    """

    mode = "secure"

    def before_step_(self, total: Tensor, std: Tensor, leads: bool = True) -> tuple[Tensor, int]:
        """Adds noise that ``privatize_step_`` does not draw, before the sums leave the process.

        Args:
            total: float64 ``[C,P]``; std: float64 ``[C]``, standard deviation of each row.
            leads: whether this is the one of several processes that noises their common sum.

        Returns:
            ``noise_std`` and ``key`` that ``privatize_step_`` is to be given.
        """
        if leads:
            self.add_(total, std)
        return -std, 0  # it is in the sums already; only its size matters from here on

    def add_(self, total: Tensor, std: Tensor) -> None:
        """Adds independent Gaussian noise of standard deviation ``std [C]`` to ``total`` float64 ``[C,P]``.

        Padding columns are noised as well; ``privatize_step_`` ignores them.
        """
        from .secure_noise import add_secure_gaussian_

        add_secure_gaussian_(total, std)

    def normals(self, total: Tensor, client_id: Tensor, step: Tensor, index: Tensor | None) -> Tensor:
        """Independent normals of the shape of ``total``, float64 ``[C,P]``; the other arguments are unused."""
        drawn = torch.zeros_like(total)
        self.add_(drawn, total.new_ones(len(total)))
        return drawn

    def words(self, count: int, client_id: int, step: int, stream: int) -> NDArray[np.uint64]:
        """Uniform 64-bit words of the operating system; the other arguments are unused, since nothing is ever drawn
        twice.
        """
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)

    def normal(self, client_id: int, step: int, stream: int = COUNT_STREAM) -> float:
        """One standard normal; the arguments are unused, since nothing is ever drawn twice."""
        from .secure_noise import secure_gaussian

        return float(secure_gaussian((1,)))


NoiseSource = SeededNoise | SecureNoise
