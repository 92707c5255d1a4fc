"""What to adapt and how: the one configuration of an adapter, in PEFT's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from .names import OTHER_NAMES
from .peft_names import own_init, to_own_names, without_neutral
from .section import SEEDS, Section

Init = Literal["kaiming", "gaussian", "orthonormal", "pissa", "olora"]
Trained = Literal["b", "a", "both", "core"]
Method = Literal["lora", "vera", "loha", "lokr", "bottleneck"]
#: The defaults of an adapter and of a run; adapters other than LoRA have inits of their own, for which both stand.
_USUAL_INITS = ("kaiming", "orthonormal")
#: A bound for what a file may ask for before its tensors are looked at; far above any use.
MAX_RANK = 65_536


class AdapterConfig(Section):
    """LoRA with a choice of which factor is trained. The defaults are FFA-LoRA: ``a`` random and frozen, ``b`` trained.

    ``b`` starts at zero, so that the adapted model starts as the base model; training ``b`` alone is FFA-LoRA (Sun et
    al., ICLR 2024), training both is LoRA (Hu et al., ICLR 2022), training ``a`` alone is the other half of an
    alternating method. PEFT's names of the keys (``r``, ``lora_alpha``, …) and of their values are taken, too, and a
    ``peft.LoraConfig`` in place of the section.
    """

    other_names: ClassVar = OTHER_NAMES["adapter"]

    method: Method = Field(
        "lora", description="lora, or another adapter whose random factors are frozen: vera, loha, lokr, bottleneck"
    )
    rank: int = Field(8, ge=1, le=MAX_RANK, description="rank R of the adapters")
    alpha: float = Field(8.0, gt=0, lt=1e30, description="numerator of the scale alpha/R")
    target_modules: str | list[str] = Field(
        "auto",
        description="names or suffixes of the linear layers to adapt, a regular expression, 'all-linear', or 'auto' "
        "(query and value projections)",
    )
    exclude_modules: str | list[str] | None = Field(None, description="names, suffixes or regular expression left out")
    layers_to_transform: list[int] | None = Field(None, description="adapt only these indices of the layer stack")
    layers_pattern: str | list[str] | None = Field(
        None,
        description="name of the layer stack that layers_to_transform counts in (default: the outermost numbered one)",
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=MAX_RANK)]] = Field(
        default_factory=dict, description="rank by suffix or regular expression"
    )
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="alpha by suffix or regular expression")
    use_rslora: bool = Field(False, description="scale alpha/sqrt(R) instead of alpha/R")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    init: Init = Field(
        "kaiming",
        description="where the factors come from: a random a (kaiming, gaussian, orthonormal) with b = 0, or both "
        "from the base weight, which gives up their product (pissa, olora)",
    )
    trained: Trained = Field(
        "b", description="trained: b (FFA-LoRA), both (LoRA), a, or an R × R core between frozen factors (Fed-SB)"
    )
    head: Literal["frozen", "trained"] = Field(
        "frozen", description="the task head: frozen (the paper's protocol) or trained"
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="seed of the random factor; every client needs the same one")

    @model_validator(mode="before")
    @classmethod
    def _from_peft(cls, values: Any) -> Any:
        if hasattr(values, "peft_type") and hasattr(values, "to_dict"):
            return to_own_names(values.to_dict())
        return without_neutral(values) if isinstance(values, Mapping) else values

    @field_validator("init", mode="before")
    @classmethod
    def _own_init(cls, value: Any) -> Any:
        return own_init(value)

    @model_validator(mode="after")
    def _others_train_their_zero_factor(self) -> AdapterConfig:
        if self.method != "lora" and (self.trained != "b" or self.dropout or self.init not in _USUAL_INITS):
            raise ValueError(
                f"method={self.method!r} trains its zero factor alone, without dropout and with its own init; got "
                f"trained={self.trained!r}, dropout={self.dropout}, init={self.init!r}: leave them at their defaults"
            )
        return self

    @property
    def largest_rank(self) -> int:
        """The most that a layer may have."""
        return max(self.rank, *self.rank_pattern.values(), 1)

    @classmethod
    def from_peft(cls, config: Any, trained: str = "b") -> AdapterConfig:
        """Our configuration of a ``peft.LoraConfig``, or of the keys and values of an ``adapter_config.json``.

        Raises:
            ValueError: names every key that cannot be honoured, its value, and why.
        """
        values = to_own_names(config if isinstance(config, Mapping) else config.to_dict())
        return cls.read({**values, "trained": trained})


class RunAdapterConfig(AdapterConfig):
    """The adapters of a run. As :class:`AdapterConfig`, with the defaults that do best under privacy."""

    init: Init = Field("orthonormal", description=AdapterConfig.model_fields["init"].description)
    head: Literal["auto", "frozen", "trained"] = Field(  # type: ignore[assignment]
        "auto",
        description="the task head: trained, or frozen (the paper's protocol); auto: trained where it is made of "
        "linear layers of its own",
    )
