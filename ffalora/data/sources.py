"""Where rows come from: embedded data, a local file or folder, or the hub; as splits by the source's own names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import assets, files
from .embedded import EmbeddedData
from .errors import DataError
from .splits import ALL

if TYPE_CHECKING:
    from datasets import Dataset


def read_embedded(data: EmbeddedData) -> dict[str, Dataset]:
    """Rows of embedded data under ``ALL``, or under the splits that the source itself makes."""
    from datasets import Dataset

    columns = data.read(assets.path(data.asset))
    given = columns.pop("split", None)
    whole = Dataset.from_dict(columns)
    if given is None:
        return {ALL: whole}
    return {
        split: whole.select([row for row, value in enumerate(given) if value == split])
        for split in dict.fromkeys(given)
    }


def read_other(spec: str) -> tuple[dict[str, Dataset], bool]:
    """Splits of a file, a folder or a hub name, and whether they came from this machine's files."""
    path = Path(spec).expanduser()
    if path.is_file():
        return {ALL: files.read_file(path)}, True
    if path.is_dir():
        splits = files.read_folder(path)
        return ({ALL: splits["train"]} if list(splits) == ["train"] else splits), True
    repository = spec.rpartition(":")[0]
    looks_local = path.suffix.lower() in files.SUFFIXES or spec.startswith((".", "/", "~"))
    if looks_local and not (repository and Path(repository).expanduser().is_dir()):
        raise DataError(f"data={spec!r}: there is no such file or folder")
    from .hub import read_hub

    return read_hub(spec), False
