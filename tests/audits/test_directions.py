"""Directions of canaries: whole after clipping, and apart from each other, however columns are clipped."""

import numpy as np
import pytest
import torch

from ffalora.adapters import AdapterConfig, attach
from ffalora.audits.directions import Directions
from ffalora.privacy.clipping import per_layer_thresholds


@pytest.fixture(scope="module")
def layout():
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(64, 600), "classifier": torch.nn.Linear(600, 2)})
    return attach(model, AdapterConfig(r=4, target_modules=["body"], head="trained")).layout


def _clipped(directions, layout, starts, shares):
    """Each direction ten times longer than the clipping norm of 1, then clipped group by group."""
    rows = directions.gradients(np.arange(len(directions)), torch.full((len(directions),), 10.0), layout.width)
    bounds = [*starts, layout.width]
    for start, end, limit in zip(bounds[:-1], bounds[1:], per_layer_thresholds(1.0, shares).tolist(), strict=True):
        part = rows[:, start:end]
        part *= (limit / part.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1.0)
    return rows


@pytest.mark.parametrize("split", [False, True])
def test_a_clipped_direction_is_as_long_as_c_and_alone_in_what_it_adds(layout, split):
    head = min(place.start for place in layout.places if place.layer == "classifier")
    starts, shares = ([0, head], [0.1, 0.9]) if split else ([0], [1.0])
    directions = Directions.draw(layout, starts, shares, 400, np.random.default_rng(0))
    rows = _clipped(directions, layout, starts, shares)
    assert len(directions) == 400 and directions.strength == pytest.approx(1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(400))
    found = directions.along(rows)
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-5)
    others = found[~np.eye(400, dtype=bool)]
    assert np.abs(others).max() < (0.2 if split else 1e-9)  # 1,202 columns of signs: seven deviations of 0.026


def test_a_group_that_is_too_small_for_directions_makes_them_shorter(layout):
    starts, shares = [0, layout.width - 8], [0.5, 0.5]
    directions = Directions.draw(layout, starts, shares, 50, np.random.default_rng(0))
    assert directions.strength == pytest.approx(0.5**0.5)
    found = directions.along(_clipped(directions, layout, starts, shares))
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-5)
