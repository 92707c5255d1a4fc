"""``ffalora generate``: answers of a language model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .options import ConfigCommand
from .output import NumberRange
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
@click.option("--chat", "talks", is_flag=True, help="Talk with the model, a line each; an empty one ends it.")
@click.option(
    "--form",
    type=click.Choice(["prompts", "conversations", "texts"]),
    help="How a prompt is put: as in training on prompts and answers, as what a user says, or to be continued as it "
    "is  [default: as the run was trained]",
)
@click.option("--system", help="What the system says first, in conversations.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens of an answer, at most."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts at a time.")
@click.option(
    "--temperature", type=NumberRange(min=0), default=0.0, show_default=True, help="0 takes the likeliest tokens."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws at a temperature above 0.")
@click.option(
    "--merge", is_flag=True, help="Add the adapter to the base weights first: faster, rounded to their format."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    folder: Path,
    prompts: tuple[str, ...],
    path: Path | None,
    talks: bool,
    as_json: bool,
    overrides: dict[str, Any],
    **options: Any,
) -> None:
    """Answer each of PROMPTS (or each line of --file, or of the standard input) with the model of FOLDER, a run's
    folder or its `adapter`.

    \b
    ffalora generate runs/chats "How do I reset the pump?"
    ffalora generate runs/chats --chat --system "Answer in one sentence."
    """
    from ..runs.generate import generate, read_prompts

    if bool(prompts) + (path is not None) + talks > 1:
        raise click.UsageError("give prompts, --file or --chat, one of them")
    hide_loading_bars()
    if talks:
        _talk(folder, overrides, as_json, options)
        return
    asked: list[Any] = list(prompts) if path is None else read_prompts(path)
    if not asked and path is None:
        asked = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    answers = generate(folder, asked, overrides, **options)
    for prompt, answer in zip(asked, answers, strict=True):
        if as_json:
            click.echo(json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False))
        elif len(asked) == 1:
            click.echo(answer)
        else:
            said = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            click.echo(f"> {said}\n{answer}\n")


def _talk(folder: Path, overrides: dict[str, Any], as_json: bool, options: dict[str, Any]) -> None:
    """Answers the standard input line by line, as one conversation."""
    from ..data.errors import DataError
    from ..runs.generate import chat

    if options.pop("form") not in (None, "conversations"):
        raise click.UsageError("--chat is a conversation; leave --form out")
    reply = chat(folder, overrides, **options)
    asks = sys.stdin.isatty() and not as_json
    while text := click.prompt(">", prompt_suffix=" ", default="", show_default=False) if asks else _line():
        try:
            answer = reply(text)
        except DataError as error:  # what was said before stays
            click.echo(f"{error}", err=True)
            continue
        click.echo(json.dumps({"prompt": text, "answer": answer}, ensure_ascii=False) if as_json else answer)


def _line() -> str:
    return sys.stdin.readline().strip()
