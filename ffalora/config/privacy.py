"""The section of a configuration about differential privacy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from .names import OTHER_NAMES
from .section import ONE_IS_A_LIST, Section


class PrivacyConfig(Section):
    """Differential privacy."""

    other_names: ClassVar = OTHER_NAMES["privacy"]

    unit: Literal["none", "sample", "user", "client"] = Field(
        "none",
        description="what is protected: nothing, each sample, each user (all rows of one in data.user), or each client "
        "as a whole",
    )
    draws: Literal["users", "samples"] = Field(
        "users",
        description="unit: user; users: users are drawn, and the sum of one's gradients is clipped; samples: samples "
        "are drawn and clipped, at most samples_per_user of a user are kept, and ε counts them as a group",
    )
    samples_per_user: int = Field(
        8,
        ge=1,
        description="unit: user; most samples of a user in a step (draws: users; others are drawn each time) or in the "
        "run (draws: samples)",
    )
    target_epsilon: float | None = Field(None, gt=0, description="ε that all rounds together may spend, per client")
    noise_multiplier: float | None = Field(None, ge=0, description="σ, instead of a target ε")
    delta: float = Field(1e-5, gt=0, lt=1, description="δ")
    max_grad_norm: float = Field(
        1.0, gt=0, description="clipping norm C, of a sample's gradient or of a client's update"
    )
    clipping: Literal["flat", "per-layer", "automatic", "adaptive"] = Field(
        "flat", description="how gradients or updates are clipped; adaptive: C follows a quantile of their norms"
    )
    head_share: float | None = Field(
        0.9,
        gt=0,
        lt=1,
        description="clipping: flat or automatic; share of C² up to which a trained head is clipped, apart from the "
        "adapters, which take the rest; null clips both together",
    )
    clipping_quantile: float = Field(0.5, gt=0, lt=1, description="clipping: adaptive; share that stays unclipped")
    accountant: Literal["pld", "prv", "rdp"] = Field("pld", description="accountant of the stated ε")
    sampling: Literal["poisson", "shuffled"] = Field("poisson", description="shuffled batches get no amplification")
    noise: Literal["auto", "seeded", "secure"] = Field(
        "auto",
        description="seeded: reproducible, for simulation; secure: cryptographic, never reproducible; auto: seeded "
        "in simulations, secure wherever a model may leave the machine (train, flower)",
    )
    mechanism: Literal["independent", "banded-mf", "blt"] = Field(
        "independent",
        description="noise of different steps: independent, or correlated so that much of it cancels in their sum; "
        "banded-mf goes with sampling, blt is for batches so large that sampling amplifies little",
    )
    band: int | None = Field(
        None, ge=1, description="mechanism: banded-mf; steps over which noise is correlated (default: the best)"
    )
    noise_at: Literal["server", "clients"] = Field(
        "server",
        description="unit: client; who adds the noise: the server, which is trusted with updates, or each client "
        "its share, of which the server sees the sum alone (secure aggregation); nothing is amplified then, whatever "
        "sampling says",
    )
    dropouts: int = Field(
        0, ge=0, description="noise_at: clients; how many of a round's clients may vanish before its sum is given up"
    )
    colluders: int = Field(
        0, ge=0, description="noise_at: clients; how many of them may tell the server their share of the noise"
    )
    sum_bits: int = Field(
        16, ge=8, le=20, description="noise_at: clients; numbers travel and are summed modulo 2 to this power"
    )
    ledger: str | None = Field(
        None,
        description="ledger of the data set: a name in FFALORA_LEDGERS, or a folder (default: secure runs take the "
        "data's name)",
    )
    prior: Annotated[list[str], ONE_IS_A_LIST] = Field(
        [], description="what earlier runs spent on the same data: their privacy.json, ledger files or folders"
    )
    public_size_bound: int | None = Field(
        None,
        ge=1,
        description="keeps the number of a client's samples (or users) secret: rate and noise follow from this bound",
    )
    trials: float = Field(
        1.0,
        ge=1,
        le=1000,
        description="unit: sample or user; above 1 the run is one of so many trials, on average, of ffalora choose, "
        "which sets this, and ε is that of the whole choice",
    )
    check_gradients: bool = Field(
        True, description="compare the first gradients of samples with ordinary autograd's, each sample alone"
    )

    @property
    def at_clients(self) -> bool:
        """Whether each client protects its own samples or users, each with a ledger of its own."""
        return self.unit in ("sample", "user")

    @property
    def is_secure(self) -> bool:
        """Whether there is noise, and nobody can repeat it."""
        return self.unit != "none" and self.noise == "secure"

    @property
    def draws_users(self) -> bool:
        """Whether a step draws users, whose gradients are summed before they are clipped."""
        return self.unit == "user" and self.draws == "users"

    @property
    def group(self) -> int:
        """The most samples of one unit among those that are drawn: ε counts them together."""
        return self.samples_per_user if self.unit == "user" and not self.draws_users else 1

    @property
    def hides_sizes(self) -> bool:
        """Whether how much data a client holds is a secret: what ε covers where whole clients are protected, too."""
        return self.unit == "client" or self.public_size_bound is not None

    @model_validator(mode="after")
    def _one_way_to_set_the_noise(self) -> PrivacyConfig:
        if self.unit == "none":
            asked = [name for name in ("target_epsilon", "noise_multiplier") if getattr(self, name) is not None]
            if asked:
                raise ValueError(
                    f"{asked[0]}={getattr(self, asked[0])} is given, but unit='none' adds no noise; "
                    f"set privacy.unit to 'sample', or privacy.{asked[0]} to null"
                )
            return self
        if self.unit == "client" and self.clipping == "per-layer":
            raise ValueError(
                "clipping='per-layer' is for samples' gradients; a client's whole update is clipped at the server: set "
                "privacy.clipping to flat, automatic or adaptive for unit='client'"
            )
        if self.public_size_bound is not None and (self.unit == "client" or self.sampling != "poisson"):
            raise ValueError(
                f"public_size_bound={self.public_size_bound} hides how many samples there are; unit={self.unit!r} with "
                f"sampling={self.sampling!r} does not: set them to sample and poisson, or leave the bound out"
            )
        if self.public_size_bound is not None and self.unit == "user" and not self.draws_users:
            raise ValueError(
                f"public_size_bound={self.public_size_bound} hides the number of samples, but with draws='samples' "
                "one user more or less changes which samples of others are kept: set privacy.draws to users, or leave "
                "the bound out"
            )
        if self.band is not None and self.mechanism != "banded-mf":
            raise ValueError(f"band={self.band} is of mechanism='banded-mf', got {self.mechanism!r}; leave it out")
        if self.target_epsilon is not None and self.noise_multiplier == 0:
            raise ValueError(
                f"noise_multiplier=0 spends infinite ε and cannot meet target_epsilon={self.target_epsilon}; leave "
                "noise_multiplier out, and it is calibrated"
            )
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"give exactly one of target_epsilon ({self.target_epsilon}) and "
                f"noise_multiplier ({self.noise_multiplier})"
            )
        return self

    @model_validator(mode="after")
    def _shares_hide_among_others(self) -> PrivacyConfig:
        """A client's own share of noise is small: it protects only what leaves as a sum, once a round."""
        if self.noise_at == "server":
            for name in ("dropouts", "colluders"):
                if getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)} is of noise_at='clients'; leave it out")
            return self
        if self.unit != "client":
            raise ValueError(
                f"noise_at='clients' with unit={self.unit!r}: each local step would show the steps after it a sum with "
                "this client's own small share of the noise alone; set privacy.unit to client, whose updates leave "
                "once a round, or leave noise_at out"
            )
        if self.clipping == "adaptive":
            raise ValueError(
                "noise_at='clients' with clipping='adaptive': C would follow norms that nobody may see; set "
                "privacy.clipping to flat or automatic"
            )
        if self.noise_multiplier == 0:
            raise ValueError("noise_at='clients' with noise_multiplier=0: there is nothing to share; raise it")
        return self

    @model_validator(mode="after")
    def _mechanism_is_derived(self) -> PrivacyConfig:
        """Correlated noise is derived for samples that take turns, clipped to one norm."""
        needed = {"unit": ("sample",), "sampling": ("poisson",), "clipping": ("flat", "per-layer", "automatic")}
        for name, allowed in needed.items():
            if self.mechanism != "independent" and getattr(self, name) not in allowed:
                raise ValueError(
                    f"mechanism={self.mechanism!r} is not derived for {name}={getattr(self, name)!r}: set privacy."
                    f"{name} to {' or '.join(allowed)}, or privacy.mechanism to independent"
                )
        if self.trials > 1 and (self.mechanism != "independent" or self.unit == "client"):
            raise ValueError(
                f"trials={self.trials:g} is not derived for mechanism={self.mechanism!r} with unit={self.unit!r}: set "
                "privacy.mechanism to independent and privacy.unit to sample or user"
            )
        if self.mechanism != "independent" and self.public_size_bound is not None:
            raise ValueError(
                f"mechanism={self.mechanism!r} divides the records into groups, for which their number is public: "
                "leave public_size_bound out, or set privacy.mechanism to independent"
            )
        return self
