"""What fewer bits, or parts, of uploads cost in accuracy: one private federation in every format of the wire.

    python benchmarks/payloads.py --seeds 0 1 2

MiniLM, three clients of skewed movie reviews, ε = 6, 12 rounds of two steps, the whole test split. Each run is a row of
``benchmarks/data/payloads.csv``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from csv_tables import extend_table

from ffalora.config import Config, from_mapping
from ffalora.federated.simulate import simulate

TABLE = Path(__file__).with_name("data") / "payloads.csv"
COLUMNS = ("payload", "share", "seed", "bytes", "accuracy", "loss", "epsilon")
#: ``federation.payload``, and the share of the numbers that is sent.
FORMATS = (("float32", 1.0), ("float16", 1.0), ("int8", 1.0), ("top-k", 0.3), ("top-k", 0.1))


def job(payload: str, share: float, seed: int) -> Config:
    """The federation."""
    return from_mapping(
        {
            "model": {"name": "all-MiniLM-L6-v2"},
            "data": {"name": "movie-reviews", "evaluate_on": "test"},
            "clients": {"partition": "labels", "proportions": [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]},
            "federation": {
                "rounds": 12, "local_steps": 2, "evaluate_every": 12, "payload": payload, "payload_share": share,
            },
            "optimizer": {"batch_size": 64},
            "privacy": {"unit": "sample", "noise": "seeded", "target_epsilon": 6.0},
            "seed": seed,
            "baselines": False,
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--payloads", nargs="+", choices=[name for name, _ in FORMATS])
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for payload, share in FORMATS:
            if arguments.payloads and payload not in arguments.payloads:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = simulate(job(payload, share, seed), Path(folder, "run"), progress=False).summary
            row = {
                "payload": payload, "share": share, "seed": seed, "bytes": found["bytes_up_per_client_round"],
                "accuracy": round(found["metrics"]["accuracy"], 4), "loss": round(found["metrics"]["loss"], 5),
                "epsilon": found["epsilon"],
            }  # fmt: skip
            print(row, flush=True)
            extend_table(TABLE, COLUMNS, [row])


if __name__ == "__main__":
    main()
