"""``ffalora init``: from a person's own table to a configuration that runs."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import NumberRange, json_option

if TYPE_CHECKING:
    from ..data.proposal import Proposal


@click.command("init", short_help="A configuration for your own table: look at it, propose, write.")
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--text", multiple=True, metavar="COLUMN", help="Text column; twice for pairs.  [guessed]")
@click.option("--label", metavar="COLUMN", help="Label column.  [guessed]")
@click.option("--client", metavar="COLUMN", help="Column that says whose a row is.  [guessed by its name]")
@click.option("--user", metavar="COLUMN", help="Column that says which person a row is of.  [guessed by its name]")
@click.option("--encoding", help="Of CSV files, such as cp1252.  [found in the file]")
@click.option("--delimiter", help="Between the cells of CSV files.  [found in the file]")
@click.option(
    "--target-epsilon",
    "--epsilon",
    "target_epsilon",
    type=NumberRange(0, min_open=True),
    default=6.0,
    show_default=True,
    help="ε that all rounds together may spend on each client's rows.",
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [NAME.yaml]")
@click.option("--overwrite", is_flag=True, help="Replace that file where it exists.")
@json_option
def command(
    data: Path,
    text: tuple[str, ...],
    label: str | None,
    client: str | None,
    user: str | None,
    encoding: str | None,
    delimiter: str | None,
    target_epsilon: float,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Look at DATA (CSV, TSV, JSON, JSON lines, Parquet, or a folder of such files), and write a commented YAML file.

    Encoding, delimiter, columns, task and clients are found, conversations and prompts with answers, too; nothing
    leaves this machine and nothing is trained.

    \b
    ffalora init feedback.csv
    ffalora init chats.jsonl
    ffalora init feedback.csv --text Subject --text Message --label Verdict --client Hospital
    """
    from ..config import DataConfig
    from ..data.proposal import propose
    from ..files.atomic import write_atomically
    from ..files.numbers import to_json
    from ..planning.starter import starter_yaml

    target = output or Path(f"{data.resolve().stem}.yaml")
    if target.exists() and not overwrite:
        raise click.UsageError(f"{target} exists; --overwrite replaces it, --output writes another file")
    form = DataConfig(encoding=encoding, delimiter=delimiter)
    found = propose(data, text, label, client, user, form.encoding, form.delimiter)
    content = starter_yaml(found, target_epsilon)
    write_atomically(target, content.encode())
    written, run = shlex.quote(str(target)), shlex.quote(f"runs/{target.stem}")
    train = f"ffalora {'simulate' if found.client else 'train'} {written}"
    use = f'generate {run} "a prompt"' if found.label is None else f"predict {run} NEW"
    use = f"ffalora {use}{'' if found.label is None else data.suffix or '.csv'}"
    if as_json:
        click.echo(to_json({"written": str(target), "next": [train, use], **asdict(found)}, default=str))
        return
    click.echo(found_text(found))
    click.echo(f"\nwritten {target}: what to train on, and why. Next:\n")
    click.echo(f"  ffalora plan {written}      # other batches and steps, and the time they take (optional)")
    click.echo(f"  {train}\n  {use}")


def found_text(found: Proposal) -> str:
    """What was found, for a terminal: files, columns, and what each is used for."""
    lines = [f"{p.file.name}: {p.rows} rows{f', {p.form}' if p.form else ''}" for p in found.parts[:5]]
    kinds = ("text",) * 2 if found.label else ("conversation",) if len(found.text) == 1 else ("prompt", "answer")
    used: dict[str | None, str] = dict(zip(found.text, kinds, strict=False))
    used |= {found.label: "the label", found.client: "the clients", found.user: "the users"}
    width = max(len(column.name) for column in found.columns)
    lines += [
        f"  {column.name:<{width}}  {used.get(column.name, '-'):<12}  {column}"
        + (f"; empty in {column.empty} rows" if column.empty else "")
        for column in found.columns
    ]
    if found.client and len(found.sizes) > 1:
        lines.append(f"{len(found.sizes)} clients of {found.rows_each} rows")
    if found.dropped:
        lines.append(f"{found.dropped} rows lack one of them and are left out")
    if found.unnamed:
        lines += [
            "",
            f"{found.unnamed[0]!r} is the name of a column and one of its values: is the line of names missing?",
        ]
    if found.rivals:
        client = "" if found.client else f" --client {shlex.quote(str(found.label))}"
        lines += [
            "",
            f"No column is called a label: {found.label} is a guess, and {' or '.join(found.rivals)} could be it as "
            f"well. To change it: --label {shlex.quote(found.rivals[0])}{client} --overwrite",
        ]
    if found.apart:
        lines += [
            "",
            f"{found.apart!r} says whose a row is, but somebody has rows at several clients, each of which would count "
            f"them by itself: rows are protected, and not people. To protect people, give each one client in "
            f"{found.client!r}, and begin again",
        ]
    if found.groups:
        lines += [
            "",
            f"No column is called that of clients; where {' or '.join(found.groups)} says whose a row is: "
            f"--client {shlex.quote(found.groups[0])} --overwrite",
        ]
    return "\n".join(lines)
