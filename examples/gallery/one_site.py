"""One site alone, for a model that leaves it: secure noise, a ledger of the data, and a statement to hand out."""

from pathlib import Path

from ffalora import load_config, train

CONFIG = {
    "data.name": "movie-reviews",
    "adapter.layers_to_transform": [5],
    "optimizer.batch_size": 256,
    "federation.rounds": 10,  # at one site: intervals between evaluations
    "privacy.unit": "sample",
    "privacy.target_epsilon": 3.0,
    "privacy.noise": "secure",  # drawn by the operating system, charged to the ledger before each step
    "privacy.ledger": "movie-reviews",  # later runs on the same records add up there
}


def main(folder: str = "runs/gallery/one-site", **changes: object) -> str:
    """Trains, and returns the privacy statement."""
    train(load_config(None, CONFIG | changes), folder)
    return (Path(folder) / "privacy.txt").read_text()


if __name__ == "__main__":
    print(main())
