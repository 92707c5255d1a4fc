"""A federation of processes whose server learns the average alone, and nothing of what one client sent."""

from pathlib import Path

from ffalora import load_config, predict
from ffalora.federated.flower.loopback import run_on_loopback

CONFIG = {  # needs ffalora[flower]
    "data.name": "movie-reviews",
    "adapter.layers_to_transform": [5],
    "clients.count": 3,  # each a process with its own data, noise and ledger
    "federation.rounds": 5,
    "federation.weighting": "uniform",  # sums of masked numbers have equal weights
    "privacy.unit": "sample",
    "privacy.target_epsilon": 6.0,
}


def main(folder: str = "runs/gallery/secure-aggregation", **changes: object) -> list[dict]:
    """Trains on loopback, and returns what the adapter says of two texts. The server's folder is ``folder``."""
    config = load_config(None, CONFIG | changes).with_noise("secure")
    run_on_loopback(config, Path(folder), secagg_range=4.0)  # numbers within ±4, on a grid of 2^22 levels
    return predict(folder, ["a wonderful film", "dull and slow"])


if __name__ == "__main__":
    for answer in main():
        print(answer)
