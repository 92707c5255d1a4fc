"""The training loop on a compiled model: same numbers, and no recompilation as lengths vary from step to step."""

import pytest
import torch
from tiny import participants, tiny_data, tiny_engine
from torch._dynamo.utils import counters


@pytest.mark.slow
def test_compiled_training_equals_eager_and_settles_on_one_graph():
    engine, adapters = tiny_engine(data=tiny_data(200, longest=25), token_budget=60)
    eager = adapters.state().repeat(2, 1)
    engine.train(participants(2, 200, 16), eager, steps=3)
    counters.clear()
    engine.model = torch.compile(engine.model, dynamic=True)
    compiled = adapters.state().repeat(2, 1)
    engine.train(participants(2, 200, 16), compiled, steps=3)
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    settled = counters["stats"]["unique_graphs"]
    assert settled <= 2
    engine.train(participants(2, 200, 16), compiled, steps=3)
    assert counters["stats"]["unique_graphs"] == settled
