"""``ffalora audit``: attacks the mechanism, of a run or of a model made up for it, and prints what is disproved beside
what is claimed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..files.numbers import to_json
from .output import NumberRange, json_option


@click.command("audit", short_help="Attack the mechanism, of a run or of itself: lower bounds of ε beside the claim.")
@click.argument("run", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--exposure",
    is_flag=True,
    help="RUN of a language model: plant secrets instead, and print how far they are memorised.",
)
@click.option("--synthetic", is_flag=True, help="Audit models made up for it; so it is without RUN.")
@click.option(
    "--minutes",
    type=NumberRange(0, min_open=True),
    default=4.0,
    show_default=True,
    help="RUN: after which no further step (with --exposure: round) begins, all methods together.",
)
@click.option(
    "--private-to-me",
    is_flag=True,
    help="RUN with secure noise: I own its data, and the numbers printed here stay with me.",
)
@click.option(
    "--target-epsilon",
    type=float,
    multiple=True,
    default=(1.0, 3.0, 8.0),
    show_default=True,
    help="Claimed ε; the noise is calibrated for it. May be given several times.",
)
@click.option("--delta", "--target-delta", "delta", type=float, default=1e-7, show_default=True, help="δ.")
@click.option("--steps", type=click.IntRange(min=1), default=1, show_default=True, help="Logical steps of the run.")
@click.option(
    "--sample-rate",
    type=NumberRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Probability with which each sample is drawn in a step; 1 gives the strongest audit.",
)
@click.option(
    "--method",
    type=click.Choice(["one-run", "many-runs", "both"]),
    default="both",
    show_default=True,
    help="Many canaries in one run, one canary in many runs of a small transformer, or both.",
)
@click.option("--clients", type=click.IntRange(min=1), default=1000, show_default=True, help="Clients of the one run.")
@click.option(
    "--canaries",
    type=click.IntRange(min=0),
    help="Canaries of each client, or secrets; 0 with RUN probes clipping alone.  [400; RUN: 1000; --exposure: 8]",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="--exposure: how often each secret is in the data; ε is of one of these records.",
)
@click.option("--runs", type=click.IntRange(min=2), default=4000, show_default=True, help="Runs of many-runs.")
@click.option("--noise", type=click.Choice(["seeded", "secure"]), default="seeded", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of coins and seeded noise.")
@click.option("--confidence", type=NumberRange(0.5, 1, max_open=True), default=0.95, show_default=True)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Folder for what was found.")
@json_option
def command(
    run: Path | None, exposure: bool, synthetic: bool, output: Path | None, as_json: bool, **options: Any
) -> None:
    """Audit clipping, noise, sampling and accounting by attacking them.

    RUN is a run's folder or a configuration (YAML). Its own model, data, dropout, loss, head and batches are audited:
    first, without noise, how far one record moves the clipped sum; then canaries among the real samples. Training
    happens in memory and is forgotten; what is printed is computed on private data, for its owner alone.

    Without RUN, canaries with the largest gradients that clipping allows train models made up for it.

    Guesses who was there give a lower bound of ε. A bound above the claim is a fault, and the exit status is then 1; a
    bound below it is no proof of privacy.

    With --exposure, secrets are planted among the texts that a language model learns, with or without privacy, and it
    is asked how likely it finds them: bits by which an attacker's search becomes shorter, beside the untrained model's.

    \b
    ffalora audit runs/demo
    ffalora audit my.yaml --canaries 0
    ffalora audit runs/chats --exposure
    ffalora audit --target-epsilon 3 --steps 50 --sample-rate 0.1 --output audits/poisson
    """
    if run is not None and synthetic:
        raise click.UsageError("--synthetic audits made-up models, RUN a run of yours: leave one of them out")
    if exposure and run is None:
        raise click.UsageError("--exposure is of a run or configuration: name it")
    if options["repeats"] > 1 and not exposure:
        raise click.UsageError(f"--repeats {options['repeats']} is of secrets: give --exposure, or leave it out")
    holds = _synthetic(output, as_json, **options) if run is None else _own(run, output, as_json, exposure, **options)
    if not holds:
        raise click.exceptions.Exit(1)


def _own(
    run: Path,
    output: Path | None,
    as_json: bool,
    exposure: bool,
    minutes: float,
    private_to_me: bool,
    canaries: int | None,
    repeats: int,
    seed: int,
    confidence: float,
    **_: Any,
) -> bool:
    """Audits every method of a configuration, or of the run in a folder."""
    from ..audits.exposure import Exposure, audit_exposure
    from ..audits.own import OwnAudit, audit_own
    from ..config import ConfigError, load_config
    from ..files.atomic import write_atomically
    from .running import CONFIG, hide_loading_bars

    if run.is_dir() and not (run / CONFIG).exists():
        raise ConfigError(f"{run} holds no run ({CONFIG} is missing); give a run's folder or a configuration")
    config = load_config(run / CONFIG if run.is_dir() else run)
    if config.privacy.noise == "secure" and not private_to_me:
        raise ConfigError(
            f"{run}: its noise is secure, so its model may leave this machine, but what an audit prints is computed on "
            "its private data, in part without noise, and no ledger covers it; if you own the data and keep the "
            "numbers to yourself, give --private-to-me"
        )
    hide_loading_bars()
    shows = sys.stderr.isatty() and not as_json
    methods, found = config.runs(), list[OwnAudit | Exposure]()
    for name, one in methods.items():
        if not as_json:
            how = "with secrets" if exposure else "without noise, then with canaries"
            click.echo(f"{name}: training {how}; this takes minutes", err=True)
        share = 60.0 * minutes / len(methods)
        if exposure:
            asked = 8 if canaries is None else canaries
            found.append(audit_exposure(one, name, asked, repeats=repeats, seconds=share, seed=seed, progress=shows))
        else:
            asked = 1000 if canaries is None else canaries
            found.append(audit_own(one, name, asked, share, seed, confidence, progress=shows))
        if not as_json:
            click.echo(f"{found[-1]}\n")
    holds = all(audit.holds for audit in found if isinstance(audit, OwnAudit))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "audit.txt", "\n\n".join(map(str, found)).encode() + b"\n")
    if as_json:
        click.echo(_as_json(holds, found))
        return holds
    click.echo("all models of this audit were in memory and are gone; nothing was written or charged")
    if output is not None:
        click.echo(f"written {output / 'audit.txt'}, for the owner of the data alone")
    return holds


def _synthetic(
    output: Path | None,
    as_json: bool,
    target_epsilon: tuple[float, ...],
    delta: float,
    steps: int,
    sample_rate: float,
    method: str,
    clients: int,
    canaries: int | None,
    runs: int,
    noise: str,
    seed: int,
    confidence: float,
    **_: Any,
) -> bool:
    """Audits models made up for it, with noise calibrated for each target."""
    from ..audits.audit import audit_many_runs, audit_one_run, format_audits
    from ..privacy.accountants import noise_multiplier_for

    if canaries is not None and canaries < 4:
        raise click.UsageError(f"--canaries {canaries}: made-up models are audited with at least 4")
    audits = []
    for target in target_epsilon:
        sigma = noise_multiplier_for(target, delta, sample_rate, steps)
        terms = (sigma, delta, steps, sample_rate)
        if method != "many-runs":
            audits.append(audit_one_run(*terms, clients, canaries or 400, seed, noise, confidence))
        if method != "one-run":
            audits.append(audit_many_runs(*terms, runs, seed, noise, confidence))
    holds, written = all(audit.holds for audit in audits), list[Path]()
    if output is not None:
        from ..audits.plot import write_audits

        written = write_audits(audits, output)
    if as_json:
        click.echo(_as_json(holds, audits))
        return holds
    click.echo(format_audits(audits))
    if written:
        click.echo(f"\nwritten {', '.join(map(str, written))}")
    return holds


def _as_json(holds: bool, audits: Sequence[Any]) -> str:
    return to_json({"holds": holds, "audits": [asdict(audit) for audit in audits]})
