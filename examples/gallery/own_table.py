"""A table of one's own with a column of clients: trained on, used on another table, and given to a colleague."""

from ffalora import export, load_config, predict_file, simulate

CONFIG = {
    "data.name": "feedback.csv",  # encoding and delimiter are found
    "data.text": ["subject", "message"],
    "data.label": "verdict",
    "data.drop_empty": True,
    "clients.partition": "column",
    "clients.column": "hospital",
    "adapter.layers_to_transform": [5],
    "privacy.unit": "sample",
    "privacy.target_epsilon": 6.0,
    "privacy.noise": "secure",
}


def main(folder: str = "runs/gallery/own-table", new: str = "new.csv", **changes: object) -> dict[str, int]:
    """Trains, predicts, exports, and returns how many rows each class got."""
    simulate(load_config(None, CONFIG | changes), folder)
    export(folder, f"{folder}/exported")
    return predict_file(folder, new, f"{folder}/predicted.csv").counts


if __name__ == "__main__":
    print(main())
