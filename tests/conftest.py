"""Fixtures that every test folder may use: a tiny model with its data, and embedded assets, fetched once into the cache
and offline ever after.
"""

from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from small_runs import save_model, save_texts, small_config

from ffalora.privacy.noise import SeededNoise
from ffalora.training import sensitivity

#: Drawing and running an example may take as long as a busy machine makes it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def _asset(name: str) -> Path:
    from ffalora.data import assets

    try:
        return assets.path(name)
    except assets.AssetError as error:
        pytest.skip(f"asset {name} is not in the cache and cannot be fetched: {str(error).splitlines()[0]}")


@pytest.fixture(scope="session")
def movie_reviews_folder() -> Path:
    """Folder of the crowd-rated sentences (2.4 MB to fetch)."""
    return _asset("vader")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """Folder of the pretrained all-MiniLM-L6-v2 encoder (83 MB to fetch)."""
    return _asset("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def asset_folder():
    """A function from an asset's name to its folder; skips the test where it cannot be had."""
    return _asset


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A function from changes to a configuration on the tiny model and data."""
    folder = tmp_path_factory.mktemp("small")
    return partial(small_config, save_model(folder / "model"), save_texts(folder / "texts.csv"))


@pytest.fixture
def fixed_draws(monkeypatch):
    """What the probe of sensitivity draws afresh and forgets (keys of dropout, records to leave out) is the same every
    time: how far a broken mechanism moves a sum then does not change from run to run.
    """
    draw = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed=0: draw(seed))
    monkeypatch.setattr(sensitivity, "secret_noise", lambda: SeededNoise(0))


@pytest.fixture
def entered_devices(monkeypatch):
    """The CUDA devices that blocks are in, the innermost last; no GPU is needed to enter one."""
    entered = ["cuda:0"]

    @contextmanager
    def device(which):
        entered.append(str(which))
        yield
        entered.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    return entered


@pytest.fixture(autouse=True)
def ledgers_of_data_sets_in_a_folder_of_the_test(tmp_path_factory, monkeypatch):
    """Secure runs are charged to the ledger of their data set: no test may spend what is the user's."""
    monkeypatch.setenv("FFALORA_LEDGERS", str(tmp_path_factory.mktemp("ledgers")))
