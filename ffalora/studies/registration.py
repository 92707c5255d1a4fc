"""What a study will compare and how often, on the disk before the first run that decides: claims and thresholds, the
values that were chosen and those that were tried, the pilot's variance and the seeds that follow from it.

The file's SHA-256 is on the page. A study that goes on must arrive at the same file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..config import ConfigError
from ..files.atomic import write_atomically
from .claims import LEVEL, POINT
from .power import EFFECT, POWER, ClaimPower
from .results import StudyResult

REGISTRATION = "registration.yaml"
_KNOWN = "runs known before"
_RULE = (
    f"seeds: the fewest that find a difference of {EFFECT:g} with probability {POWER:g} at the first level of Holm's "
    f"procedure, and whose 95% interval is expected to reach {POINT:g} on either side"
)
_FEWEST = "seeds: the fewest of a verdict; no claim is of differences that the runs which chose values can show"


def register(result: StudyResult, needs: Sequence[ClaimPower], known: int) -> None:
    """Writes the file, or compares it with the one that is there, which stays as it is (the rule's words aside).

    Args:
        result: with the choices made and the grid's seeds decided.
        needs: of the power analysis; empty where the number of seeds was given.
        known: how many of the runs that decide were there already, since other studies share them; what a file says
            that is there stays.

    Raises:
        ConfigError: another one is there, so that verdict runs may have been seen.
    """
    content, path = _content(result, needs), _path(result)
    if not path.exists():
        content[_KNOWN] = known
        write_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    before.pop(_KNOWN, None)
    if before | {"rule": content["rule"]} != content:
        raise ConfigError(
            f"{path} registers other claims, values or seeds than this study arrives at; verdict runs may have been "
            "seen since: give another --output"
        )


def registered_seeds(folder: Path) -> list[int] | None:
    """The seeds of a study's verdict; None before it is registered."""
    path = folder / REGISTRATION
    return yaml.safe_load(path.read_text(encoding="utf-8"))["seeds"] if path.exists() else None


def digest(folder: Path) -> str | None:
    """SHA-256 of the registration in hexadecimal; None before it is registered."""
    path = folder / REGISTRATION
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def known_before(folder: Path) -> int:
    """How many of the runs that decide were there when the study was registered; 0 before it is."""
    path = folder / REGISTRATION
    return yaml.safe_load(path.read_text(encoding="utf-8")).get(_KNOWN, 0) if path.exists() else 0


def read_power(folder: Path) -> list[ClaimPower]:
    """The power analysis of a registered study; empty where there was none."""
    path = folder / REGISTRATION
    if not path.exists():
        return []
    return [ClaimPower(**each) for each in yaml.safe_load(path.read_text(encoding="utf-8"))["power"]]


def _path(result: StudyResult) -> Path:
    return result.folder / REGISTRATION


def _content(result: StudyResult, needs: Sequence[ClaimPower]) -> dict[str, Any]:
    grid = result.grid
    return {
        "study": grid.name,
        "scale": grid.scale,
        "protocol": grid.protocol,
        "claims": [
            {"says": c.says, "contrast": c.contrast, "above": c.threshold, "metric": c.metric or grid.study.metric}
            for c in grid.study.claims
        ],
        "test": f"paired t over seeds, two-sided, Holm over the claims at {LEVEL:g}",
        "seeds": list(grid.seeds),
        "rule": (_RULE if needs else _FEWEST) if grid.is_powered else "seeds: as given",
        "power": [vars(need) for need in needs],
        "chosen": {f"{m} @ {c}": dict(values) for (m, c), values in result.chosen.items()},
        "tried": {f"{m} @ {c}": values for m, c in result.chosen if (values := result.tried((m, c)))},
    }
