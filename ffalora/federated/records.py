"""What a run writes down: one row a round, the privacy statement, the environment, the summary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import to_yaml
from ..files.atomic import write_atomically
from ..files.numbers import rounded_up
from ..privacy.statement import PrivacyStatement
from ..runs.bundle import save_bundle
from ..runs.environment import describe_environment
from ..runs.folder import ANSWERS, ENVIRONMENT, SUMMARY, RunResult, write_json
from ..training.report import TrainingReport
from .experiment import Experiment
from .strategies import ServerState


def metrics_row(
    experiment: Experiment,
    server: ServerState,
    report: TrainingReport,
    metrics: dict[str, float],
    gap: float,
    seconds: float,
    bytes_up: int,
    bytes_down: int,
) -> dict[str, Any]:
    """The row of ``metrics.jsonl`` for the round just completed; each ε is rounded up.

    With secure noise it holds nothing that is a function of private data without noise: no loss, no norms, no realised
    batch sizes; at client level no gap between the clients' own rows, and nothing that tells who was drawn (such as how
    long it took), since the amplification needs that secret.
    """
    row = {"round": server.round, "metrics": metrics, **spent_until_now(experiment)}
    privacy = experiment.config.privacy
    if not (privacy.is_secure and privacy.unit == "client"):
        row |= {"seconds": round(seconds, 3), "update_gap": gap, "bytes_up": bytes_up, "bytes_down": bytes_down}
        row |= {"rejected": report.rejected, "dropped": report.dropped}
    return row if privacy.is_secure else row | report.numbers()


def spent_until_now(experiment: Experiment) -> dict[str, Any]:
    """What a row says of ε, rounded up: ``epsilon``, the most that a client spent, and ``epsilon_per_client``."""
    by_column, names = experiment.config.clients.partition == "column", experiment.partition.names
    epsilons = {
        str(names[int(name)]) if by_column and name.isdigit() else name: rounded_up(ledger.epsilon())
        for name, ledger in experiment.ledgers.items()
    }
    return {"epsilon": max(epsilons.values(), default=None), "epsilon_per_client": epsilons}


def privacy_statement(experiment: Experiment) -> PrivacyStatement:
    """The statement of the run as it stands: what each client's ledger says."""
    ledgers = list(experiment.ledgers.values())
    privacy = experiment.config.privacy
    if not ledgers:
        return PrivacyStatement.not_private()
    caveats = []
    if privacy.noise == "seeded":
        caveats.append(
            "Training loss, gradient norms and the table of who holds what are computed on private data, for the "
            "simulation only."
        )
    if privacy.noise_at == "clients":
        caveats.append(
            f"ε holds while at most {privacy.dropouts} of a round's clients drop out (otherwise its sum is given up) "
            f"and at most {privacy.colluders} of the others tell the server their noise."
        )
    return PrivacyStatement.from_ledgers(
        ledgers, noise=privacy.noise, max_grad_norm=privacy.max_grad_norm, clipping=privacy.clipping, caveats=caveats
    )


def summary(experiment: Experiment, server: ServerState, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Last metrics and the costs of the whole run."""
    last = replace(server, round=max(server.round - 1, 0))
    evaluated = [row for row in rows if row["metrics"]]
    summed = {
        key: sum(row[key] for row in rows)
        for key in ("bytes_up", "bytes_down", "seconds")
        if all(key in r for r in rows)
    }
    if "seconds" in summed:
        summed |= {"seconds_per_round": round(summed["seconds"] / max(len(rows), 1), 3)}
        summed |= {"seconds": round(summed["seconds"], 1)}
    return {
        "strategy": experiment.strategy.name,
        "rounds": len(rows),
        "metrics": evaluated[-1]["metrics"] if evaluated else {},
        "evaluated": evaluated_rows(experiment),
        "epsilon": rows[-1]["epsilon"] if rows else spent_until_now(experiment)["epsilon"],
        "bytes_up_per_client_round": experiment.bytes_up(last),
        "trained_numbers": experiment.strategy.wire.trained_layout(last).size,
        "lr": experiment.participants[0].lr,
        "head_start": experiment.head_start,
        "baselines": experiment.baselines,
        **summed,
    }


def evaluated_rows(experiment: Experiment) -> dict[str, Any]:
    """Which rows the metrics are of, and how many."""
    data, rows = experiment.config.data, len(experiment.evaluation)
    return {"split": data.evaluate_on, "rows": min(rows, data.max_evaluation_samples or rows)}


def write_answers(experiment: Experiment, path: Path) -> None:
    """What the model that was evaluated last answered, where it was asked; not where the questions are somebody's."""
    if experiment.answered is not None and not experiment.config.privacy.is_secure:
        write_json(path, experiment.answered.rows())


def environment(experiment: Experiment) -> dict[str, Any]:
    """Versions and device: what a reader needs to repeat the run."""
    dtype = next(iter(experiment.adapters.layers.values())).base_weight().dtype
    return describe_environment(experiment.engine.device) | {
        "base_dtype": str(dtype).removeprefix("torch."),
        "cached_layers": experiment.cached_layers,
        "processes": experiment.workers.size,
    }


def open_folder(experiment: Experiment, folder: Path) -> None:
    """What is known before the first round: configuration, environment, who holds what."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.yaml", to_yaml(experiment.config).encode())
    write_json(folder / ENVIRONMENT, environment(experiment))
    privacy, table = experiment.config.privacy, experiment.partition_table
    if privacy.is_secure:  # exact counts of classes are not covered by ε
        shown = {"client"} if privacy.hides_sizes else {"client", "samples"}
        table = [{name: value for name, value in one.items() if name in shown} for one in table]
    write_json(folder / "partition.json", table)


def finish_folder(experiment: Experiment, server: ServerState, folder: Path, rows: list[dict[str, Any]]) -> RunResult:
    """The adapter as it is saved, the privacy statement, and the summary."""
    result = summary(experiment, server, rows)  # of what was trained and sent: what is saved may have another rank
    experiment.strategy.export(server)
    save_bundle(folder / "adapter", experiment.adapters, experiment.loaded, experiment.config, experiment.data)
    statement = privacy_statement(experiment)
    write_json(folder / "privacy.json", statement.as_dict())
    write_atomically(folder / "privacy.txt", statement.to_text().encode())
    write_answers(experiment, folder / ANSWERS)
    write_json(folder / SUMMARY, result)
    return RunResult(folder, result, rows)
