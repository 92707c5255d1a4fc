"""``ffalora generate``: answers of a language model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand
from .running import hide_loading_bars


@click.command("generate", cls=ConfigCommand, sections=("device", "model"), short_help="Answers of a language model.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("prompts", nargs=-1)
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Prompts, a line each; of a .jsonl file what each object has as prompt or messages.",
)
@click.option(
    "--form",
    type=click.Choice(["prompts", "conversations", "texts"]),
    help="How a prompt is put: as in training on prompts and answers, as what a user says, or to be continued as it "
    "is  [default: as the run was trained]",
)
@click.option("--system", help="What the system says first, in conversations.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="Tokens of an answer, at most.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Prompts at a time.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest tokens.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws at a temperature above 0.")
@click.option(
    "--merge", is_flag=True, help="Add the adapter to the base weights first: faster, rounded to their format."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    folder: Path, prompts: tuple[str, ...], path: Path | None, as_json: bool, overrides: dict[str, Any], **options: Any
) -> None:
    """Answer each of PROMPTS (or each line of --file, or of the standard input) with the model of FOLDER, a run's
    folder or its `adapter`.
    """
    from ..runs.generate import generate, read_prompts

    if prompts and path is not None:
        raise click.UsageError("give prompts or --file, not both")
    asked: list[Any] = list(prompts) if path is None else read_prompts(path)
    if not asked and path is None:
        asked = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    hide_loading_bars()
    answers = generate(folder, asked, overrides, **options)
    for prompt, answer in zip(asked, answers, strict=True):
        if as_json:
            click.echo(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False))
        elif len(asked) == 1:
            click.echo(answer)
        else:
            said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            click.echo(f"> {said}\n{answer}\n")
