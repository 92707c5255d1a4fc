"""The sections of a run's configuration but model and adapter, every key with its type, default and description."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from .names import OTHER_NAMES
from .section import Section


class DataConfig(Section):
    """The data."""

    name: str = Field(
        "movie-reviews", description="embedded data set, local file or folder, or hub name such as glue/sst2"
    )
    task: Literal["classification", "regression", "causal-lm", "image-classification"] = Field(
        "classification", description="what is learned; it decides loss and metrics"
    )
    text: list[str] | None = Field(None, description="text columns, one or two (default: the data set's own)")
    label: str | None = Field(None, description="label column (default: the data set's own)")
    user: str | None = Field(
        None,
        description="column that says whose each row is: a name, or a list of names where several own a row. A user's "
        "rows stay in one split, and privacy.unit: user protects them together",
    )
    label_texts: dict[str, list[str]] | None = Field(
        None,
        description="short texts that could be of a class, by its name, such as {negative: [a bad movie], …}; public: "
        "never taken from the clients' data (default: the data set's own, else the names)",
    )
    public_texts: list[str] | None = Field(
        None,
        description="a few texts that look like the data, public: never taken from the clients' data; the mean of what "
        "the model makes of them is taken off the pooled states (default: the data set's own, else the class texts and "
        "sentences of everyday English)",
    )
    splits: dict[str, str] | None = Field(
        None,
        description="which of the source's splits play which roles, such as {train: train, test: validation}; other "
        "roles are cut from the training data (default: splits called so)",
    )
    drop_empty: bool = Field(
        False, description="leave out rows whose text, label or client is empty instead of refusing them"
    )
    encoding: str | None = Field(None, description="of CSV files, such as cp1252 (default: found in the file)")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="between the cells of CSV files (default: found in the file)"
    )
    max_length: int = Field(128, ge=2, description="tokens after which a text is cut")
    max_samples: int | None = Field(None, ge=1, description="use at most this many training samples")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="held out of the training data where there is no validation split"
    )
    test_fraction: float = Field(0.2, ge=0, le=1, description="held out where there is no test split")
    evaluate_on: Literal["validation", "test"] = Field("test", description="split that the reported metrics use")
    max_evaluation_samples: int | None = Field(None, ge=1, description="evaluate on at most this many samples")
    answer_tokens: int | None = Field(
        None,
        ge=1,
        description="causal-lm: also generate answers of at most this many tokens, and report how near they are to "
        "the data's (rouge_l) and how many end in the right number (exact_match)",
    )

    @field_validator("text", mode="before")
    @classmethod
    def _one_column_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _answers_are_for_language_models(self) -> DataConfig:
        if self.answer_tokens is not None and self.task != "causal-lm":
            raise ValueError(
                f"answer_tokens={self.answer_tokens} is given, but task={self.task!r} generates no answers; set it to "
                "null, or data.task to causal-lm"
            )
        return self


class ClientsConfig(Section):
    """Who holds what."""

    count: int | None = Field(None, ge=1, description="number of clients (default: what the partition says, else 3)")
    partition: Literal["iid", "labels", "dirichlet", "quantity", "column"] = Field(
        "iid", description="how data is split"
    )
    proportions: list[list[float]] | None = Field(
        None, description="partition: labels; one row a client, one share a class, such as [[.9,.1],[.1,.9],[.5,.5]]"
    )
    beta: float = Field(0.5, gt=0, description="partition: dirichlet; concentration, small is skewed")
    quantities: list[float] | None = Field(None, description="partition: quantity; share of the data of each client")
    column: str | None = Field(None, description="partition: column; its values are the clients")
    ranks: list[int] | None = Field(
        None, description="rank of each client, at most adapter.rank (flora, flexlora and hetlora only)"
    )

    @model_validator(mode="after")
    def _partition_has_what_it_needs(self) -> ClientsConfig:
        needs = {"labels": "proportions", "quantity": "quantities", "column": "column"}
        for kind, name in needs.items():
            value = getattr(self, name)
            if kind == self.partition and value is None and kind != "quantity":
                raise ValueError(
                    f"partition={kind!r} needs clients.{name}: {type(self).model_fields[name].description}"
                )
            if kind != self.partition and value is not None:
                raise ValueError(
                    f"{name} is given, but partition={self.partition!r} does not use it; set partition to {kind!r}"
                )
        for name in ("proportions", "quantities"):
            rows = getattr(self, name)
            if rows is not None and self.count is not None and len(rows) != self.count:
                raise ValueError(f"count={self.count}, but {name} is for {len(rows)} clients; leave count out")
        return self


class FederationConfig(Section):
    """The rounds."""

    strategy: str = Field("ffa", description="what is trained, sent and aggregated: ffa, lora, …")
    rounds: int = Field(15, ge=1, description="communication rounds")
    local_steps: int = Field(5, ge=1, description="logical steps of a client in a round")
    participation: float = Field(1.0, gt=0, le=1, description="share of clients drawn in each round")
    weighting: Literal["uniform", "size"] = Field("size", description="weights of the average: data-set sizes or equal")
    prox_mu: float = Field(0.0, ge=0, description="FedProx: strength of the pull towards the global state")
    refactor_every: int = Field(1, ge=1, description="fedsvd: rounds between new factors")
    rank_pruning: float = Field(
        1.0,
        gt=0,
        le=1,
        description="hetlora: share of its rank that a client keeps when the rest shrank; 1 never prunes",
    )
    robust_mean: Literal["median", "trimmed-mean", "krum", "multi-krum", "norm-bounded"] | None = Field(
        None, description="average that a few hostile clients cannot move far, instead of the weighted mean"
    )
    hostile_clients: int = Field(
        1, ge=0, description="robust_mean: clients of a round that may be hostile (trimmed-mean, krum, multi-krum)"
    )
    norm_bound: float | None = Field(
        None, gt=0, description="robust_mean: norm-bounded; largest norm of an update (default: each round's median)"
    )
    server_optimizer: Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"] = Field(
        "fedavg", description="what the server makes of the average"
    )
    server_lr: float = Field(1.0, gt=0, description="learning rate of the server optimiser (fedavg: 1 is the average)")
    server_beta1: float = Field(0.9, ge=0, lt=1, description="server optimiser: momentum, or first moment")
    server_beta2: float = Field(0.99, ge=0, lt=1, description="server optimiser: second moment")
    server_tau: float = Field(1e-3, gt=0, description="server optimiser: degree of adaptivity")
    dropout_rate: float = Field(
        0.0, ge=0, lt=1, description="simulated: share of drawn clients that vanish in mid-round"
    )
    straggler_rate: float = Field(0.0, ge=0, le=1, description="simulated: share of drawn clients that are slow")
    straggler_work: float = Field(
        0.5, gt=0, le=1, description="simulated: share of the local steps that a slow client takes in time"
    )
    min_available: int = Field(1, ge=1, description="clients that must be there for a round to begin")
    evaluate_every: int = Field(1, ge=1, description="rounds between evaluations; the last round is always evaluated")
    one_pass: Literal["auto", "always", "never"] = Field(
        "auto", description="train all clients of a round in one forward and backward pass"
    )


class OptimizerConfig(Section):
    """The local optimiser."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="local optimiser")
    normalize: bool = Field(
        True,
        description="learning rates that mean the same whatever clipping norm, rank, alpha and initialisation are: "
        "private steps are divided by the clipping norm, and factors move in units of their scale; false: as the "
        "paper writes them",
    )
    lr: PositiveFloat | Literal["auto"] = Field(
        "auto", description="learning rate; auto: from noise, steps and method alone, never from the data"
    )
    head_lr_factor: PositiveFloat | Literal["auto"] = Field(
        "auto",
        description="a trained head's learning rate, relative to the adapters'; auto: each as its noise allows, and "
        "10 where nothing is clipped",
    )
    a_lr_factor: float = Field(
        1.0, gt=0, description="learning rate of a trained a, relative to that of b (LoRA+ asks for less than 1)"
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="sgd: momentum")
    beta1: float = Field(0.9, ge=0, lt=1, description="adamw: first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="adamw: second moment")
    eps: float = Field(1e-8, gt=0, description="adamw: stability constant")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate over all logical steps of all rounds, after the warm-up"
    )
    warmup_steps: int = Field(0, ge=0, description="logical steps over which the learning rate rises linearly")
    keep_moments: bool = Field(
        False, description="local moments outlive rounds (training at one site always keeps them)"
    )
    dp_bias_correction: bool = Field(False, description="adamw: take the noise variance off the second moment")
    batch_size: int = Field(
        64, ge=1, description="logical batch: expected size under Poisson sampling, in users where users are drawn"
    )
    token_budget: int | None = Field(
        None, ge=1, description="tokens of a physical batch (default: to suit the machine)"
    )


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
    ledger: str | None = Field(
        None,
        description="ledger of the data set: a name in FFALORA_LEDGERS, or a folder (default: secure runs take the "
        "data's name)",
    )
    prior: list[str] = Field(
        [], description="what earlier runs spent on the same data: their privacy.json, ledger files or folders"
    )
    public_size_bound: int | None = Field(
        None,
        ge=1,
        description="keeps the number of a client's samples (or users) secret: rate and noise follow from this bound",
    )
    check_gradients: bool = Field(
        True, description="compare the first gradients of samples with ordinary autograd's, each sample alone"
    )

    @property
    def at_clients(self) -> bool:
        """Whether each client protects its own samples or users, each with a ledger of its own."""
        return self.unit in ("sample", "user")

    @property
    def draws_users(self) -> bool:
        """Whether a step draws users, whose gradients are summed before they are clipped."""
        return self.unit == "user" and self.draws == "users"

    @field_validator("prior", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

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
    def _mechanism_is_derived(self) -> PrivacyConfig:
        """Correlated noise is derived for samples that take turns, clipped to one norm."""
        needed = {"unit": ("sample",), "sampling": ("poisson",), "clipping": ("flat", "per-layer", "automatic")}
        for name, allowed in needed.items():
            if self.mechanism != "independent" and getattr(self, name) not in allowed:
                raise ValueError(
                    f"mechanism={self.mechanism!r} is not derived for {name}={getattr(self, name)!r}: set privacy."
                    f"{name} to {' or '.join(allowed)}, or privacy.mechanism to independent"
                )
        if self.mechanism != "independent" and self.public_size_bound is not None:
            raise ValueError(
                f"mechanism={self.mechanism!r} divides the records into groups, for which their number is public: "
                "leave public_size_bound out, or set privacy.mechanism to independent"
            )
        return self
