"""Five topics of news, at clients who each see mostly some of them."""

from ffalora import load_config, simulate

CONFIG = {
    "data.name": "bbc-news",
    "data.label_texts": {
        "business": ["news about companies, banks and trade"],
        "entertainment": ["news about films, music and television"],
        "politics": ["news about parties, elections and the government"],
        "sport": ["news about matches, players and championships"],
        "tech": ["news about computers, phones and the internet"],
    },
    "adapter.layers_to_transform": [5],
    "clients.count": 5,
    "clients.partition": "dirichlet",
    "clients.beta": 0.3,  # small is skewed
    "privacy.unit": "sample",
    "privacy.target_epsilon": 6.0,
}


def main(folder: str = "runs/gallery/topics", **changes: object) -> dict:
    """Trains, and returns the last metrics."""
    return simulate(load_config(None, CONFIG | changes), folder).summary["metrics"]


if __name__ == "__main__":
    print(main())
