"""What simulate, train and demo share: where a run is written, every method and seed in turn, then report and table."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import Config, ConfigError, load_config, to_yaml
from ..config.values import differences
from ..files.atomic import write_atomically
from ..files.numbers import to_json
from ..runs.folder import run_places
from .errors import Interrupted

if TYPE_CHECKING:
    from ..training.workers import Workers

CONFIG = "config.yaml"
Train = Callable[[Config, Path, bool, bool], Any]
Adapt = Callable[[Config], Config]


@dataclass(frozen=True)
class RunOptions:
    """Where a run goes and how: the flags that are not configuration."""

    output: Path | None
    resume: bool
    progress: bool
    as_json: bool = False


def run_options(function: Callable) -> Callable:
    """Adds ``--output``, ``--resume``, ``--no-progress`` and ``--json``, and passes them to ``function`` as
    ``options``; and ``--ledger``, a short form of ``--privacy.ledger``.
    """

    @click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder of the run.  [runs/NAME]")
    @click.option("--resume", is_flag=True, help="Continue the run in --output after its last completed round.")
    @click.option("--progress/--no-progress", default=None, help="Show a bar with the time left.  [on a terminal]")
    @click.option("--json", "as_json", is_flag=True, help="Print what came of it as one JSON object, and no bar.")
    @click.option(
        "--ledger", metavar="NAME", help="Ledger of the data set: a name in FFALORA_LEDGERS, or a folder.  [the data's]"
    )
    @wraps(function)
    def wrapped(
        output: Path | None, resume: bool, progress: bool | None, as_json: bool, ledger: str | None, **arguments: Any
    ) -> Any:
        if ledger is not None:
            arguments["overrides"] = {**arguments.get("overrides", {}), "privacy.ledger": ledger}
        wanted = sys.stderr.isatty() if progress is None else progress  # no bar is drawn over and over into a log
        bar = wanted and not as_json and not os.environ.get("TQDM_DISABLE")
        return function(options=RunOptions(output, resume, bar, as_json), **arguments)

    return wrapped


def _as_it_is(config: Config) -> Config:
    return config


def hide_loading_bars() -> None:
    """Keeps the bars of transformers (loading weights) and datasets (indexing rows) out of the output; the bar of the
    rounds stays.
    """
    from transformers.utils import logging

    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # read when datasets is imported

    logging.disable_progress_bar()


def run(
    verb: str, path: Path | None, overrides: dict[str, Any], options: RunOptions, train: Train, adapt: Adapt = _as_it_is
) -> None:
    """Trains every method of the configuration with every seed, then writes the report and prints the table. The
    processes that torchrun started share each run; the first of them writes and prints.
    """
    from ..training.workers import LeadStopped, joined

    hide_loading_bars()
    with joined() as workers:
        try:
            config, folder, is_new = workers.from_lead(partial(open_run, verb, path, overrides, options, adapt))
            _train_all(verb, config, folder, is_new, options, train, workers)
        except LeadStopped as stopped:  # the first process says why, and ends with what tells torchrun
            raise click.exceptions.Exit(0) from stopped


def _train_all(
    verb: str, config: Config, folder: Path, is_new: bool, options: RunOptions, train: Train, workers: Workers
) -> None:
    try:
        for place, one in run_places(config, folder).items():
            train(one, place, options.resume, options.progress)
        if workers.leads:
            show([folder], folder, options.as_json)
    except KeyboardInterrupt:
        if not workers.leads:
            raise click.exceptions.Exit(Interrupted.exit_code) from None
        again = f"ffalora {verb} --resume --output {shlex.quote(str(folder))}"
        raise Interrupted(f"interrupted; every completed round is in {folder}. To go on:\n  {again}") from None
    except Exception:
        if is_new and workers.leads:
            _remove_if_nothing_was_run(folder)
        raise


def open_run(
    verb: str, path: Path | None, overrides: dict[str, Any], options: RunOptions, adapt: Adapt
) -> tuple[Config, Path, bool]:
    """The configuration of a run, its folder with that configuration in it, and whether the folder is new."""
    if options.resume:
        config = _config_to_resume(path, overrides, options.output, adapt)
    else:
        config = adapt(load_config(path, overrides))
    folder = options.output or _free_folder(path.stem if path else verb)
    if (folder / CONFIG).exists() and not options.resume:
        raise ConfigError(f"--output {folder} holds a run already; give --resume to continue it, or another folder")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, to_yaml(config).encode())
    return config, folder, is_new


def show(folders: Sequence[Path], output: Path, as_json: bool = False) -> None:
    """Writes the report of run folders and prints their table and whether each run was worth it, or one JSON object:
    ``report``, ``verdicts``, and of each of ``runs`` its ``label``, ``metrics``, ``epsilon``, ``rounds``, ``seed``,
    and what of it is ``unreadable``.
    """
    from ..report import read_runs, table_text, verdicts, what_was_learned, write_report

    runs = read_runs(folders)
    page, said = write_report(runs, output), [*verdicts(runs), *what_was_learned(runs)]
    if as_json:
        found = [
            {"label": run.label, "metrics": run.metrics, "epsilon": run.epsilon, "rounds": run.completed}
            | {"seed": run.config["seed"], "unreadable": run.unreadable}
            for run in runs
        ]
        click.echo(to_json({"report": str(page), "runs": found, "verdicts": said}))
        return
    click.echo(table_text(runs))
    click.echo(f"\nreport {page}")
    for sentence in said:
        click.echo(sentence)


def _config_to_resume(path: Path | None, overrides: dict[str, Any], output: Path | None, adapt: Adapt) -> Config:
    """The configuration in the folder; that of the command line, where there is one, must not differ from it."""
    if output is None:
        raise ConfigError("--resume needs --output DIR, the folder of the run that is to be continued")
    if not (output / CONFIG).exists():
        raise ConfigError(f"--resume: {output} holds no run (no {CONFIG}); leave --resume out to start one")
    stored = load_config(output / CONFIG)
    asked = adapt(load_config(path or output / CONFIG, overrides)).model_dump()
    if asked["optimizer"]["batch_size"] == "auto":  # what was decided then
        asked["optimizer"]["batch_size"] = stored.optimizer.batch_size
    changed = differences(stored.model_dump(), asked)
    if changed:
        raise ConfigError(
            f"--resume: {output} belongs to another configuration: {'; '.join(changed)}. Leave these out to continue "
            "the run, or start another one in another folder"
        )
    return stored


def _free_folder(name: str) -> Path:
    """``runs/NAME``, or the first of ``runs/NAME-2``, ``runs/NAME-3``, … that does not exist."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _remove_if_nothing_was_run(folder: Path) -> None:
    """Takes away a folder in which there is nothing but the configuration."""
    if [file for file in folder.rglob("*") if file.is_file()] == [folder / CONFIG]:
        (folder / CONFIG).unlink()
        for empty in sorted(folder.rglob("*"), reverse=True):
            empty.rmdir()
        folder.rmdir()
