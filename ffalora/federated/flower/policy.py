"""What a site allows, whatever the server asks for: a local file that no run can lower."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from ...config import Config, ConfigError
from ...config.plain_yaml import read_yaml
from ...config.section import Section
from ...data.errors import DataError
from ...privacy.accounting import PrivacyLedger
from ...privacy.replacement import sample_epsilon

logger = logging.getLogger(__name__)


class SitePolicy(Section):
    """The terms on which a site takes part. Without a file these defaults hold: samples are protected with secure
    noise, at most ε = 8 and δ = 1e-5 over all rounds, and ε alone is reported.
    """

    unit: Literal["user", "sample", "client", "none"] = Field(
        "sample",
        description="least that is protected, and what max_epsilon is of: each user, each sample, this client as a "
        "whole by the noise that all bring together, or nothing (for simulations)",
    )
    noise: Literal["secure", "seeded"] = Field(
        "secure", description="seeded also allows noise that whoever knows the seed can subtract (for simulations)"
    )
    max_epsilon: float | None = Field(8.0, gt=0, description="most ε that all rounds together may spend; null: any")
    min_noise_multiplier: float = Field(0.0, ge=0, description="least σ")
    max_delta: float = Field(1e-5, gt=0, lt=1, description="largest δ")
    strategies: list[str] | None = Field(None, description="methods that are allowed (default: all)")
    model: str | None = Field(None, description="digest that the model with its head must have (default: any)")
    frozen: str | None = Field(None, description="digest that the frozen factors must have (default: any)")
    label_names: list[str] | None = Field(None, description="classes of the federation, in order (default: any)")
    labels: dict[str, str] = Field(
        default_factory=dict, description="this site's classes as the federation calls them, where the names differ"
    )
    reports: list[Literal["samples", "epsilon"]] = Field(
        ["epsilon"], description="what the server is told beside the noisy numbers: samples, epsilon"
    )
    size_bound: int | None = Field(
        None,
        ge=1,
        description="keeps secret how many samples (or users) this site has: at most so many; a run must set "
        "privacy.public_size_bound to at least that (default: the size is no secret)",
    )
    data: str | None = Field(None, description="the only data that may be trained on: a file or a folder")

    def check_run(self, config: Config) -> None:
        """Refuses a run that protects less than this site demands, before anything is read.

        Raises:
            ConfigError: names the run's key and the policy's.
        """
        privacy, strategy = config.privacy, config.federation.strategy
        if privacy.unit == "none" and self.unit != "none":
            raise ConfigError(
                "privacy.unit='none': this site's policy demands that every sample is protected (unit: sample); "
                "set privacy.unit to sample, or unit: none in the site's policy"
            )
        if self.unit != "none" and (privacy.unit == "client") != (self.unit == "client"):
            raise ConfigError(
                f"privacy.unit={privacy.unit!r}: this site's policy demands unit: {self.unit}. At client level a site "
                "hides among the others' shares of the noise, elsewhere it has noise of its own: set unit to the one "
                "that this site agrees to"
            )
        if self.unit != "none" and privacy.unit == "client" and privacy.noise_at == "server":
            raise ConfigError(
                "privacy.unit='client' with noise_at='server': the server would see this site's update without noise, "
                "which its policy refuses; set privacy.noise_at to clients"
            )
        if privacy.unit == "sample" and self.unit == "user":
            raise ConfigError(
                "privacy.unit='sample': this site's policy demands that all rows of a user are protected together "
                "(unit: user); set privacy.unit to user, and data.user to the column that names them"
            )
        if privacy.unit != "none" and privacy.noise == "seeded" and self.noise != "seeded":
            raise ConfigError(
                "privacy.noise='seeded': whoever knows the configuration can subtract this noise, so this site's "
                "policy refuses it (noise: secure); set privacy.noise to secure, or, for simulations only, noise: "
                "seeded in the site's policy"
            )
        if privacy.unit != "none" and privacy.delta > self.max_delta:
            raise ConfigError(
                f"privacy.delta={privacy.delta:g}: this site's policy allows at most max_delta={self.max_delta:g}; "
                "lower it"
            )
        if self.size_bound is not None and privacy.at_clients and (privacy.public_size_bound or 0) < self.size_bound:
            raise ConfigError(
                f"privacy.public_size_bound={privacy.public_size_bound}: this site's policy keeps its size secret; set "
                f"it to at least size_bound={self.size_bound}, and federation.weighting to uniform"
            )
        if self.strategies is not None and strategy not in self.strategies:
            raise ConfigError(
                f"federation.strategy={strategy!r}: this site's policy allows {', '.join(self.strategies) or 'none'}"
            )
        if config.federation.weighting == "size" and "samples" not in self.reports:
            raise ConfigError(
                "federation.weighting='size': this site's policy does not report how many samples it has; set it to "
                "uniform, or add samples to reports in the site's policy"
            )

    def check_size(self, size: int) -> None:
        """Refuses every run where this site holds more than its own policy says.

        Raises:
            DataError: it does; the text stays at the site.
        """
        if self.size_bound is not None and size > self.size_bound:
            raise DataError(f"size_bound={self.size_bound}: this site holds {size}; raise it in the policy")

    def check_ledger(self, ledger: PrivacyLedger | None) -> None:
        """Refuses terms under which the site would spend more than it allows. The site's log says how much; what is
        told of the refusal does not: σ and ε follow from how many rows there are.

        Raises:
            ConfigError: too little noise, or too much ε once every allowed step is taken.
        """
        if ledger is None:
            return
        if ledger.noise_multiplier < self.min_noise_multiplier:
            logger.warning("%s: σ would be %.4g", ledger.name, ledger.noise_multiplier)
            raise ConfigError(
                "privacy.noise_multiplier is too small for this site's data: its policy demands "
                f"min_noise_multiplier={self.min_noise_multiplier:g}; lower privacy.target_epsilon, or raise the noise"
            )
        if self.max_epsilon is not None and not self._final_epsilon(ledger) <= self.max_epsilon:
            of_sample = self.unit == "sample" and ledger.unit == "user"
            logger.warning("%s: ε would be %.4g", ledger.name, self._final_epsilon(ledger))
            raise ConfigError(
                "the run would spend more on this site's data than its policy allows, "
                f"max_epsilon={self.max_epsilon:g}"
                + (" (counted for one sample, which may change its user's clipped sum by 2C)" if of_sample else "")
                + "; lower privacy.target_epsilon, or take fewer steps"
                + (", or, where ε of users is what counts, set unit: user in the policy" if of_sample else "")
            )

    def _final_epsilon(self, ledger: PrivacyLedger) -> float:
        """ε of what this site wants protected, once every allowed step is taken: one sample is not covered by ε of the
        user who has it (see :mod:`~ffalora.privacy.replacement`).
        """
        if self.unit != "sample" or ledger.unit != "user":
            return ledger.final_epsilon()
        history = (*ledger.prior, *ledger.others, ledger.steps(ledger.steps_allowed))
        return sample_epsilon(history, ledger.delta, ledger.accountant)

    def check_digests(self, model: str, frozen: str, label_names: list[str] | None) -> None:
        """Refuses another model, other frozen factors, or other classes than the site agreed to.

        Raises:
            ConfigError: names what differs.
        """
        for key, wanted, found in (("model", self.model, model), ("frozen", self.frozen, frozen)):
            if wanted is not None and wanted != found:
                raise ConfigError(f"{key}={wanted}: this site's policy names another digest than that here, {found}")
        if self.label_names is not None and self.label_names != label_names:
            raise ConfigError(
                f"label_names={self.label_names}: the federation's classes are {label_names}, which this site's policy "
                "does not allow"
            )

    def allowed_data(self, data: str | None) -> str | None:
        """The data to train on: what the node names, or the policy.

        Raises:
            ConfigError: the node names other data than the policy allows.
        """
        if self.data is None or data is None:
            return data or self.data
        if Path(data).resolve() != Path(self.data).resolve():
            raise ConfigError(f"data={data!r}: this site's policy allows data={self.data!r} alone")
        return data


def load_policy(path: str | Path | None) -> SitePolicy:
    """A site's policy from its YAML file; without a file, the defaults.

    Raises:
        ConfigError: unreadable, an unknown key, or a value of the wrong kind.
    """
    if path is None:
        return SitePolicy()
    try:
        values = read_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the policy {path}: {error}") from None
    return SitePolicy.read(values, f"policy {path}: ")


def save_policy(policy: SitePolicy, path: Path) -> None:
    """Writes a policy as :func:`load_policy` reads it."""
    said = yaml.safe_dump(policy.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path.write_text(said, encoding="utf-8")
