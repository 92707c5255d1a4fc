"""What all sections of a configuration share: immutable values, second names, and mistakes answered in our words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from typing_extensions import Self

from .messages import ConfigError, explain_errors
from .names import one_name_each

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


#: Of a field that is a list of texts: one text stands for a list of it.
ONE_IS_A_LIST = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)


#: One above the largest seed: generators take 64 bits.
SEEDS = 2**64


class _AnswersInWords(ModelMetaclass):
    """Constructing a section raises ConfigError; what pydantic says of the sections inside it keeps their places."""

    model_fields: Mapping[str, Any]
    other_names: Mapping[str, str]

    def __call__(cls, *positional: Any, **values: Any) -> Any:
        if positional:
            raise ConfigError(
                f"{cls.__name__}({type(positional[0]).__name__}): its values are named, such as "
                f"{cls.__name__}({next(iter(cls.model_fields))}=…)"
            )
        with cls._in_words(f"{cls.__name__}: "):
            return super().__call__(**values)

    @contextmanager
    def _in_words(cls, where: str) -> Iterator[None]:
        """Turns what pydantic says of values into a ConfigError, each of whose sentences begins with ``where``."""
        try:
            yield
        except ValidationError as error:
            said = explain_errors(error.errors(), names_of(cls.model_fields, cls.other_names), whole="")
            raise ConfigError("\n".join(where + sentence for sentence in said)) from None


class Section(BaseModel, metaclass=_AnswersInWords):
    """Base of all sections: unknown keys are errors, values are immutable.

    Attributes:
        other_names: second names of keys, such as PEFT's ``r`` of ``rank``, and the keys that they stand for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    other_names: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _under_their_own_names(cls, values: Any) -> Any:
        return one_name_each(values, cls.other_names) if isinstance(values, Mapping) else values

    @classmethod
    def read(cls, values: Any, where: str = "") -> Self:
        """A checked section of keys and values; each sentence of its ConfigError begins with ``where``."""
        with cls._in_words(where):
            return super().model_validate(values)

    @classmethod
    def model_validate(cls, *arguments: Any, **options: Any) -> Self:
        """As pydantic's, with a ConfigError for what does not fit."""
        with cls._in_words(f"{cls.__name__}: "):
            return super().model_validate(*arguments, **options)

    @classmethod
    def model_validate_json(cls, *arguments: Any, **options: Any) -> Self:
        """As pydantic's, with a ConfigError for what does not fit."""
        with cls._in_words(f"{cls.__name__}: "):
            return super().model_validate_json(*arguments, **options)


def keys_of(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A section's ``model_fields`` and those of the sections inside it, by dotted key."""
    found: dict[str, Any] = {}
    for name, field in fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= keys_of(kind.model_fields, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def names_of(fields: Mapping[str, Any], other_names: Mapping[str, str]) -> list[str]:
    """Keys as :func:`keys_of` finds them, and all their second names."""
    found = [*keys_of(fields), *other_names]
    for name, field in fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += [f"{name}.{other}" for other in field.annotation.other_names]
    return found
