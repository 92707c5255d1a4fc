"""``ffalora epsilon``: what a run spends, before it is run, and what runs have spent on a data set."""

from __future__ import annotations

import difflib
from typing import Any

import click

from ..files.numbers import to_json
from ..privacy.accountants import SAMPLINGS
from ..privacy.data_ledger import DataLedger
from ..privacy.ledger_places import ledger_folder
from ..privacy.ledger_table import format_ledger, total_spent
from ..privacy.protocols import PROTOCOLS, EpsilonRow, epsilon_table, format_table, price_of_choice
from .output import NumberRange, given_names, json_option


@click.command("epsilon", short_help="ε from σ, or σ from ε; who spent what.")
@click.option("--dataset-size", type=click.IntRange(min=1), help="Samples of the client.")
@click.option("--batch-size", type=float, help="Expected logical batch.")
@click.option("--steps", type=click.IntRange(min=1), help="Logical steps of all rounds together.")
@click.option("--delta", "--target-delta", "delta", type=float, default=1e-5, show_default=True, help="δ.")
@click.option("--noise-multiplier", type=float, help="σ: answers with ε.")
@click.option(
    "--target-epsilon", "--epsilon", "target_epsilon", type=float, help="ε: answers with the σ that spends it."
)
@click.option(
    "--sampling", type=click.Choice(SAMPLINGS), default="poisson", show_default=True, help="How batches are drawn."
)
@click.option(
    "--trials",
    type=NumberRange(min=1),
    metavar="MEAN",
    help="Also: ε of choosing among a random number of such runs of which only the best is shown (ffalora choose), and "
    "of a sweep.",
)
@click.option(
    "--protocol", type=click.Choice([*PROTOCOLS, "all"]), help="A published protocol instead of size, batch, steps."
)
@click.option(
    "--ledger", metavar="NAME", help="A data set's ledger: who spent what. With --target-epsilon: its budget."
)
@json_option
def command(
    dataset_size: int | None,
    batch_size: float | None,
    steps: int | None,
    delta: float,
    noise_multiplier: float | None,
    target_epsilon: float | None,
    sampling: str,
    trials: float | None,
    protocol: str | None,
    ledger: str | None,
    as_json: bool,
) -> None:
    """How much privacy DP-SGD spends on one client's data: ε from σ, or σ from ε, by all three accountants.

    \b
    ffalora epsilon --dataset-size 2700 --batch-size 64 --steps 75 --target-epsilon 6
    ffalora epsilon --protocol all --target-epsilon 6
    ffalora epsilon --protocol fedsvd --target-epsilon 6
    ffalora epsilon --dataset-size 2700 --batch-size 64 --steps 75 --noise-multiplier 2 --trials 10
    ffalora epsilon --ledger patients
    ffalora epsilon --ledger patients --target-epsilon 8 --delta 1e-6
    """
    if ledger is not None:
        given = given_names()
        if given - {"ledger", "target_epsilon", "delta", "as_json"} or (target_epsilon is None and "delta" in given):
            raise click.UsageError("--ledger goes with --target-epsilon, which sets its budget, and --delta only")
        book = _ledger(ledger, makes=target_epsilon is not None)
        if target_epsilon is not None:
            book.set_budget(target_epsilon, delta)
        click.echo(_ledger_json(book) if as_json else format_ledger(book))
        return
    if (noise_multiplier is None) == (target_epsilon is None):
        raise click.UsageError(
            "give either --noise-multiplier (σ, answers with ε) or --target-epsilon (ε, answers with σ)"
        )

    def table(size: int, batch: float, count: int, at_delta: float, calibrated: int | None = None) -> list[EpsilonRow]:
        return epsilon_table(size, batch, count, at_delta, noise_multiplier, target_epsilon, sampling, calibrated)

    def show(rows: list[EpsilonRow]) -> str:
        return format_table(rows) + ("" if trials is None else f"\n{price_of_choice(rows[0], trials)}")

    def facts(rows: list[EpsilonRow]) -> Any:
        choice = {} if trials is None else {"choice": price_of_choice(rows[0], trials)._asdict()}
        return {"runs": [vars(row) for row in rows]} | choice

    if protocol is not None:
        if dataset_size or batch_size or steps:
            raise click.UsageError("--protocol takes the place of --dataset-size, --batch-size and --steps")
        wanted = {name: PROTOCOLS[name] for name in (PROTOCOLS if protocol == "all" else [protocol])}
        found = {
            name: table(p.dataset_size, p.batch_size, p.steps, p.delta, p.calibrated_steps)
            for name, p in wanted.items()
        }
        if as_json:
            click.echo(to_json({name: facts(rows) for name, rows in found.items()}))
            return
        for name, known in wanted.items():
            click.echo(f"{name}: {known.describe()}")
            click.echo(show(found[name]) + "\n")
        return
    if dataset_size is None or batch_size is None or steps is None:
        raise click.UsageError("give --dataset-size, --batch-size and --steps, or a --protocol")
    rows = table(dataset_size, batch_size, steps, delta)
    click.echo(to_json(facts(rows)) if as_json else show(rows))


def _ledger(name: str, makes: bool) -> DataLedger:
    """The ledger of that name. It must exist, unless a budget makes it: then it is said that it is new.

    Raises:
        UsageError: there is none; names those that are called much the same.
    """
    folder = ledger_folder(name, name)
    if not folder.is_dir():
        others = sorted(one.name for one in folder.parent.glob("*/"))
        if not makes:
            near = difflib.get_close_matches(name, others, n=3) or others[:6]
            there = f"there are {', '.join(near)}" if near else "nothing was charged there yet"
            raise click.UsageError(f"--ledger {name}: no such ledger in {folder.parent}; {there}")
        click.echo(f"new ledger {folder}", err=True)
    return DataLedger(folder)


def _ledger_json(book: DataLedger) -> str:
    spent = total_spent(book)
    return to_json(
        {
            "ledger": book.name,
            "folder": str(book.folder),
            "budget": None if book.budget is None else {"epsilon": book.budget[0], "delta": book.budget[1]},
            "spent": None if spent is None else {"epsilon": spent[0], "delta": spent[1]},
            "entries": [vars(entry) | {"steps": entry.steps._asdict()} for entry in book.entries],
        }
    )
