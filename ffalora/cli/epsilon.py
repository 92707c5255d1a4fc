"""``ffalora epsilon``: what a run spends, before it is run, and what runs have spent on a data set."""

from __future__ import annotations

import click

from ..privacy.accountants import SAMPLINGS
from ..privacy.data_ledger import find_data_ledger
from ..privacy.ledger_table import format_ledger
from ..privacy.protocols import PROTOCOLS, epsilon_table, format_table, price_of_choice


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
    type=float,
    metavar="MEAN",
    help="Also: ε of choosing among a random number of such runs of which only the best is shown, and of a sweep.",
)
@click.option(
    "--trials-shape",
    type=float,
    default=1.0,
    show_default=True,
    help="How that number is drawn: 0 logarithmic, 1 geometric, inf Poisson, others negative binomial.",
)
@click.option(
    "--protocol", type=click.Choice([*PROTOCOLS, "all"]), help="A published protocol instead of size, batch, steps."
)
@click.option(
    "--ledger", metavar="NAME", help="A data set's ledger: who spent what. With --target-epsilon: its budget."
)
def command(
    dataset_size: int | None,
    batch_size: float | None,
    steps: int | None,
    delta: float,
    noise_multiplier: float | None,
    target_epsilon: float | None,
    sampling: str,
    trials: float | None,
    trials_shape: float,
    protocol: str | None,
    ledger: str | None,
) -> None:
    """How much privacy DP-SGD spends on one client's data: ε from σ, or σ from ε, by all three accountants.

    \b
    ffalora epsilon --dataset-size 2700 --batch-size 64 --steps 75 --target-epsilon 6
    ffalora epsilon --protocol all --target-epsilon 6
    ffalora epsilon --dataset-size 2700 --batch-size 64 --steps 75 --noise-multiplier 2 --trials 10
    ffalora epsilon --ledger patients
    ffalora epsilon --ledger patients --target-epsilon 8 --delta 1e-6
    """
    if ledger is not None:
        if dataset_size or batch_size or steps or noise_multiplier is not None or protocol:
            raise click.UsageError("--ledger goes with --target-epsilon and --delta only, which set its budget")
        book = find_data_ledger(ledger, ledger)
        if target_epsilon is not None:
            book.set_budget(target_epsilon, delta)
        click.echo(format_ledger(book))
        return
    if (noise_multiplier is None) == (target_epsilon is None):
        raise click.UsageError(
            "give either --noise-multiplier (σ, answers with ε) or --target-epsilon (ε, answers with σ)"
        )

    def table(size: int, batch: float, count: int, at_delta: float) -> str:
        rows = epsilon_table(size, batch, count, at_delta, noise_multiplier, target_epsilon, sampling)
        return format_table(rows) + ("" if trials is None else "\n" + price_of_choice(rows[0], trials, trials_shape))

    if protocol is not None:
        if dataset_size or batch_size or steps:
            raise click.UsageError("--protocol takes the place of --dataset-size, --batch-size and --steps")
        for name in PROTOCOLS if protocol == "all" else [protocol]:
            known = PROTOCOLS[name]
            click.echo(f"{name}: {known.dataset_size} samples a client, batch {known.batch_size} ({known.source})")
            click.echo(table(known.dataset_size, known.batch_size, known.steps, known.delta) + "\n")
        return
    if dataset_size is None or batch_size is None or steps is None:
        raise click.UsageError("give --dataset-size, --batch-size and --steps, or a --protocol")
    click.echo(table(dataset_size, batch_size, steps, delta))
