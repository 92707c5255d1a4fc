"""The sections of a run's configuration but model and adapter, every key with its type, default and description."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from .section import ONE_IS_A_LIST, Section


class DataConfig(Section):
    """The data."""

    name: str = Field(
        "movie-reviews", description="embedded data set, local file or folder, or hub name such as glue/sst2"
    )
    task: Literal["classification", "regression", "causal-lm", "image-classification"] = Field(
        "classification", description="what is learned; it decides loss and metrics"
    )
    text: Annotated[list[str] | None, ONE_IS_A_LIST] = Field(
        None, description="text columns, one or two (default: the data set's own)"
    )
    label: str | None = Field(None, description="label column (default: the data set's own)")
    label_range: list[float] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description="regression: the least and the greatest number that a label can be, such as [0, 500]; public: "
        "known without looking at the rows. The model learns them as -1 and 1, and answers in their units (default: "
        "labels are learned as they are)",
    )
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
    delimiter: Annotated[str | None, BeforeValidator(lambda value: "\t" if value == r"\t" else value)] = Field(
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
    views: int = Field(
        1,
        ge=1,
        le=256,
        description="how often a sample passes in each step, changed differently each time; clipped is the mean of its "
        "views' gradients, so that ε stays what it is and training takes so many times as long",
    )
    augment: Literal["none", "word-dropout", "shift"] = Field(
        "none",
        description="how samples are changed while training: words are left out of texts, images are moved by a few "
        "pixels; none: views differ by adapter.dropout alone",
    )
    augment_rate: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="augment: share of the words that are left out, or of its side that an image is moved by at most",
    )
    answer_tokens: int | None = Field(
        None,
        ge=1,
        description="causal-lm: also generate answers of at most this many tokens, and report how near they are to "
        "the data's (rouge_l) and how many are right (exact_match), where they end in numbers or are a choice of few",
    )

    @model_validator(mode="after")
    def _answers_are_for_language_models(self) -> DataConfig:
        if self.answer_tokens is not None and self.task != "causal-lm":
            raise ValueError(
                f"answer_tokens={self.answer_tokens} is given, but task={self.task!r} generates no answers; set it to "
                "null, or data.task to causal-lm"
            )
        return self

    @model_validator(mode="after")
    def _range_is_of_numbers(self) -> DataConfig:
        if self.label_range is None:
            return self
        if self.task != "regression":
            raise ValueError(
                f"label_range={self.label_range} is given, but task={self.task!r} predicts no numbers; set it to null, "
                "or data.task to regression"
            )
        if not self.label_range[0] < self.label_range[1]:
            raise ValueError(f"label_range={self.label_range}: give the least and then the greatest number")
        return self

    @model_validator(mode="after")
    def _augmentation_is_of_the_task(self) -> DataConfig:
        tasks = {"word-dropout": ("classification", "regression"), "shift": ("image-classification",)}
        fitting = tasks.get(self.augment, (self.task,))
        if self.task not in fitting:
            why = ": an answer would be one to another question" if self.task == "causal-lm" else ""
            raise ValueError(
                f"augment={self.augment!r} is for task {' or '.join(fitting)}, got {self.task!r}{why}; set it to none"
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
        None, description="rank of each client, at most that of the adapters (flora, flexlora and hetlora only)"
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
    server_lr: float = Field(
        1.0,
        gt=0,
        description="learning rate of the server optimiser: 1 is the average; what "
        "fedadam, fedyogi and fedadagrad move a number by in a round, such as 0.01",
    )
    server_beta1: float = Field(0.9, ge=0, lt=1, description="server optimiser: momentum, or first moment")
    server_beta2: float = Field(0.99, ge=0, lt=1, description="server optimiser: second moment")
    server_tau: float = Field(1e-3, gt=0, description="server optimiser: degree of adaptivity")
    average_from: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="evaluate and save the average of what rounds ended with, from this share of the rounds on, "
        "instead of the last (exact while a is fixed; fedsvd begins anew at each renewal)",
    )
    average_decay: float = Field(
        1.0, gt=0, le=1, description="average_from: weight of a round relative to the next one (1: all the same)"
    )
    dropout_rate: float = Field(
        0.0, ge=0, lt=1, description="simulated: share of drawn clients that vanish in mid-round"
    )
    straggler_rate: float = Field(0.0, ge=0, le=1, description="simulated: share of drawn clients that are slow")
    straggler_work: float = Field(
        0.5, gt=0, le=1, description="simulated: share of the local steps that a slow client takes in time"
    )
    min_available: int = Field(1, ge=1, description="clients that must be there for a round to begin")
    evaluate_every: int = Field(1, ge=1, description="rounds between evaluations; the last round is always evaluated")
    payload: Literal["float32", "float16", "int8", "top-k"] = Field(
        "float32",
        description="what a client sends: its numbers, or how far they moved, in float16 or int8 (in blocks of 64 with "
        "a scale each, rounded stochastically), or the largest moves alone in float16, with those of earlier rounds "
        "that were not sent",
    )
    payload_share: float = Field(
        0.1, gt=0, le=1, description="payload: top-k; share of its numbers that a client sends in a round"
    )
    one_pass: Literal["auto", "always", "never"] = Field(
        "auto", description="train all clients of a round in one forward and backward pass"
    )

    @model_validator(mode="after")
    def _bound_is_used(self) -> FederationConfig:
        if self.norm_bound is not None and self.robust_mean != "norm-bounded":
            raise ValueError(
                f"norm_bound={self.norm_bound} is given, but robust_mean={self.robust_mean!r} does not use it; set "
                "robust_mean to 'norm-bounded'"
            )
        return self

    @property
    def steps(self) -> int:
        """Logical steps of a client that takes part in every round."""
        return self.rounds * self.local_steps

    def cohort(self, clients: int) -> int:
        """How many of ``clients`` are drawn for a round (under client-level privacy: on average)."""
        return max(1, round(self.participation * clients))


class OptimizerConfig(Section):
    """The local optimiser."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="local optimiser")
    normalize: bool = Field(
        True,
        description="learning rates that mean the same whatever clipping norm, rank, alpha and initialisation are: "
        "private steps are divided by the clipping norm, and factors move in units of their scale; false: in the "
        "paper's units (lr is then a number)",
    )
    lr: PositiveFloat | Literal["auto"] = Field(
        "auto", description="learning rate; auto: from noise, steps and method alone, never from the data"
    )
    head_lr_factor: PositiveFloat | Literal["auto"] = Field(
        "auto",
        description="a trained head's learning rate, relative to the adapters'; auto: each as its noise allows where "
        "lr is auto too, else 10 (without normalize: 1)",
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
        False,
        description="local moments outlive rounds (at one site wherever columns keep their meaning)",
    )
    dp_bias_correction: bool = Field(False, description="adamw: take the noise variance off the second moment")
    batch_size: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="logical batch: expected size under Poisson sampling, in users where users are drawn; auto: the "
        "smallest that spends a target ε well, at most what 40,000 samples in the whole run allow; 64 without a target",
    )
    token_budget: int | None = Field(
        None, ge=1, description="tokens of a physical batch (default: to suit the machine)"
    )

    @property
    def batch(self) -> int:
        """The batch as a number: 64 where it is left to a run that asks for no ε."""
        return 64 if self.batch_size == "auto" else self.batch_size
