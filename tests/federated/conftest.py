"""The tiny model and data set, saved once."""

from functools import partial

import pytest
from small_runs import save_model, save_texts, small_config


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A function from changes to a configuration on the tiny model and data."""
    folder = tmp_path_factory.mktemp("small")
    return partial(small_config, save_model(folder / "model"), save_texts(folder / "texts.csv"))
