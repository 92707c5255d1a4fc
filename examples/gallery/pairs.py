"""Two texts a row: does the second one answer a question about a privacy policy?"""

from ffalora import load_config, predict, simulate

CONFIG = {
    "data.name": "privacy-policy",  # any table with two text columns: data.text: [question, context]
    "adapter.layers_to_transform": [5],
    "privacy.unit": "sample",
    "privacy.target_epsilon": 6.0,
}


def main(folder: str = "runs/gallery/pairs", **changes: object) -> list[dict]:
    """Trains, and returns what the adapter says of one pair."""
    result = simulate(load_config(None, CONFIG | changes), folder)
    print(result.summary["metrics"])
    return predict(folder, [("Do you sell my data?", "We share personal information with advertisers.")])


if __name__ == "__main__":
    print(main())
