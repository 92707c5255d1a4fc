"""``ffalora export``: a finished adapter for whoever has PEFT and transformers alone."""

from __future__ import annotations

from pathlib import Path

import click

from .running import hide_loading_bars


@click.command("export", short_help="An adapter, or the merged model, for PEFT and transformers alone.")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="A new folder.")
@click.option("--merged", is_flag=True, help="The base model with the adapter in its weights.  [the adapter alone]")
@click.option("--base", metavar="NAME", help="The base model's name for others, such as one of the hub.  [the run's]")
@click.option("--metrics/--no-metrics", default=True, help="Put the run's metrics into the card.", show_default=True)
def command(run: Path, folder: Path, merged: bool, base: str | None, metrics: bool) -> None:
    """Write the adapter of RUN with its head, tokenizer and a model card, so that it can be used without ffalora.

    \b
    ffalora export runs/feedback --to shared/feedback
    ffalora export runs/feedback --to shared/feedback-merged --merged
    """
    from ..runs.export import export

    hide_loading_bars()
    made = export(run, folder, merged, base, metrics)
    click.echo(f"written {folder}: {'the merged model' if merged else 'the adapter'} and README.md, its card; read it")
    if made.is_base_local and not merged:
        click.echo(f"the base model is the folder {made.base}: others need it, too; name theirs with --base")
