"""Other adapters with frozen random factors: exact gradients, exact averages, private steps, files, merging."""

import math

import pytest
import torch
from adapter_cases import one_at_a_time, relative_error, run_pass, sample_losses, text_batch, tiny_bert, tiny_gpt2

from ffalora.adapters import AdapterConfig, CheckpointError, attach, load_adapters
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.noise import SeededNoise
from ffalora.training.private_gradient import PrivateGradient

METHODS = ["vera", "loha", "lokr", "bottleneck"]
WEIGHTS = ["vera", "loha", "lokr"]


def variant(method, model=None, seed=3, **config):
    adapters = attach(model or tiny_bert(), AdapterConfig(method=method, rank=4, alpha=8, **config))
    randomise(adapters, seed)
    return adapters


def randomise(adapters, seed=3):
    generator = torch.Generator().manual_seed(seed)
    adapters.load_state_(0.3 * torch.randn(adapters.layout.width, generator=generator))


def classify(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_variant_does_not_change_the_outputs(method):
    model, batch = tiny_bert(), text_batch()
    before = classify(model, batch)
    adapters = attach(model, AdapterConfig(method=method, rank=4))
    assert torch.equal(classify(model, batch), before)
    assert adapters.layout.size == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(6,), (1, 6), (0, 6), (2, 0, 6)])
def test_a_variant_takes_a_single_token_and_none(method, shape):
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 8)), torch.randn(4, 6)
    variant(method, model, target_modules=["0"])
    tokens = math.prod(shape[:-1])
    torch.testing.assert_close(model(x[:tokens].reshape(shape)), model(x)[:tokens].reshape(*shape[:-1], 8))


@pytest.mark.parametrize("method", METHODS)
def test_arena_rows_of_a_variant_equal_single_samples(method):
    adapters, batch = variant(method), text_batch()
    _, arena, squares = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5)
    assert arena.isfinite().all()
    assert relative_error(arena, one_at_a_time(adapters, batch)[1]) < 1e-5
    torch.testing.assert_close(squares.sum(1), arena.double().square().sum(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_clients_of_a_variant_train_in_one_pass_as_alone(method):
    adapters, batch = variant(method), text_batch(samples=6)
    row = adapters.state()
    state, client = torch.stack([row, 2 * row, -row]), [0, 0, 1, 2, 2, 2]
    _, together, _ = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 6, state, client)
    for c in range(3):
        rows = [i for i, owner in enumerate(client) if owner == c]
        alone = {k: v[rows] for k, v in batch.items()}
        adapters.load_state_(state[c])
        assert relative_error(together[rows], one_at_a_time(adapters, alone)[1]) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_gradients_agree_with_autograd_in_float64(method):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8)).double()
    adapters = attach(model, AdapterConfig(method=method, rank=2, target_modules=["0"]))
    model.double()
    layer, x = adapters.layers["0"], torch.randn(3, 6).double().requires_grad_()
    theta = torch.randn_like(layer.theta)

    def function(x, theta):
        layer._parameters["theta"] = theta
        return layer(x)

    assert torch.autograd.gradcheck(function, (x, theta.requires_grad_()))


@pytest.mark.parametrize("method", WEIGHTS)
def test_the_average_of_clients_is_the_average_of_their_weights(method):
    adapters = variant(method)
    rows = [torch.randn(adapters.layout.width) for _ in range(3)]
    deltas = []
    for row in [*rows, torch.stack(rows).mean(0)]:
        adapters.load_state_(row)
        deltas.append(torch.stack([layer.delta().detach() for layer in adapters.layers.values()]))
    assert relative_error(deltas[3], torch.stack(deltas[:3]).mean(0)) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_the_average_of_clients_is_the_average_of_their_outputs_of_a_layer(method):
    layer = next(iter(variant(method).layers.values()))
    x, thetas, outputs = torch.randn(4, 5, 16), [torch.randn_like(layer.theta) for _ in range(3)], []
    for theta in [*thetas, torch.stack(thetas).mean(0)]:
        with torch.no_grad():
            layer.theta.copy_(theta)
        outputs.append(layer(x).detach())
    assert relative_error(outputs[3], torch.stack(outputs[:3]).mean(0)) < 1e-6


@pytest.mark.parametrize("method", WEIGHTS)
def test_merging_a_variant_keeps_the_outputs(method):
    for model in (tiny_bert(), tiny_gpt2()):
        adapters, batch = variant(method, model, target_modules="all-linear"), text_batch()
        before = classify(model, batch)
        adapters.merge()
        assert relative_error(classify(model, batch), before) < 1e-5
        adapters.unmerge()
        assert relative_error(classify(model, batch), before) < 1e-5


def test_a_bottleneck_cannot_be_merged():
    with pytest.raises(ValueError, match="cannot be merged"):
        variant("bottleneck").merge()


@pytest.mark.parametrize("method", METHODS)
def test_a_private_step_of_a_variant_passes_the_detectors_and_adds_noise(method):
    adapters, batch = variant(method), text_batch()
    labels = batch.pop("labels")

    def losses(output, targets):
        return torch.nn.functional.cross_entropy(output.logits, targets, reduction="none")

    rows = []
    for sigma in (0.0, 2.0):
        ledger = PrivacyLedger(0, 50, 0.1, sigma, 1e-5, 3)
        private = PrivateGradient(adapters.model, adapters, losses, ledger, 0.1, SeededNoise(1))
        private._arena.poison = True
        rows.append(private.step(0, [(range(len(labels)), batch, labels)])[0])
    assert rows[0].isfinite().all() and 0 < rows[0].norm() <= 5 * 0.1 / 5 * 1.001
    index = adapters.layout.parameter_index()
    noise = rows[1] - rows[0] if index is None else (rows[1] - rows[0])[index >= 0]
    assert noise.std().item() == pytest.approx(2.0 * 0.1 / 5, rel=0.35)


@pytest.mark.parametrize("method", METHODS)
def test_a_variant_s_file_holds_what_was_trained_and_nothing_frozen(method, tmp_path):
    adapters, batch = variant(method, seed=9), text_batch()
    adapters.save(tmp_path)
    expected = classify(adapters.model, batch)
    again = load_adapters(tiny_bert(), tmp_path)
    assert torch.equal(again.state(), adapters.state())
    torch.testing.assert_close(classify(again.model, batch), expected)
    assert not (tmp_path / "adapter_config.json").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_variant_of_a_model_inside_another_is_loaded_with_its_frozen_factors_or_refused(method, tmp_path):
    wrapper, batch = torch.nn.ModuleDict({"encoder": tiny_bert()}), text_batch()
    variant(method, wrapper, target_modules=["query", "value"]).save(tmp_path, root="encoder")
    expected = classify(wrapper["encoder"], batch)
    again = load_adapters(torch.nn.ModuleDict({"encoder": tiny_bert()}), tmp_path, root="encoder")
    torch.testing.assert_close(classify(again.model["encoder"], batch), expected)
    try:
        alone = load_adapters(tiny_bert(), tmp_path)
    except CheckpointError as refused:
        assert method != "vera" and "saved with root='encoder', but root=''" in str(refused)
    else:
        torch.testing.assert_close(classify(alone.model, batch), expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", [{"trained": "both"}, {"dropout": 0.1}, {"init": "pissa"}])
def test_a_variant_refuses_what_would_make_it_inexact(method, change):
    with pytest.raises(ValueError, match="zero factor alone"):
        AdapterConfig(method=method, **change)


def test_variants_of_convolutions_are_refused():
    with pytest.raises(ValueError, match="Conv2d"):
        attach(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), AdapterConfig(method="vera", target_modules=["0"]))
