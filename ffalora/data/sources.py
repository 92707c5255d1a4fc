"""Where rows come from: embedded data, a local file or folder, or the hub; as splits by the source's own names."""

from __future__ import annotations

from pathlib import Path

from . import assets, files
from .embedded import EmbeddedData
from .errors import DataError
from .splits import ALL


def read_embedded(data: EmbeddedData) -> files.Splits:
    """Rows of embedded data under ``ALL``, or under the splits that the source itself makes."""
    from datasets import Dataset

    columns = data.read(assets.path(data.asset))
    given = columns.pop("split", None)
    whole = Dataset.from_dict(columns)
    if given is None:
        return files.Splits({ALL: whole})
    splits = {
        split: whole.select([row for row, value in enumerate(given) if value == split])
        for split in dict.fromkeys(given)
    }
    return files.Splits(splits)


def read_other(spec: str, encoding: str | None = None, delimiter: str | None = None) -> files.Splits:
    """Splits of a file, a folder or a hub name."""
    path = Path(spec).expanduser()
    if path.is_file():
        data, part = files.read_file(path, encoding, delimiter)
        return files.Splits({ALL: data}, {ALL: [part]})
    if path.is_dir():
        found = files.read_folder(path, encoding, delimiter)
        return found if list(found.data) != ["train"] else _of_no_split(found)
    repository = spec.rpartition(":")[0]
    looks_local = path.suffix.lower() in files.SUFFIXES or spec.startswith((".", "/", "~"))
    if looks_local and not (repository and Path(repository).expanduser().is_dir()):
        raise DataError(f"data.name={spec!r}: there is no such file or folder")
    from .hub import read_hub

    return files.Splits(read_hub(spec))


def _of_no_split(found: files.Splits) -> files.Splits:
    """Rows that their source calls training rows only because it makes no splits."""
    return files.Splits({ALL: found.data["train"]}, {ALL: found.parts.get("train", ())}, found.client)
