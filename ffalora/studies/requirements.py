"""What a study at full size needs of the machine, asked before the first run, not after an hour of tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..config import Config, ConfigError
from ..data.asset_table import ASSETS
from ..data.embedded import EMBEDDED
from .grid import Grid

#: Seconds to wait for the hub's answer, and the most letters of its refusal that are shown.
_PATIENCE, _LONGEST_REASON = 10, 200


def check_requirements(grid: Grid) -> None:
    """A GPU where the configuration leaves the choice of the device open, and model and data that can be had: local,
    embedded, in the cache of the hub, or on the hub.

    Raises:
        ConfigError: names everything that is missing, and what to do about each.
    """
    config = grid.config(grid.tuning_cells(grid.tuned_places()[0])[0])
    missing = [*_device(config), *_model(config), *_data(config)]
    if missing:
        lines = "\n".join(f"  * {text}" for text in missing)
        raise ConfigError(
            f"study {grid.name} cannot be run at scale {grid.scale} here:\n{lines}\n"
            "To check everything else without them: --dry-run. To run it here at small size: --scale laptop"
        )


def _device(config: Config) -> list[str]:
    if config.device != "auto" or torch.cuda.is_available():
        return []
    return [
        "no CUDA device was found; run it where there is one, or accept the processor with --device cpu (very slow)"
    ]


def _model(config: Config) -> list[str]:
    from huggingface_hub import HfApi, try_to_load_from_cache

    name = config.model.name
    if name in ASSETS or Path(name).exists() or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return []
    reason = _refusal(lambda: HfApi().model_info(name, timeout=_PATIENCE))
    if reason is None:
        return []
    return [
        f"model {name} is not in the hub's cache and cannot be fetched ({reason}); fetch it where there is a network "
        f"(hf download {name}), or give a local folder with --model.name"
    ]


def _data(config: Config) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    name = config.data.name
    repository = name.partition(":")[0]
    kept = Path(HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}" / "snapshots"
    if name in EMBEDDED or any(path.exists() for path in (Path(name), Path(repository), kept)):
        return []
    reason = _refusal(lambda: HfApi().dataset_info(repository, timeout=_PATIENCE))
    if reason is None:
        return []
    return [
        f"data {name} are not in the hub's cache and cannot be fetched ({reason}); fetch them where there is a network "
        f"(hf download {repository} --repo-type dataset), or give local data with --data.name"
    ]


def _refusal(ask: Callable[[], object]) -> str | None:
    """Why the hub does not answer; None where it does."""
    try:
        ask()
    except Exception as error:  # the hub client raises dozens of unrelated types; all mean that it cannot be had
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first[:_LONGEST_REASON]}"
    return None
