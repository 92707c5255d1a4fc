"""What a baseline may spend: the same ε and δ for each client as the run beside it, by the same accountant."""

from __future__ import annotations

from dataclasses import dataclass

from ..privacy.accountants import noise_multiplier_for
from ..privacy.accounting import PrivacyLedger
from ..privacy.noise import SeededNoise
from ..privacy.spent import Spent


@dataclass(frozen=True)
class Budget:
    """ε and δ of each client.

    Attributes:
        target_epsilon: ε that the baseline may spend on each client's data, ``prior`` included.
        target_delta: δ of (ε, δ).
        accountant: 'pld', 'prv' or 'rdp'.
        prior: what earlier runs have spent on the same data.
    """

    target_epsilon: float
    target_delta: float
    accountant: str = "pld"
    prior: tuple[Spent, ...] = ()

    def ledger(self, client_id: int, samples: int, batch: float, steps: int) -> PrivacyLedger:
        """A ledger whose σ lets ``steps`` steps of Poisson rate ``batch/samples`` spend the target, never more.

        Args:
            client_id: whose data.
            samples: their number, which is public (rule 13): σ is calibrated for it.
            batch: expected number of samples in a step; at least ``samples`` reads all of them in each (q = 1).
            steps: all that will be taken.

        Raises:
            ValueError: a target that no noise meets, or that ``prior`` has spent.
        """
        rate = min(1.0, batch / samples)
        terms = (self.target_epsilon, self.target_delta, rate, steps, self.accountant)
        sigma = noise_multiplier_for(*terms, prior=self.prior)
        return PrivacyLedger(
            client_id=client_id,
            dataset_size=samples,
            sample_rate=rate,
            noise_multiplier=sigma,
            delta=self.target_delta,
            max_steps=steps,
            target_epsilon=self.target_epsilon,
            accountant=self.accountant,
            prior=self.prior,
        )


def noise_of(baseline: str, seed: int) -> SeededNoise:
    """Seeded noise of one baseline, unrelated to that of the run with the same seed and of other baselines."""
    return SeededNoise.from_seed(f"{baseline} {seed}")
