"""What simulate, train and demo share: where a run is written, every method and seed in turn, then report and table."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..config import Config, ConfigError, load_config, merge, to_yaml
from .errors import Interrupted

CONFIG = "config.yaml"
Train = Callable[[Config, Path, bool, bool], Any]


def run(
    verb: str,
    path: Path | None,
    overrides: dict[str, Any],
    output: Path | None,
    resume: bool,
    seeds: int,
    train: Train,
    progress: bool,
) -> None:
    """Runs every method of the configuration with every seed, then writes the report and prints the table."""
    config = _resumed(path, overrides, output) if resume else load_config(path, overrides)
    folder = output or _free_folder(path.stem if path else verb)
    if not resume and (folder / CONFIG).exists():
        raise ConfigError(f"--output {folder} holds a run already; give --resume to continue it, or another folder")
    runs = _runs(config, folder, seeds)
    is_made = not folder.exists()
    try:
        if folder not in runs:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG).write_text(to_yaml(config))
        for place, one in runs.items():
            train(one, place, resume and (place / CONFIG).exists(), progress)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; all completed rounds are in {folder}. Go on with\n"
            f"  ffalora {verb} --resume --output {shlex.quote(str(folder))}"
            + (f" --seeds {seeds}" if seeds > 1 else "")
        ) from None
    except Exception:
        if is_made:
            _remove_if_nothing_was_run(folder)
        raise
    show(folder)


def show(folder: Path) -> None:
    """Writes the report of a finished run folder and prints its table."""
    from ..report import read_runs, table_text, write_report

    page = write_report(read_runs([folder]), folder)
    click.echo(table_text(read_runs([folder])))
    click.echo(f"\nreport {page}")


def _runs(config: Config, folder: Path, seeds: int) -> dict[Path, Config]:
    """Every run by its folder: the folder itself for a single one, else a subfolder for each method and seed."""
    methods = config.runs()
    places: dict[Path, Config] = {}
    for seed in range(config.seed, config.seed + seeds):
        for name, one in methods.items():
            place = folder / name if len(methods) > 1 or config.methods else folder
            place = place / f"seed-{seed}" if seeds > 1 else place
            places[place] = one.model_copy(update={"seed": seed})
    return places


def _resumed(path: Path | None, overrides: dict[str, Any], output: Path | None) -> Config:
    if output is None:
        raise ConfigError("--resume needs --output DIR, the folder of the run that is to be continued")
    if not (output / CONFIG).exists():
        raise ConfigError(
            f"--resume: {output} holds no run (there is no {CONFIG} in it); leave --resume out to start one"
        )
    stored = load_config(output / CONFIG)
    wanted = load_config(path or output / CONFIG, overrides)
    changed = _differences(stored.model_dump(), wanted.model_dump())
    if changed:
        raise ConfigError(
            f"--resume: the configuration differs from {output / CONFIG} in {', '.join(changed)}; "
            "leave these out to continue the run, or start another one in another folder"
        )
    return stored


def _differences(stored: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in stored.keys() | wanted.keys():
        old, fresh = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(fresh, dict):
            found += _differences(merge({}, old), merge({}, fresh), f"{prefix}{key}.")
        elif old != fresh:
            found.append(f"{prefix}{key} ({old!r} → {fresh!r})")
    return sorted(found)


def _free_folder(name: str) -> Path:
    """``runs/NAME``, or the first of ``runs/NAME-2``, ``runs/NAME-3``, … that does not exist."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _remove_if_nothing_was_run(folder: Path) -> None:
    """Takes away a folder in which there is nothing but the configuration."""
    if folder.is_dir() and all(file == folder / CONFIG for file in folder.rglob("*") if not file.is_dir()):
        (folder / CONFIG).unlink(missing_ok=True)
        for empty in sorted((p for p in folder.rglob("*")), reverse=True):
            empty.rmdir()
        folder.rmdir()
