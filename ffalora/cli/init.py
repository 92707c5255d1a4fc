"""``ffalora init``: from a person's own table to a configuration that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..data.proposal import Proposal


@click.command("init", short_help="A configuration for your own table: look at it, propose, write.")
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--text", multiple=True, metavar="COLUMN", help="Text column; twice for pairs.  [guessed]")
@click.option("--label", metavar="COLUMN", help="Label column.  [guessed]")
@click.option("--client", metavar="COLUMN", help="Column that says whose a row is.  [guessed by its name]")
@click.option("--user", metavar="COLUMN", help="Column that says which person a row is of.  [guessed by its name]")
@click.option(
    "--target-epsilon", "--epsilon", "target_epsilon", type=click.FloatRange(0, min_open=True), default=6.0,
    show_default=True, help="ε that all rounds together may spend on each client's rows.",
)  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write.  [NAME.yaml]")
def command(
    data: Path, text: tuple[str, ...], label: str | None, client: str | None, user: str | None, target_epsilon: float,
    output: Path | None,
) -> None:  # fmt: skip
    """Look at DATA (CSV, TSV, JSON, JSON lines, Parquet, or a folder of such files), and write a commented YAML file.

    Encoding, delimiter, columns, task and clients are found, conversations and prompts with answers, too; nothing
    leaves this machine and nothing is trained.

    \b
    ffalora init feedback.csv
    ffalora init chats.jsonl
    ffalora init feedback.csv --text Subject --text Message --label Verdict --client Hospital
    """
    from ..data.proposal import propose
    from ..files.atomic import write_atomically
    from ..planning.starter import starter_yaml

    target = output or Path(f"{data.resolve().stem}.yaml")
    if target.exists():
        raise click.UsageError(f"{target} is there already; remove it, or give another name with --output")
    found = propose(data, text, label, client, user)
    content = starter_yaml(found, target_epsilon)
    click.echo(found_text(found))
    write_atomically(target, content.encode())
    verb = "simulate" if found.client else "train"
    click.echo(f"\nwritten {target}: what to train on, and why. Next:\n")
    click.echo(f"  ffalora plan {target}      # other batches and steps, and the time they take (optional)")
    click.echo(f"  ffalora {verb} {target}")
    if found.task == "causal-lm":
        click.echo(f'  ffalora generate runs/{target.stem} "a prompt"')
    else:
        click.echo(f"  ffalora predict runs/{target.stem} NEW{data.suffix or '.csv'}")


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
    if found.dropped:
        lines.append(f"{found.dropped} rows lack one of them and are left out")
    return "\n".join(lines)
