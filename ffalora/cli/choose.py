"""``ffalora choose``: hyper-parameters chosen on private data, for little more than the price of one run."""

from __future__ import annotations

import math
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

from ..config import ConfigError
from .errors import Interrupted
from .options import ConfigCommand
from .running import RunOptions, hide_loading_bars, open_run, run_options, show


class _Tried(click.ParamType):
    """``KEY=VALUE,VALUE``: a key of the configuration, and values in YAML."""

    name = "KEY=A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[Any]]:
        key, equals, values = str(value).partition("=")
        try:
            found = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError:
            found = []
        if not (key and equals and found):
            self.fail(f"{value!r}: write KEY=A,B, such as optimizer.lr=0.5,1,2", param, ctx)
        return key, found


@click.command("choose", cls=ConfigCommand, short_help="Choose hyper-parameters privately: only the best run is shown.")
@click.argument("config", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--try", "tried", type=_Tried(), multiple=True, help="Values of a key to choose from; for several keys, every mix."
)
@click.option("--trials", type=float, help="How many trials there are on average, above 1.  [10]")
@click.option("--metric", help="Of the validation split, by which trials are compared.  [accuracy, or the loss]")
@click.option("--one-site", is_flag=True, help="Train at one site, as `ffalora train` does, not in federated rounds.")
@run_options
def command(
    config: Path | None,
    tried: tuple[tuple[str, list[Any]], ...],
    trials: float | None,
    metric: str | None,
    one_site: bool,
    options: RunOptions,
    overrides: dict[str, Any],
) -> None:
    """Choose among values of keys (and among the methods) of CONFIG on private data.

    Trials with values drawn at random are run until chance ends them, and all but the best are deleted. The ε of the
    configuration is that of the whole choice; a trial gets a half or a third of it, whatever their number. Trials are
    compared on the validation split, whose rows ε does not cover. Noise is secure, unless --privacy.noise is seeded.

    How many trials there were, and how long it took, must be as secret as the noise: do not publish it.

    \b
    ffalora choose my.yaml --try optimizer.lr=0.5,1,2,4 --privacy.target_epsilon 6
    ffalora choose my.yaml --one-site --try adapter.rank=4,8,16 --try privacy.max_grad_norm=0.5,1 --trials 20
    """
    from ..federated.one_site import alone, train
    from ..federated.simulate import simulate
    from ..planning.choice import BEST, choose, prepare

    values = dict(tried)
    twice = [key for key, _ in tried if [other for other, _ in tried].count(key) > 1]
    if twice:
        raise click.UsageError(f"--try {twice[0]}=… is given twice; give its values together, as --try {twice[0]}=A,B")
    hide_loading_bars()
    prepared = partial(_prepared, alone if one_site else None, values, trials, options.resume, prepare)
    run, folder, _ = open_run("choose", config, overrides, options, prepared)
    if options.progress:
        click.echo("trials run without a bar: how many there are, and how far, is as secret as the noise", err=True)
    try:
        choice = choose(run, values, folder, train if one_site else simulate, metric, options.resume)
    except KeyboardInterrupt:
        again = shlex.join(
            [*_as_tried(values), *(["--one-site"] if one_site else []), "--resume", "--output", str(folder)]
        )
        again = f"ffalora choose {again}"
        raise Interrupted(f"interrupted; what it has spent is charged. To go on:\n  {again}") from None
    show([folder / BEST], folder, options.as_json)
    if not options.as_json:
        chosen = ", ".join(f"{key} = {value}" for key, value in choice.values.items())
        click.echo(f"chosen: {chosen} (validation {choice.metric} {choice.score:.4g}); the run is {folder / BEST}")
        click.echo(f"of rows that chose nothing: ffalora evaluate {folder / BEST} --data.evaluate_on test")


def _as_tried(values: dict[str, list[Any]]) -> list[str]:
    """The flags that are read as these values."""
    written = {key: yaml.safe_dump(each, default_flow_style=True, width=math.inf) for key, each in values.items()}
    return [word for key, text in written.items() for word in ("--try", f"{key}={text.strip()[1:-1]}")]


def _prepared(
    adapt: Any, tried: dict[str, list[Any]], trials: float | None, resume: bool, prepare: Any, config: Any
) -> Any:
    if (written := config.privacy.trials) > 1:
        if not resume:
            raise ConfigError(f"privacy.trials={written:g} is what --trials sets: leave it out, and give --trials")
        return prepare(config, tried, written if trials is None else trials)
    return prepare(config if adapt is None else adapt(config), tried, 10.0 if trials is None else trials)
