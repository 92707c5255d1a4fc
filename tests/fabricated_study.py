"""Studies with made-up figures, in memory and on disk: for tests of what reads them."""

import json
import random
from pathlib import Path

import yaml

from ffalora.studies.folder import read_study
from ffalora.studies.grid import TUNING_SEEDS, Grid, load_grid, setting, with_seeds
from ffalora.studies.power import claims_power
from ffalora.studies.registration import register
from ffalora.studies.results import CELLS, MANIFEST, RESULTS, TUNING, CellResult, StudyResult, to_csv

METHOD_SKILL = {"ffa": 0.02, "fedsvd": 0.03, "lora": 0.0}
BYTES = {"ffa": 49_152, "fedsvd": 49_152, "rolora": 49_152}


def fabricate(
    folder: Path, name: str = "heterogeneity", size: str = "verdict", cells: int | None = None
) -> StudyResult:
    """A study's folder with tables (the first ``cells`` runs alone, if given) and what was read back from it; verdicts
    are over five seeds.
    """
    grid = load_grid(name, "laptop", size)
    if size == "verdict":
        grid = with_seeds(grid, 5)
    result = StudyResult(grid, folder)
    folder.mkdir(parents=True, exist_ok=True)
    for place in grid.tuned_places():
        tried = grid.tuning_cells(place)
        if len(tried) > len(TUNING_SEEDS):
            result.tuning += [CellResult(c, numbers(grid, c), folder / CELLS / grid.folder_name(c)) for c in tried]
        result.chosen[place] = tried[len(tried) // 2].chosen
    register(result, claims_power(grid.study.claims, result.pilot(), grid.places()), known=0)
    for cell in grid.verdict_cells(result.chosen)[:cells]:
        result.results.append(CellResult(cell, numbers(grid, cell), folder / CELLS / grid.folder_name(cell)))
    write(result)
    return read_study(folder)


def numbers(grid: Grid, cell) -> dict[str, float]:
    """A cell's made-up numbers: the middle of what was tried is best, later conditions are harder for LoRA."""
    rng = random.Random(f"{cell}")
    tried = list(grid.first_tried[cell.method].get("optimizer.lr", [0]))
    off = abs(tried.index(dict(cell.chosen).get("optimizer.lr", tried[0])) - len(tried) // 2)
    hard = list(grid.study.conditions).index(cell.condition) if cell.condition in grid.study.conditions else 0
    skill = METHOD_SKILL.get(cell.method, 0.01)
    accuracy = 0.68 + skill - hard * (0.03 - skill) - 0.04 * off + rng.gauss(0, 0.008)
    traffic = BYTES.get(cell.method, 98_304)
    seconds = round(60 + 5 * (traffic > 50_000) + rng.gauss(0, 1), 1)
    found = {
        "loss": round(1.3 - accuracy, 4), "accuracy": round(accuracy, 4), "macro_f1": round(accuracy - 0.01, 4),
        "bytes_up_per_client_round": traffic, "bytes_up": 60 * traffic, "bytes_down": 60 * traffic,
        "trained_numbers": traffic // 4, "seconds_per_round": seconds / 20, "seconds": seconds,
    }  # fmt: skip
    if grid.study.metric not in found or grid.name == "cost":
        found |= {"flops_per_sample": 2.1e8 + traffic, "saved_bytes": 3e6, "step_bytes": 3e6 + 40 * traffic}
    return found | ({"epsilon": 5.9971} if grid.name != "heterogeneity" else {})


def write(result: StudyResult) -> None:
    """What ``run_study`` leaves in the study's folder, and the run folders' texts."""
    grid, folder = result.grid, result.folder
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "study": grid.name, "scale": grid.scale, "size": grid.size, "protocol": grid.protocol,
        "seeds": "by power" if grid.is_powered else list(grid.seeds), "base": dict(grid.base),
        "tried": {method: dict(tried) for method, tried in grid.first_tried.items()},
        "definition": grid.study.model_dump(mode="json"), "setting": setting(grid),
    }  # fmt: skip
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True))
    if result.tuning:
        (folder / TUNING).write_text(to_csv(result.tuning))
    (folder / RESULTS).write_text(to_csv(result.results))
    for r in result.results:
        r.folder.mkdir(parents=True, exist_ok=True)
        said = "ε = 6 at most" if "epsilon" in r.numbers else "none was asked for"
        (r.folder / "privacy.txt").write_text(f"Privacy of this run ({r.cell.condition}): {said}\n  caveat <b>\n")
        (r.folder / "environment.json").write_text(json.dumps({"ffalora": "0.1.0", "device": "cpu"}))
        (r.folder / "config.yaml").write_text("seed: 0\n")
