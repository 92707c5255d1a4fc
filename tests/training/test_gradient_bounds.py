"""Segment gradients called by themselves: what they are given is checked before a kernel follows it, and the sum is
bounded whatever the groups.
"""

import numpy as np
import pytest
import torch
from tiny import losses, tiny_engine

from ffalora.training.gradients import segment_gradients


@pytest.fixture
def batch():
    engine, adapters = tiny_engine(trained="b")
    inputs, targets = engine.data.collate(np.arange(4))
    return engine.model, adapters, losses, inputs, targets


@pytest.mark.parametrize("rows", [[0, 0, 2, 2], [-1, 0, 0, 1], [0, 0, 2**31, 2**31], [0.0, 0.0, 1.0, 1.0]])
def test_rows_outside_the_state_are_refused_before_anything_is_read(batch, rows):
    state = batch[1].state()[None].repeat(2, 1)
    with pytest.raises(ValueError, match="whole numbers, one a sample, from 0 to 1"):
        segment_gradients(*batch, state=state, rows=np.asarray(rows))


def test_several_clients_whose_a_is_trained_are_refused_in_one_pass():
    engine, adapters = tiny_engine(trained="both")
    inputs, targets = engine.data.collate(np.arange(4))
    state = adapters.state()[None].repeat(2, 1)
    with pytest.raises(ValueError, match="a is trained here; give a state of one row"):
        segment_gradients(engine.model, adapters, losses, inputs, targets, state=state, rows=np.array([0, 0, 1, 1]))


def test_groups_are_clipped_by_their_own_norms_also_where_there_are_as_many_as_trained_tensors(batch):
    found, layout = segment_gradients(*batch), batch[1].layout
    starts = [place.start for place in layout.places]
    assert len(starts) > 1
    moved = torch.tensor([0, *(start + 3 for start in starts[1:]), layout.width], dtype=torch.int32)
    for sample in range(4):
        one = type(found)(found.gradients[[sample]], found.squares[[sample]], found.client[[sample]], found.losses)
        total = torch.zeros(1, layout.width, dtype=torch.float64)
        limits = torch.full((1, len(starts)), 1e-3, dtype=torch.float64)
        one.clip_into_(total, limits, moved)
        norms = [float(total[0, i:j].norm()) for i, j in zip(moved[:-1].tolist(), moved[1:].tolist(), strict=True)]
        assert max(norms) <= 1e-3 * (1 + 1e-6), norms
