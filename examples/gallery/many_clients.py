"""Many small clients, each protected as a whole: whether a client took part is what nobody can tell."""

from ffalora import load_config, simulate

CONFIG = {
    "data.name": "movie-reviews",
    "adapter.layers_to_transform": [5],
    "clients.count": 100,
    "federation.participation": 0.3,  # who is drawn stays secret, which is worth noise
    "federation.weighting": "uniform",
    "federation.rounds": 20,
    "federation.local_steps": 4,
    "optimizer.batch_size": 16,
    "privacy.unit": "client",
    "privacy.target_epsilon": 8.0,
    "privacy.delta": 1e-3,  # well below one over the clients
}


def main(folder: str = "runs/gallery/many-clients", **changes: object) -> dict:
    """Trains, and returns the summary: one ε for all clients."""
    return simulate(load_config(None, CONFIG | changes), folder).summary


if __name__ == "__main__":
    summary = main()
    print(summary["metrics"], "ε =", summary["epsilon"])
