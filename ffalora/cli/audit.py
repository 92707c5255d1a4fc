"""``ffalora audit``: attacks the mechanism with canaries and prints what they disprove beside what is claimed."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("audit", short_help="Attack the mechanism with canaries: lower bounds of ε beside the claim.")
@click.option(
    "--target-epsilon", type=float, multiple=True, default=(1.0, 3.0, 8.0), show_default=True,
    help="Claimed ε; the noise is calibrated for it. May be given several times.",
)  # fmt: skip
@click.option("--delta", "--target-delta", "delta", type=float, default=1e-7, show_default=True, help="δ.")
@click.option("--steps", type=click.IntRange(min=1), default=1, show_default=True, help="Logical steps of the run.")
@click.option(
    "--sample-rate", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
    help="Probability with which each sample is drawn in a step; 1 gives the strongest audit.",
)  # fmt: skip
@click.option(
    "--method", type=click.Choice(["one-run", "many-runs", "both"]), default="both", show_default=True,
    help="Many canaries in one run, one canary in many runs of a small transformer, or both.",
)  # fmt: skip
@click.option("--clients", type=click.IntRange(min=1), default=1000, show_default=True, help="Clients of the one run.")
@click.option("--canaries", type=click.IntRange(min=4), default=400, show_default=True, help="Canaries of each client.")
@click.option("--runs", type=click.IntRange(min=2), default=4000, show_default=True, help="Runs of many-runs.")
@click.option("--noise", type=click.Choice(["seeded", "secure"]), default="seeded", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of coins and seeded noise.")
@click.option("--confidence", type=click.FloatRange(0.5, 1, max_open=True), default=0.95, show_default=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for audit.csv and the plot.")
def command(
    target_epsilon: tuple[float, ...], delta: float, steps: int, sample_rate: float, method: str, clients: int,
    canaries: int, runs: int, noise: str, seed: int, confidence: float, output: Path | None,
) -> None:  # fmt: skip
    """Audit clipping, noise, sampling and accounting by attacking them.

    Canaries with the largest gradients that clipping allows train through the engine; guesses who was there give a
    lower bound of ε. A bound above the claim is a fault, and the exit status is then 1; a bound below it is no
    proof of privacy.

    \b
    ffalora audit
    ffalora audit --target-epsilon 3 --steps 50 --sample-rate 0.1 --output audits/poisson
    """
    from ..audits.audit import audit_many_runs, audit_one_run, format_audits
    from ..privacy.accountants import noise_multiplier_for

    audits = []
    for target in target_epsilon:
        sigma = noise_multiplier_for(target, delta, sample_rate, steps)
        terms = (sigma, delta, steps, sample_rate)
        if method != "many-runs":
            audits.append(audit_one_run(*terms, clients, canaries, seed, noise, confidence))
        if method != "one-run":
            audits.append(audit_many_runs(*terms, runs, seed, noise, confidence))
    click.echo(format_audits(audits))
    if output is not None:
        from ..audits.plot import write_audits

        click.echo(f"\nwritten {', '.join(map(str, write_audits(audits, output)))}")
    if not all(audit.holds for audit in audits):
        raise click.exceptions.Exit(1)
