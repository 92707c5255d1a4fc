"""The data of a run: read, split, and prepared as its model takes it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..config import Config, ConfigError
from ..data.embedded import EMBEDDED
from ..data.errors import DataError
from ..data.examples import Examples, fingerprint
from ..data.load import LoadedData, load_data
from ..data.tasks import standardised
from ..data.tokenize import prepare
from ..data.users import Owners
from ..data.validate import column_values
from ..models import LoadedModel, max_positions

logger = logging.getLogger(__name__)

_FAR = 10  # from 0, for numbers that a model learns, which starts there

#: What the data room calls its parameters, and what these are called in a configuration.
_KEYS = {
    "input_columns": "data.text",
    "label_column": "data.label",
    "client_column": "clients.column",
    "user_column": "data.user",
    "max_length": "data.max_length",
    "max_samples": "data.max_samples",
    "split_names": "data.splits",
    "drop_empty": "data.drop_empty",
}


def load_run_data(
    config: Config,
    only: str | None = None,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
) -> LoadedData:
    """The data of a run, split into train, validation and test. The cut does not depend on the run's seed.

    Args:
        config: of the run.
        only: take the source's rows of this role alone and whole: to evaluate on all of a file, or to train on it.
        class_names, class_map: of a model that exists already; see :func:`ffalora.data.load.load_data`.
    """
    data = config.data
    held_out = data.validation_fraction + data.test_fraction
    if only is None and held_out >= 1:
        raise ConfigError(f"data.validation_fraction + data.test_fraction = {held_out}: nothing is left to train on")
    fractions = (1 - held_out, data.validation_fraction, data.test_fraction)
    try:
        return load_data(
            data.name,
            task=data.task,
            input_columns=data.text,
            label_column=data.label,
            client_column=config.clients.column,
            user_column=data.user if only in (None, "train") else None,  # what is evaluated on need not be anybody's
            split_names=data.splits,
            fractions=fractions if only is None else (1, 0, 0),
            max_samples=data.max_samples,
            seed=config.seed,
            drop_empty=data.drop_empty,
            only=only,
            class_names=class_names,
            class_map=class_map,
            encoding=data.encoding,
            delimiter=data.delimiter,
        )
    except DataError as error:
        raise DataError(_in_keys(str(error))) from error


def _in_keys(message: str) -> str:
    """A message of the data room in the words of the configuration; what stands in quotes stays as it is."""
    return re.sub(rf"(?<!['\w])({'|'.join(_KEYS)})(?!['\w])", lambda found: _KEYS[found[1]], message)


def prepare_split(config: Config, data: LoadedData, split: str, loaded: LoadedModel) -> Examples:
    """A split as the model takes it: tokenised texts, or images in the size and colours that the model was made for."""
    if config.data.task != "image-classification":
        try:
            examples = prepare(data, split, loaded.tokenizer, max_length=config.data.max_length)
        except DataError as error:
            raise DataError(_in_keys(str(error))) from error
        _check_context(config, examples, split, loaded)
        return examples
    made_for = loaded.model.config
    try:
        size, patch, channels = made_for.image_size, made_for.patch_size, made_for.num_channels
    except AttributeError as error:
        raise ConfigError(
            f"model.name={config.model.name!r}: its configuration says no {str(error).split()[-1]}; use a vision "
            "transformer, whose configuration has image_size, patch_size and num_channels"
        ) from None
    return prepare(data, split, image_size=size, patch_size=patch, channels=channels)


def _check_context(config: Config, examples: Examples, split: str, loaded: LoadedModel) -> None:
    """``DataError`` where rows have more tokens than the model has positions."""
    context = max_positions(loaded.model)
    longest = int(examples.lengths.max(initial=0))
    if context is not None and context < longest:
        raise DataError(
            f"data.max_length={config.data.max_length}: {int((examples.lengths > context).sum())} rows of the {split} "
            f"split have more tokens than the {context} positions of model.name={config.model.name!r}, the longest "
            f"{longest}; set data.max_length to {context} or less, and shorten or remove conversations that are longer"
        )


def warn_of_units(config: Config, train: Examples) -> None:
    """Says so where a regression's labels are so far from what its model answers at first that it may learn nothing."""
    data = config.data
    if data.task != "regression" or (np.abs(standardised(train.labels, data.label_range)) <= _FAR).all():
        return
    logger.warning(
        "data.label_range=%s: training labels are more than %d times as far away as the ends of %s, which a model that "
        "starts in the middle hardly reaches; give the least and the greatest number that a label can be, in its own "
        "units, known without looking at the rows",
        *("null" if data.label_range is None else data.label_range, _FAR, data.label_range or "-1 … 1"),
    )


def owners_of(config: Config, data: LoadedData) -> Owners | None:
    """Whose each training row is, where users are protected."""
    if config.privacy.unit != "user" or data.user_column is None:
        return None
    return Owners.of(column_values(data.train, data.user_column))


def data_fingerprint(
    config: Config, train: Examples, samples: Sequence[int] | np.ndarray, owners: Owners | None = None
) -> str:
    """What a ledger is keyed to: the name of the data, and what the ledger's own samples hold, and whose they are."""
    whose = "" if owners is None else f" of users sha256:{owners.fingerprint(samples)}"
    return f"{config.data.name} sha256:{fingerprint(train, samples)}{whose}"


def place_of(name: str) -> str | None:
    """The absolute path of the file or folder that is the data of this name; None where it is none."""
    place = Path(name).expanduser()
    return str(place.resolve()) if name not in EMBEDDED and place.exists() else None


def is_same_data(name: str, *known: str | None) -> bool:
    """Whether a name is of the data that any of the others names: an equal one, or another way to write the place of
    the same file or folder.
    """
    given = Path(name).expanduser()
    places = [Path(other).expanduser() for other in known if other is not None]
    return name in known or any(given.exists() and place.exists() and given.samefile(place) for place in places)


def evaluation_split(config: Config, data: LoadedData) -> str:
    """The split that the reported metrics use."""
    split = config.data.evaluate_on
    if split not in data.splits:
        raise ConfigError(
            f"data.evaluate_on={split!r}: {data.name} has the splits {', '.join(data.splits)}; "
            f"set data.{split}_fraction above 0"
        )
    return split
