"""The token budget of a physical batch follows from the model's activations and the memory that is free."""

import gc

import numpy as np
import pytest
import torch
from tiny import tiny_data, tiny_engine
from torch import nn

from ffalora.training import token_budget as module
from ffalora.training.batches import physical_batches
from ffalora.training.token_budget import free_bytes, pass_tokens, saved_bytes, token_budget

CPU = torch.device("cpu")


class _TwoLinears(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_saved_bytes_count_every_activation_and_no_parameter():
    x = torch.randn(3, 5, 8)
    # The input (for the first weight's gradient) and the tanh's output, which two operations save.
    assert saved_bytes(_TwoLinears(), {"x": x}) == 4 * 15 * (8 + 16)


def _live_tensors() -> set[int]:
    gc.collect()
    return {id(each) for each in gc.get_objects() if issubclass(type(each), torch.Tensor)}


def test_the_measured_pass_leaves_nothing_in_memory():
    model, x = _TwoLinears(), torch.randn(3, 5, 8)
    before = _live_tensors()
    saved_bytes(model, {"x": x})
    assert not _live_tensors() - before


def test_a_frozen_layer_costs_only_what_it_saves():
    model = _TwoLinears()
    model.first.requires_grad_(False)
    assert saved_bytes(model, {"x": torch.randn(3, 5, 8)}) == 4 * 15 * 16


@pytest.mark.parametrize("share", [1.0, 0.01])
def test_the_budget_follows_how_much_memory_is_free(monkeypatch, share):
    engine, _ = tiny_engine()
    longest = int(np.argmax(engine.data.lengths))
    inputs, _ = engine.data.collate(np.array([longest]))
    each = saved_bytes(engine.model, inputs) / engine.data.lengths[longest]
    monkeypatch.setattr(module, "free_bytes", lambda device: int(share * 2048 * each / module.SHARE) + 1)
    budget = token_budget(engine.model, engine.data, CPU)
    assert budget & (budget - 1) == 0
    assert share * 2048 / 2 < budget <= share * 2048 + 1


def test_plenty_of_memory_makes_passes_no_larger_than_is_fast(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 2**60)
    engine, _ = tiny_engine()
    assert engine.token_budget == module.MOST_TOKENS["cpu"]


def test_no_free_memory_at_all_still_gives_a_batch(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 0)
    engine, _ = tiny_engine()
    assert engine.token_budget == 1


def test_a_given_budget_is_kept(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 0)
    engine, _ = tiny_engine(token_budget=77)
    assert engine.token_budget == 77


def test_free_memory_is_found():
    assert 2**20 < free_bytes(CPU) < 2**50


def test_a_container_with_less_memory_than_its_machine_is_seen(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert module._container_bytes(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert module._container_bytes(tmp_path) == 2**62
    assert module._container_bytes(tmp_path / "none") == 2**62


def test_measuring_the_budget_leaves_gradients_and_the_random_state_alone():
    data = tiny_data()
    engine, _ = tiny_engine(data=data)
    before = torch.random.get_rng_state()
    token_budget(engine.model, data, CPU)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(p.grad is None for p in engine.model.parameters())


def test_a_pass_on_a_gpu_is_worth_more_padding():
    """Its host, or the least that its kernels take, costs as much as thousands of tokens."""
    cpu, gpu = (pass_tokens(torch.device(kind)) for kind in ("cpu", "cuda"))
    lengths = np.random.default_rng(0).integers(8, 64, 64)
    few, many = (len(physical_batches(lengths, 32768, None, more).batches) for more in (gpu, cpu))
    assert few == 1 < many
