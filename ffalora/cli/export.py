"""``ffalora export``: a finished adapter for whoever has PEFT and transformers alone."""

from __future__ import annotations

from pathlib import Path

import click

from .output import json_option
from .running import hide_loading_bars


@click.command("export", short_help="An adapter, or the merged model, for PEFT and transformers alone.")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", "target", required=True, metavar="FOLDER|hub:OWNER/NAME", help="A new folder, or the hub.")
@click.option("--merged", is_flag=True, help="The base model with the adapter in its weights.  [the adapter alone]")
@click.option("--base", metavar="NAME", help="The base model's name for others, such as one of the hub.  [the run's]")
@click.option("--metrics/--no-metrics", default=True, help="Put the run's metrics into the card.", show_default=True)
@click.option("--onnx", is_flag=True, help="Also as model.onnx, for runtimes without torch; with --merged.")
@click.option("--public", is_flag=True, help="On the hub: let everybody read it.  [you alone]")
@json_option
def command(
    run: Path,
    target: str,
    merged: bool,
    base: str | None,
    metrics: bool,
    onnx: bool,
    public: bool,
    as_json: bool,
) -> None:
    """Write the adapter of RUN with its head, tokenizer and a model card, so that it can be used without ffalora.

    \b
    ffalora export runs/feedback --to shared/feedback
    ffalora export runs/feedback --to shared/feedback-merged --merged
    ffalora export runs/feedback --to shared/feedback-onnx --merged --onnx
    ffalora export runs/feedback --to hub:OWNER/NAME
    """
    from ..files.numbers import to_json
    from ..runs.export import export
    from ..runs.hub import PREFIX, push_to_hub

    hide_loading_bars()
    kind = "the merged model" if merged else "the adapter"
    if target.startswith(PREFIX):
        address = push_to_hub(run, target.removeprefix(PREFIX), merged, base, metrics, public, onnx)
        said = f"pushed {kind} with its card to {address}{'' if public else ', for you alone'}"
        click.echo(to_json({"address": address, "public": public, "merged": merged}) if as_json else said)
        return
    if public:
        raise click.UsageError(f"--public is for the hub; --to {target} is a folder")
    made = export(run, target, merged, base, metrics, onnx=onnx)
    if as_json:
        click.echo(
            to_json({"folder": target, "merged": merged, "base": made.base, "base_is_local": made.is_base_local})
        )
        return
    click.echo(f"written {target}: {kind} and README.md, its card; read it")
    if made.is_base_local and not merged:
        click.echo(f"the base model is the folder {made.base}: others need it, too; name theirs with --base")
