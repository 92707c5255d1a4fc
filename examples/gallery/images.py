"""Images: a vision transformer that reads digits, with its own head trained beside the adapters."""

from ffalora import load_config, simulate

CONFIG = {
    "model.name": "facebook/deit-tiny-patch16-224",  # any vision transformer of the hub, or a folder
    "data.name": "mnist-5k",
    "data.task": "image-classification",
    "clients.count": 3,
    "clients.partition": "dirichlet",
    "privacy.unit": "sample",
    "privacy.target_epsilon": 8.0,
}


def main(folder: str = "runs/gallery/images", **changes: object) -> dict:
    """Trains, and returns the last metrics."""
    return simulate(load_config(None, CONFIG | changes), folder).summary["metrics"]


if __name__ == "__main__":
    print(main())
