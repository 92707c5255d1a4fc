"""How far a run is, from what it has written down so far: nothing else is read, so nothing else can be shown."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path
from typing import Any

from ..config import Config
from ..runs.files import CONFIG, PARTITION, RunFiles
from ..runs.folder import METRICS, SUMMARY, run_places
from .runs import SEED, STUDY, ReportError, cells_of, data_title, method_title
from .tables import bytes_text, epsilon_text, metric_title

#: A run that writes nothing for so many of its rounds, and for so many seconds, may have ended.
QUIET_ROUNDS, QUIET_SECONDS = 5, 60.0
_RECENT, _FIRST = 5, ("accuracy", "exact_match", "rouge_l", "pearson")


def live_state(folder: Path) -> dict[str, Any]:
    """What is known of the runs in a folder, whether they go on, are over, or have not begun.

    Returns:
        ``title``, ``folder``, ``seconds_left`` (of all runs together; None where no round is done yet, or what rounds
        take is a secret), and ``runs``, each with ``label``, ``status`` (waiting, running, quiet, finished), ``round``
        of ``rounds``, ``seconds_per_round``, ``metric`` with its ``curve`` of ``[round, value]``, ``epsilon`` (None
        without privacy, and where what says it is damaged), ``target_epsilon``, ``protection`` (a sentence),
        ``unreadable`` (files and lines that are damaged and left out), and, where the run tells them, ``clipped`` (a
        share) and ``bytes`` (of all clients, up and down).

    Raises:
        ReportError: the folder holds no run, or a study. ConfigError: its configuration cannot be read.
    """
    if (folder / STUDY).exists():
        raise ReportError(f"{folder} holds a study; watch one of the folders in {cells_of(folder)}")
    if not (folder / CONFIG).exists():
        raise ReportError(f"{folder} holds no run (no {CONFIG}); give the folder of a run that has begun")
    config = RunFiles(folder).config()
    runs = [_run_state(place, one, _label(place, one, folder)) for place, one in run_places(config, folder).items()]
    paces = [run["seconds_per_round"] for run in runs if run["seconds_per_round"] is not None]
    on = [run for run in runs if run["status"] != "finished"]
    left = None if on else 0.0
    if on and paces:
        typical = statistics.fmean(paces)
        left = sum((run["rounds"] - run["round"]) * (run["seconds_per_round"] or typical) for run in on)
    title = f"{data_title(config.model_dump(mode='json'))} with {Path(config.model.name).name}"
    return {"title": title, "folder": folder.resolve().name, "seconds_left": left, "runs": runs}


def shown(state: dict[str, Any]) -> dict[str, Any]:
    """The same for a page: every value as people read it, by the name they give it; curves of finite numbers alone."""
    runs = []
    for run in state["runs"]:
        values = {"round": f"{run['round']} of {run['rounds']}"}
        if run["curve"]:
            values[metric_title(run["metric"])] = f"{run['curve'][-1][1]:.3f}"
        if run["epsilon"] is not None:
            of = f" of {run['target_epsilon']:g}" if run["target_epsilon"] else ""
            values["largest ε"] = epsilon_text(run["epsilon"]) + of
        if run["clipped"] is not None:
            values["clipped"] = f"{100 * run['clipped']:.0f}%"
        if run["bytes"] is not None:
            values["sent"] = bytes_text(run["bytes"])
        if run["seconds_per_round"] is not None:
            values["a round takes"] = duration_text(run["seconds_per_round"])
        if run["unreadable"]:
            values["left out, for it is damaged"] = ", ".join(run["unreadable"])
        kept = ("label", "status", "protection", "rounds", "round")
        drawn = {"curve": [point for point in run["curve"] if math.isfinite(point[1])]}
        named = {"metric": metric_title(run["metric"] or ""), "values": values}
        runs.append({key: run[key] for key in kept} | drawn | named)
    left, has_begun = state["seconds_left"], any(run["round"] for run in state["runs"])
    text = "what rounds take is secret" if has_begun else "no round is done yet"
    if all(run["status"] == "finished" for run in state["runs"]):
        text = "finished"
    elif left is not None:
        text = f"about {duration_text(left)} left" if left else "all rounds are done, and what follows them is not"
    return {"title": state["title"], "folder": state["folder"], "left": text, "runs": runs}


def duration_text(seconds: float) -> str:
    """Seconds as people say them: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _label(place: Path, config: Config, top: Path) -> str:
    """The method's title, and the seed where there are several."""
    parts = place.relative_to(top).parts
    seeds = [part.replace("-", " ") for part in parts if part.startswith(SEED)]
    names = [part for part in parts if not part.startswith(SEED)] or [config.federation.strategy]
    return " · ".join([method_title(names[0]), *seeds])


def _run_state(place: Path, config: Config, label: str) -> dict[str, Any]:
    files = RunFiles(place)
    config = files.config(config)  # with what the run decided by itself
    rows, summary = files.rows(), files.json(SUMMARY, {})
    done = rows[-1]["round"] if rows else 0
    paces = [row["seconds"] for row in rows[-_RECENT:] if "seconds" in row]
    pace = statistics.median(paces) if paces else None
    evaluated = {row["round"]: row["metrics"] for row in rows if row["metrics"]}
    names = dict.fromkeys(name for metrics in evaluated.values() for name in metrics)
    metric = next((name for name in (*_FIRST, *names) if name in names), None)
    sent = [row["bytes_up"] + row["bytes_down"] for row in rows if {"bytes_up", "bytes_down"} <= row.keys()]
    return {
        "label": label,
        "status": _status(place, done, pace),
        "round": done,
        "rounds": config.federation.rounds,
        "seconds_per_round": pace,
        "metric": metric,
        "curve": [[at, found[metric]] for at, found in evaluated.items() if metric in found],
        "epsilon": files.epsilon(rows, summary),
        "target_epsilon": config.privacy.target_epsilon if config.privacy.unit != "none" else None,
        "protection": _protection(config),
        "clipped": next((row["clipped"] for row in reversed(rows) if "clipped" in row), None),
        "bytes": sum(sent) if sent and len(sent) == done else None,
        "unreadable": files.unreadable,
    }


def _status(place: Path, rounds: int, pace: float | None) -> str:
    if (place / SUMMARY).exists():
        return "finished"
    newest = max((file.stat().st_mtime for file in (place / METRICS, place / CONFIG) if file.exists()), default=None)
    if newest is None or (rounds == 0 and not (place / PARTITION).exists()):
        return "waiting"
    patience = max(QUIET_SECONDS, QUIET_ROUNDS * (pace or 0.0))
    return "quiet" if rounds and time.time() - newest > patience else "running"


def _protection(config: Config) -> str:
    if config.privacy.unit == "none":
        return "Not private."
    if config.privacy.noise == "seeded":
        return "A simulation: the noise comes from a seed, and nothing is protected."
    if config.privacy.noise == "secure":
        return f"Secure noise: every {config.privacy.unit} is protected, and shown is only what the run may write down."
    return "What protects it is said when it begins."
