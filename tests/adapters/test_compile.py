"""torch.compile sees the adapters as part of one graph and gives the numbers of eager mode."""

import shutil
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from adapter_cases import (
    adapted,
    poisoned_arena,
    relative_error,
    run_pass,
    text_batch,
    tiny_albert,
    tiny_bert,
    tiny_gpt2,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from ffalora.adapters import AdapterConfig, TrainingPass, attach, convert, load_adapters
from ffalora.data.tasks import classification_losses
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.noise import SeededNoise
from ffalora.training.private_gradient import PrivateGradient

BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")],
    ),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_losses(compiled, batch):
    logits = compiled(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_arena_of_a_compiled_model_equals_that_of_eager_mode(backend):
    adapters, batch = adapted(tiny_bert(layers=1), trained="both", head="trained"), text_batch()
    _, expected, squares = run_pass(adapters, lambda: compiled_losses(adapters.model, batch), 5)
    compiled = torch.compile(adapters.model, backend=backend, fullgraph=True)
    _, arena, own_squares = run_pass(adapters, lambda: compiled_losses(compiled, batch), 5)
    assert arena.abs().max() > 0
    assert relative_error(arena, expected) < 1e-5
    assert relative_error(own_squares, squares) < 1e-5


def test_a_compiled_model_gets_the_adapters_and_files_of_the_model_itself(tmp_path):
    batch, expected = text_batch(), adapted(tiny_bert(layers=1))
    compiled = torch.compile(tiny_bert(layers=1), backend="eager")
    compiled_losses(compiled, batch)  # what was compiled before knows no adapters
    adapters = adapted(compiled)
    assert torch.equal(adapters.state(), expected.state()) and adapters.layers.keys() == expected.layers.keys()
    adapters.save(tmp_path)
    losses = compiled_losses(compiled, batch)
    torch.testing.assert_close(losses, compiled_losses(expected.model, batch))
    torch.testing.assert_close(losses, compiled_losses(load_adapters(tiny_bert(layers=1), tmp_path).model, batch))


def test_a_compiled_model_of_peft_is_converted_under_its_own_names():
    theirs = peft.get_peft_model(tiny_bert(layers=1), peft.LoraConfig(r=3, target_modules=["query"]))
    adapters = convert(torch.compile(theirs, backend="eager"))
    assert list(adapters.layers) == ["bert.encoder.layer.0.attention.self.query"]


@pytest.mark.long
def test_an_adapter_used_several_times_keeps_all_its_uses_when_compiled():
    adapters, batch = adapted(tiny_albert(), target_modules=["query", "ffn"]), text_batch()
    adapters.count_uses({"input_ids": batch["input_ids"]})
    _, expected, _ = run_pass(adapters, lambda: compiled_losses(adapters.model, batch), 5)
    compiled = torch.compile(adapters.model, backend="aot_eager", fullgraph=True)
    _, arena, _ = run_pass(adapters, lambda: compiled_losses(compiled, batch), 5)
    assert relative_error(arena, expected) < 1e-5


@pytest.mark.long
def test_layers_with_a_transposed_weight_compile_into_one_graph():
    adapters, batch = adapted(tiny_gpt2()), text_batch()
    ids = batch["input_ids"]
    _, expected, _ = run_pass(adapters, lambda: adapters.model(input_ids=ids).logits.square().mean((1, 2)), 5)
    compiled = torch.compile(adapters.model, backend="aot_eager", fullgraph=True)
    _, arena, _ = run_pass(adapters, lambda: compiled(input_ids=ids).logits.square().mean((1, 2)), 5)
    assert arena.abs().max() > 0
    assert relative_error(arena, expected) < 1e-5


def test_ordinary_training_compiles_in_one_graph_with_equal_gradients():
    adapters, batch = adapted(tiny_bert(layers=1), trained="both"), text_batch()
    parameters = [adapters.layout.parameter(place) for place in adapters.layout.places]
    expected = torch.autograd.grad(compiled_losses(adapters.model, batch).sum(), parameters)
    compiled = torch.compile(adapters.model, backend="aot_eager", fullgraph=True)
    grads = torch.autograd.grad(compiled_losses(compiled, batch).sum(), parameters)
    for actual, wanted in zip(grads, expected, strict=True):
        assert relative_error(actual, wanted) < 1e-5


@pytest.mark.long
def test_neither_layers_nor_batches_of_other_sizes_compile_again():
    counter = CompileCounterWithBackend("eager")
    adapters = adapted(tiny_bert(layers=2))
    compiled = torch.compile(adapters.model, backend=counter, dynamic=True)
    for samples, length in ((5, 7), (4, 9), (6, 5), (3, 8), (5, 7)):
        batch = text_batch(samples, length, seed=length)
        _, arena, _ = run_pass(adapters, lambda b=batch: compiled_losses(compiled, b), samples)
        assert arena.isfinite().all()
    assert counter.frame_count <= 2, f"{counter.frame_count} graphs for five batches of one model"


@pytest.mark.long
def test_a_new_state_of_another_number_of_clients_is_read_by_the_compiled_model():
    adapters, batch = adapted(tiny_bert(layers=1)), text_batch(samples=4)
    compiled = torch.compile(adapters.model, backend="eager", dynamic=True)
    row = adapters.state()
    for factors in ([1.0, 2.0], [0.5, 1.0, 3.0]):
        state = torch.stack([row * f for f in factors])
        client = [i % len(factors) for i in range(4)]
        _, expected, _ = run_pass(adapters, lambda: compiled_losses(adapters.model, batch), 4, state, client)
        _, arena, _ = run_pass(adapters, lambda: compiled_losses(compiled, batch), 4, state, client)
        assert relative_error(arena, expected) < 1e-5


@pytest.mark.long
def test_a_compiled_pass_leaves_no_gradient_on_state_or_parameters():
    adapters, batch = adapted(tiny_bert(layers=1)), text_batch()
    arena, squares = poisoned_arena(adapters, 5)
    current = TrainingPass(adapters.state()[None], arena, squares, torch.zeros(5).int(), torch.arange(6).int(), 5)
    compiled = torch.compile(adapters.model, backend="aot_eager")
    with adapters.training_pass(current):
        compiled_losses(compiled, batch).sum().backward()
    assert current.state.grad is None or not current.state.grad.any()
    assert all(p.grad is None for p in adapters.model.parameters())


class OverParts(nn.Module):
    """One layer over every eight steps of a series, so that longer ones use it more often."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return SimpleNamespace(logits=self.head(sum(self.layer(part).tanh().sum(1) for part in x.split(8, 1))))


@pytest.mark.long
def test_a_compiled_layer_that_a_later_batch_uses_more_often_keeps_all_its_uses():
    torch.manual_seed(0)
    model = OverParts()
    adapters = attach(model, AdapterConfig(r=2, target_modules=["layer"], trained="both"))
    adapters.load_state_(torch.randn_like(adapters.state()))
    short, long, targets = torch.randn(4, 6, 8), torch.randn(4, 20, 8), torch.tensor([0, 1, 2, 0])
    gradients = []
    for called in (None, torch.compile(model, backend="aot_eager")):
        ledger = PrivacyLedger(0, 4, 1.0, 0.0, 1e-5, 2)
        private = PrivateGradient(model, adapters, classification_losses, ledger, 1e6, SeededNoise(1))
        private.step(0, [(np.arange(4), {"x": short}, targets)], called)
        gradients.append(private.step(1, [(np.arange(4), {"x": long}, targets)], called)[0])
    assert relative_error(gradients[1], gradients[0]) < 1e-5


@pytest.mark.long
def test_a_private_step_takes_a_compiled_model():
    adapters, batch = adapted(tiny_bert()), text_batch()
    targets = batch.pop("labels")
    gradients = []
    for model in (None, torch.compile(adapters.model, backend="aot_eager")):
        ledger = PrivacyLedger(0, 5, 1.0, 0.0, 1e-5, 1)
        private = PrivateGradient(adapters.model, adapters, classification_losses, ledger, 0.5, SeededNoise(1))
        gradients.append(private.step(0, [(np.arange(5), batch, targets)], model)[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
