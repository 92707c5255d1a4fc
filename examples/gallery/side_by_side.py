"""Several methods on the same clients, in one table and one page."""

from pathlib import Path

from ffalora import load_config, simulate
from ffalora.report import read_runs, table_text, write_report

CONFIG = {
    "data.name": "movie-reviews",
    "adapter.layers_to_transform": [5],
    "privacy.unit": "sample",
    "privacy.target_epsilon": 6.0,
    "methods": {
        "ffa": {"federation.strategy": "ffa"},
        "lora": {"federation.strategy": "lora"},
        "half-the-rank": {"federation.strategy": "ffa", "adapter.rank": 4},
    },
}


def main(folder: str = "runs/gallery/side-by-side", **changes: object) -> Path:
    """Runs each method in a folder of its own, prints their table, and returns the page's path."""
    places = []
    for name, config in load_config(None, CONFIG | changes).runs().items():
        places.append(Path(folder) / name)
        simulate(config, places[-1])
    print(table_text(read_runs(places)))
    return write_report(read_runs(places), folder)


if __name__ == "__main__":
    print(main())
