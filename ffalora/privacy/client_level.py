"""Privacy of whole clients: clip each client's update, add noise at the server, divide by the expected cohort.

The unit is one client with all its samples (McMahan et al., ICLR 2018). Clients are drawn by Poisson sampling; a round
is charged whether or not a given client was drawn, also when nobody was; all weigh the same. The server is trusted to
clip and to add the noise, unless clients clip and bring it in shares (:mod:`~ffalora.privacy.distributed`). An update
is a row of ``[C,P]``, so the sample-level kernels do the work: ``clip_reduce_`` with one receiver, then
``privatize_step_`` on the global state ``[1,P]``.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ffalora_kernels import clip_reduce_, privatize_step_

from .accounting import PrivacyLedger
from .clipping import AdaptiveQuantileClipping, sensitivity
from .distributed import NoiseShares
from .noise import NoiseSource, SeededNoise
from .sampling import Draw, SeededDraw, fixed_size_draw

#: The server's id where it samples and draws noise, and that of the population's ledger; clients have smaller ones.
SERVER_ID = 2**32 - 1
_NOISE_STREAM, _COUNT_STREAM = 0x5E01, 0x5E02


@dataclass
class ClientLevel:
    """The client-level mechanism of one federation.

    Attributes:
        ledger: the population's, with ``unit='client'`` and the number of clients as ``dataset_size``.
        max_update_norm: C, for each client's whole update (``adaptive`` has its own).
        noise: where the noise comes from, the server's or the clients'.
        draw: Poisson samples of clients.
        adaptive: moves C to a quantile of the update norms; its count is part of the ledger's σ.
        clipping: 'flat' or 'automatic'.
        shares: the noise that clients bring; None where the server adds it.
    """

    ledger: PrivacyLedger
    max_update_norm: float
    noise: NoiseSource
    draw: Draw
    adaptive: AdaptiveQuantileClipping | None = None
    clipping: str = "flat"
    shares: NoiseShares | None = None
    _open: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.ledger.unit != "client":
            raise ValueError(
                f"ledger has unit={self.ledger.unit!r}; client-level privacy needs the population's, unit='client'"
            )
        if self.ledger.sampling == "shuffled" or (self.ledger.sampling == "full" and self.ledger.sample_rate != 1):
            raise ValueError(
                f"sampling={self.ledger.sampling!r} with sample_rate={self.ledger.sample_rate} is no way to "
                "draw clients: use 'poisson', 'without-replacement', or 'full' with sample_rate=1"
            )
        if self.clipping not in ("flat", "automatic"):
            raise ValueError(f"clipping={self.clipping!r}: an update is clipped as a whole, 'flat' or 'automatic'")
        if not self.max_update_norm > 0:
            raise ValueError(f"max_update_norm must be positive, got {self.max_update_norm}")
        if self.ledger.noise_multiplier > 0 and not isinstance(self.noise, SeededNoise) and not self.draw.secure:
            raise ValueError("secure noise needs a secure draw: with seeded sampling it is known who took part")
        self._check_shares()
        if self.adaptive is not None:
            for name, ours, theirs in (
                ("noise_multiplier", self.ledger.noise_multiplier, self.adaptive.noise_multiplier),
                ("expected_rows", self.expected_cohort, self.adaptive.expected_rows),
            ):
                if not math.isclose(ours, theirs, rel_tol=1e-12):
                    raise ValueError(f"adaptive.{name}={theirs} differs from the ledger's {ours}; make them equal")

    def _check_shares(self) -> None:
        """Noise in shares and a ledger that counts it go together."""
        shares = self.shares
        if (shares is not None) != (self.ledger.sampling == "by-server"):
            raise ValueError(
                f"sampling={self.ledger.sampling!r} of the ledger with shares={shares}: noise in shares is counted as "
                "sampling='by-server', and nothing else is"
            )
        if shares is None:
            return
        if self.adaptive is not None:
            raise ValueError("adaptive clipping counts norms at the server, which sees none where noise is in shares")
        for name, ours, theirs in (
            ("noise_multiplier", self.ledger.noise_multiplier, shares.noise_multiplier),
            ("max_update_norm", self.max_update_norm, shares.max_update_norm),
            ("clients", self.expected_cohort, shares.clients),
        ):
            if ours != theirs:
                raise ValueError(f"shares.{name}={theirs} differs from {ours} of the ledger; make them equal")

    @property
    def expected_cohort(self) -> float:
        """The divisor: sampling rate × number of clients, never the number that came."""
        expected = self.ledger.sample_rate * self.ledger.dataset_size
        return expected if self.ledger.sampling == "poisson" else float(max(1, round(expected)))

    @property
    def limit(self) -> float:
        """C of the next round."""
        return self.max_update_norm if self.adaptive is None else self.adaptive.max_grad_norm

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the sum of updates: σ·C(1+η), or that of the shares that suffice."""
        if self.shares is not None:
            return self.shares.noise_std
        sigma = self.ledger.noise_multiplier if self.adaptive is None else self.adaptive.sum_noise_multiplier
        return sigma * sensitivity(self.limit, self.ledger.dataset_size)

    def open_round(self, round_number: int) -> np.ndarray:
        """Charges the round, then draws its clients: sorted row numbers of the population, int64, possibly none.

        Raises:
            PrivacyBudgetSpent: the ledger allows no further round; nothing was charged.
        """
        self.ledger.charge(noise=self.noise.mode)
        self._open = True
        n, rate = self.ledger.dataset_size, self.ledger.sample_rate
        if self.ledger.sampling == "poisson":
            return self.draw(SERVER_ID, round_number, n, rate)
        seed = self.draw.seed if isinstance(self.draw, SeededDraw) else int.from_bytes(os.urandom(8), "little")
        return fixed_size_draw(seed, SERVER_ID, round_number, n, int(self.expected_cohort))

    def close_round_(self, state: Tensor, received: Tensor, round_number: int, index: Tensor | None = None) -> Tensor:
        """Clips what the drawn clients sent, adds noise, and moves the global state.

        Args:
            state: float32 ``[P]``, the state that the clients started from; changed in place.
            received: float32 ``[C,P]``, the states that came back; ``[0,P]`` when nobody was drawn or all dropped out.
            round_number: as in :meth:`open_round`.
            index: int32 ``[P]``, parameter index of each column, -1 for padding.

        Returns:
            float64 ``[C]``, the norms of the updates before clipping; computed on private data without noise.

        Raises:
            RuntimeError: the round was not opened, hence not charged.
            ValueError: more updates than clients, or shapes that do not fit.
        """
        if not self._open:
            raise RuntimeError(f"round {round_number} was not opened: call open_round first, which charges it")
        if received.dim() != 2 or received.shape[1:] != state.shape or received.shape[0] > self.ledger.dataset_size:
            raise ValueError(
                f"received must be [C,P] with P={state.numel()} and C at most {self.ledger.dataset_size} clients, "
                f"got {tuple(received.shape)}"
            )
        self._open = False
        updates = state - received
        if self.shares is not None:
            norms = self._take_shares_(state, updates, round_number, index)
        else:
            total, norms = clip_updates(updates, self.limit, mode=self.clipping)
            std, key = self.noise.before_step_(total, total.new_full((1,), self.noise_std))
            self._move_(state, total, std, key, round_number, index)
        if self.adaptive is not None:
            self.adaptive.update(norms, self.noise.normal(SERVER_ID, round_number, _COUNT_STREAM))
        return norms

    def share(self, update: Tensor, client: int, round_number: int) -> NDArray[np.int64]:
        """What a client sends where it brings a share of the noise: int64, for a sum modulo ``2**shares.bits``.

        Args:
            update: float32 ``[width]``, where it started minus where it ended; with NaN or Inf it counts as zero.
            client: its number among those of the round.
        """
        total, _ = clip_updates(update[None], self.limit, mode=self.clipping)
        return self.shares_of(len(update)).share(total[0].cpu().numpy(), self.noise, client, round_number)

    def move_by_sum_(self, state: Tensor, total: NDArray[np.int64], round_number: int, index: Tensor | None) -> None:
        """Moves the global state ``[P]`` by a sum of what :meth:`share` gave; ``index`` as in :meth:`close_round_`."""
        sums = torch.zeros(1, len(state), dtype=torch.float64, device=state.device)
        real = _real(state, index)
        shares = self.shares_of(int(real.sum()))
        sums[0, real] = torch.from_numpy(shares.decoded(total, round_number)).to(state.device)
        self._move_(state, sums, -sums.new_full((1,), shares.noise_std), 0, round_number, index)  # the noise is in it

    def _take_shares_(self, state: Tensor, updates: Tensor, round_number: int, index: Tensor | None) -> Tensor:
        """As clients, secure aggregation and the server do it together; the norms of ``updates [C,P]``. Without enough
        shares nobody sees the sum, and the state stays.
        """
        updates = updates[:, _real(state, index)]
        norms, shares = updates.double().norm(dim=1), self.shares_of(updates.shape[1])
        if len(updates) < shares.least:
            warnings.warn(
                f"round {round_number + 1}: {len(updates)} of {shares.clients} clients stayed, and their noise is "
                f"enough only where {shares.least} do (privacy.dropouts={shares.dropouts}): their sum is not shown, "
                "the state stays, and the round is charged",
                stacklevel=3,
            )
            return norms
        sent = (self.share(update, client, round_number) for client, update in enumerate(updates))
        self.move_by_sum_(state, shares.sum_of(sent), round_number, index)
        return norms

    def shares_of(self, width: int) -> NoiseShares:
        """The terms for updates of ``width`` numbers: methods that train by turns send other numbers each time.

        Raises:
            ValueError: the noise is not in shares.
        """
        if self.shares is None:
            raise ValueError("shares is None: the server adds the noise here; give the terms of shares")
        return self.shares if self.shares.width == width else replace(self.shares, width=width)

    def _move_(
        self, state: Tensor, total: Tensor, std: Tensor, key: int, round_number: int, index: Tensor | None
    ) -> None:
        one = torch.ones(1, dtype=torch.float64, device=state.device)
        privatize_step_(
            state[None],
            total,
            client_id=torch.tensor([SERVER_ID], dtype=torch.int64, device=state.device),
            step=torch.tensor([round_number], dtype=torch.int64, device=state.device),
            noise_std=std,
            denominator=one * self.expected_cohort,
            lr=one,
            key=key,
            stream=_NOISE_STREAM,
            optimizer="sgd",
            index=index,
        )


def _real(state: Tensor, index: Tensor | None) -> Tensor:
    """Which columns are no padding, bool ``[P]``."""
    return torch.ones_like(state, dtype=torch.bool) if index is None else index >= 0


def clip_updates(updates: Tensor, max_update_norm: float, mode: str = "flat") -> tuple[Tensor, Tensor]:
    """The sum of clipped updates, float64 ``[1,P]``, and the norms before clipping, float64 ``[C]``.

    Each row of ``updates`` (float32 ``[C,P]``) is clipped to ``max_update_norm`` as a sample's gradient would be; a row
    with NaN or Inf counts as zero.
    """
    c, p = updates.shape
    device = updates.device
    total = torch.zeros(1, p, dtype=torch.float64, device=device)
    _, norms = clip_reduce_(
        total,
        updates.contiguous(),
        torch.zeros(c, dtype=torch.int32, device=device),
        torch.tensor([[max_update_norm]], dtype=torch.float64, device=device),
        torch.tensor([0, p], dtype=torch.int32, device=device),
        mode=mode,
    )
    return total, norms[:, 0]
