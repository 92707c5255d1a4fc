"""A number instead of a class: how people rate a sentence, from -4 to 4."""

from ffalora import load_config, predict, simulate

CONFIG = {
    "data.name": "movie-ratings",
    "data.task": "regression",
    "adapter.layers_to_transform": [5],
    "optimizer.lr": 1.0,
}


def main(folder: str = "runs/gallery/ratings", **changes: object) -> list[dict]:
    """Trains without privacy, and returns the ratings of two sentences."""
    result = simulate(load_config(None, CONFIG | changes), folder)
    print(f"Pearson's correlation {result.summary['metrics']['pearson']:.3f}")
    return predict(folder, ["a wonderful film", "dull and slow"])


if __name__ == "__main__":
    print(main())
