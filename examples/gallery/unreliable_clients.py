"""Clients that vanish or are slow, and a mean that a few hostile ones cannot move far."""

from ffalora import load_config, simulate

CONFIG = {
    "data.name": "movie-reviews",
    "adapter.layers_to_transform": [5],
    "clients.count": 8,
    "federation.dropout_rate": 0.2,  # of those drawn, in mid-round
    "federation.straggler_rate": 0.2,
    "federation.min_available": 5,
    "federation.robust_mean": "trimmed-mean",
    "federation.hostile_clients": 1,
}


def main(folder: str = "runs/gallery/unreliable-clients", **changes: object) -> list[dict]:
    """Trains, and returns the row of every round: metrics, bytes, who was missing."""
    return simulate(load_config(None, CONFIG | changes), folder).rounds


if __name__ == "__main__":
    for row in main():
        print(row["round"], row["metrics"], "missing:", row["dropped"])
