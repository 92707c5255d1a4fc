"""Measurements of the theory with made-up figures, as ``run_theory`` leaves them: for tests of what reads them."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from ffalora.config import Config, to_yaml
from ffalora.files.numbers import to_json
from ffalora.studies.theory import theory_config
from ffalora.studies.theory.folder import to_csv
from ffalora.studies.theory.plots import Rows
from ffalora.training.optim import lr_factor

SECONDS = 90.0


def expected_square_of_discordance(
    n: int, k: int, rank: int, scale: float, variance: float, weights: Sequence[float]
) -> float:
    """``E‖D‖²`` that noise alone causes when clients average both factors: ``s²v²NRK(Σw² - 2Σw³ + (Σw²)²)``.

    For n_c equal weights the bracket is ``(1 - 1/n_c)/n_c``. Zero for a frozen ``a``.
    """
    second, third = sum(w**2 for w in weights), sum(w**3 for w in weights)
    return scale**2 * variance**2 * n * rank * k * (second - 2 * third + second**2)


def fabricate_theory(folder: Path, config: Config | None = None) -> dict[tuple[str, int], Rows]:
    """A folder of finished measurements (by default of the verdict's size); its rows by (method, seed)."""
    config = config or theory_config()
    seeds = range(config.seed, config.seed + config.seeds)
    runs = {(m, seed): rows(m, seed, run) for seed in seeds for m, run in config.runs().items()}
    for (method, seed), each in runs.items():
        place = folder / method / f"seed-{seed}"
        place.mkdir(parents=True)
        (place / "theory.jsonl").write_text("".join(to_json(row) + "\n" for row in each))
    (folder / "results.csv").write_text(to_csv(runs))
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "environment.json").write_text(json.dumps({"ffalora": "0.1.0", "device": "cpu", "threads": 3}))
    return runs


def rows(method: str, seed: int, config: Config) -> Rows:
    """One row a round; FFA-LoRA's noise and averages are without their second part. Clients are of equal size."""
    rng, is_lora = random.Random(f"{method} {seed}"), method == "lora"
    rounds = config.federation.rounds
    total_steps = rounds * config.federation.local_steps
    squares = [lr_factor(config.optimizer, step, total_steps) ** 2 for step in range(total_steps)]
    averaged_over_one = sum(squares) / max(squares) / config.clients.count
    found: Rows = []
    for number in range(rounds + 1):
        row = {
            "round": number,
            "trained": "both" if is_lora else "b",
            "loss": 0.5 + 0.3 / (number + 1) + rng.gauss(0, 0.01),
            "discordance": None,
            "epsilon": None,
        }
        if number:
            total = rng.uniform(1.0, 2.0) if is_lora else 0.0
            row |= {
                "epsilon": 0.5 * number,
                "discordance": {"layers": {"0.query": total}, "total": total, "update": 8.0},
            }
        if number in (0, rounds):
            constant = rng.uniform(1.0, 2.0) * (1 + is_lora * number)
            row["gradients"] = {
                "all": {"mean": 1.0, "variation": rng.uniform(0.4, 0.6), "quantiles": [0.2, 0.5, 0.9, 1.1, 2.5],
                        "clipped": 0.75}
            }  # fmt: skip
            row["smoothness"] = {
                "factors": constant, "b_alone": constant, "weights": 3.0, "a_norm": 0.7, "b_norm": 0.1 * number,
                "gradient": 0.5, "bound": 20.0, "bound_b": 9.0,
            }  # fmt: skip
            quadratic = is_lora * rng.uniform(0.1, 0.2)
            row["noise"] = None if number == 0 else {
                "expected": {"linear": 1.0 - quadratic, "quadratic": quadratic}, "share": quadratic,
                "sampled": {"linear": 1.0, "quadratic": quadratic}, "one_step_share": quadratic / 4, "ratio": 1.01,
                "one_step": {"linear": 0.1, "quadratic": quadratic / averaged_over_one**2},
            }  # fmt: skip
        found.append(row)
    found[-1]["seconds"] = SECONDS
    return found
