"""The ledgers of a run: of each client's data, with noise that is calibrated for it."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config
from ..data.errors import DataError
from ..privacy.accountants import noise_multiplier_for
from ..privacy.accounting import PrivacyLedger
from ..privacy.client_level import ClientLevel
from ..privacy.clipping import AdaptiveQuantileClipping
from ..privacy.factors import choose_noise
from ..privacy.prior import read_prior
from ..training.participant import Participant


def ledgers_of(participants: Sequence[Participant], level: ClientLevel | None) -> dict[str, PrivacyLedger]:
    """Every ledger by name: one a client, or the population's; none without privacy."""
    if level is not None:
        return {"population": level.ledger}
    return {str(p.client_id): p.ledger for p in participants if p.ledger is not None}


def clipping_policy(config: Config, ledger: PrivacyLedger | None) -> AdaptiveQuantileClipping | None:
    """The policy that moves a client's clipping norm; None where it stays."""
    privacy = config.privacy
    if ledger is None or privacy.clipping != "adaptive":
        return None
    return AdaptiveQuantileClipping(
        noise_multiplier=ledger.noise_multiplier,
        expected_rows=ledger.expected_batch,
        max_grad_norm=privacy.max_grad_norm,
        quantile=privacy.clipping_quantile,
    )


def make_ledger(
    config: Config, client_id: int, samples: int, steps: int, fingerprint: str, label: str = ""
) -> PrivacyLedger:
    """The ledger of one client's data. σ is calibrated for this client alone: sizes differ, and so do sampling rates.

    Args:
        config: of the run; client_id: whose data.
        samples: their number, or that of users where users are drawn; steps: the most that all rounds together take.
        fingerprint: from :func:`data_fingerprint`; a ledger of other data is refused on resume.
        label: what people call the client.

    Raises:
        DataError: more samples than ``privacy.public_size_bound`` says. ConfigError: a band that does not fit.
        LedgerMismatch: ``privacy.prior`` cannot be read, or protects another unit.
    """
    privacy = config.privacy
    prior = read_prior(privacy.prior, privacy.noise == "secure")
    size = samples if privacy.public_size_bound is None else privacy.public_size_bound
    if samples > size:
        raise DataError(  # which a site keeps to itself: a server that chose the bound would learn the size from it
            f"privacy.public_size_bound={size}: {label or f'client {client_id}'} holds more "
            f"{'users' if privacy.draws_users else 'samples'}; raise the bound"
        )
    rate, group = min(1.0, config.optimizer.batch / size), privacy.group
    sigma, correlation = privacy.noise_multiplier, None
    if privacy.mechanism != "independent":
        correlation, sigma = choose_noise(
            privacy.mechanism,
            steps,
            rate,
            privacy.delta,
            privacy.target_epsilon,
            sigma,
            privacy.band,
            privacy.accountant,
            prior,
        )
        rate = correlation.sample_rate(rate)
    elif sigma is None and privacy.target_epsilon is not None:
        sigma = noise_multiplier_for(
            privacy.target_epsilon,
            privacy.delta,
            rate,
            steps,
            privacy.accountant,
            privacy.sampling,
            prior,
            group,
            privacy.trials,
        )
    return PrivacyLedger(
        client_id=client_id,
        dataset_size=size,
        sample_rate=rate,
        noise_multiplier=float(sigma or 0.0),
        delta=privacy.delta,
        max_steps=steps,
        target_epsilon=privacy.target_epsilon,
        accountant=privacy.accountant,
        sampling=privacy.sampling,
        unit=privacy.unit,
        fingerprint=fingerprint,
        prior=prior,
        size_is_public=privacy.public_size_bound is None,
        label=label,
        group=group,
        correlation=correlation,
        trials=privacy.trials,
    )
