"""What of a model is cut over processes, and what is not."""

import pytest
import torch
from torch import nn

from ffalora.config import ConfigError
from ffalora.models.shards import _cut, _layers


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        stage = nn.Module()
        stage.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.embeddings, self.stages = nn.Embedding(3, 2), nn.ModuleList([stage, nn.Linear(2, 2)])
        self.decoder = nn.Sequential(nn.Linear(2, 2))


def test_the_members_of_the_outermost_lists_are_gathered_one_by_one():
    model = _Model()
    assert [*_layers(model)] == [*model.stages]


def test_a_quantised_base_is_refused_by_name_before_any_process_is_asked():
    model = _Model()
    model.stages[1].weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"stages\.1\.weight is a Parameter of torch\.int8 \(a quantised base\)"):
        _cut(model, None)
