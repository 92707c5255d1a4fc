"""Client-level privacy of a federation: its ledger, and the noisy average in the place of the plain one."""

from __future__ import annotations

from torch import Tensor

from ..adapters import Adapters
from ..config import Config, ConfigError
from ..privacy.accountants import noise_multiplier_for
from ..privacy.accounting import PrivacyLedger
from ..privacy.client_level import SERVER_ID, ClientLevel
from ..privacy.clipping import AdaptiveQuantileClipping
from ..privacy.distributed import NoiseShares
from ..privacy.noise import SecureNoise, SeededNoise
from ..privacy.prior import read_prior
from ..privacy.sampling import SeededDraw, SystemDraw
from .strategies import Mean


def make_client_level(config: Config, clients: int, fingerprint: str, width: int) -> ClientLevel:
    """The client-level mechanism of a run: its population's ledger, with noise for all rounds. The ledger is keyed to
    the ``fingerprint`` of everybody's data; an update holds ``width`` numbers.

    Raises:
        ConfigError: shares of noise that cannot suffice (``privacy.dropouts``, ``colluders``, ``sum_bits``).
    """
    privacy, federation = config.privacy, config.federation
    is_secure = privacy.noise == "secure"
    sampling = "poisson" if privacy.sampling == "poisson" else "without-replacement"
    if privacy.noise_at == "clients":
        sampling = "by-server"
    prior = read_prior(privacy.prior, is_secure)
    sigma = privacy.noise_multiplier
    if sigma is None and privacy.target_epsilon is not None:
        sigma = noise_multiplier_for(
            privacy.target_epsilon,
            privacy.delta,
            federation.participation,
            federation.rounds,
            privacy.accountant,
            sampling,
            prior=prior,
        )
    ledger = PrivacyLedger(
        client_id=SERVER_ID,
        dataset_size=clients,
        sample_rate=federation.participation,
        noise_multiplier=float(sigma or 0.0),
        delta=privacy.delta,
        max_steps=federation.rounds,
        target_epsilon=privacy.target_epsilon,
        accountant=privacy.accountant,
        sampling=sampling,
        unit="client",
        fingerprint=fingerprint,
        prior=prior,
    )
    level = ClientLevel(
        ledger,
        privacy.max_grad_norm,
        SecureNoise() if is_secure else SeededNoise.from_seed(config.seed),
        SystemDraw() if is_secure else SeededDraw(config.seed),
        clipping="flat" if privacy.clipping == "adaptive" else privacy.clipping,
        shares=_noise_shares(config, ledger, width),
    )
    if privacy.clipping == "adaptive":
        level.adaptive = AdaptiveQuantileClipping(
            ledger.noise_multiplier, level.expected_cohort, privacy.max_grad_norm, privacy.clipping_quantile
        )
    return level


def _noise_shares(config: Config, ledger: PrivacyLedger, width: int) -> NoiseShares | None:
    privacy = config.privacy
    if privacy.noise_at == "server":
        return None
    cohort = config.federation.cohort(ledger.dataset_size)
    try:
        return NoiseShares(
            ledger.noise_multiplier,
            privacy.max_grad_norm,
            width,
            cohort,
            privacy.dropouts,
            privacy.colluders,
            privacy.sum_bits,
            config.seed,
        )
    except ValueError as error:
        raise ConfigError(f"privacy.noise_at='clients': {error}") from None


def client_level_mean(level: ClientLevel, adapters: Adapters) -> Mean:
    """The noisy average of clipped updates, in the place of the plain one. Weights are uniform and not used."""

    def mean(start: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        state = start.clone()
        level.close_round_(state, rows, level.ledger.steps_taken - 1, adapters.layout.parameter_index(state.device))
        return state

    return mean
