"""``PrivateGradient`` with recorded passes: the gradients of passes that are run, and none is recorded that draws."""

import numpy as np
import pytest
import torch
from tiny import ledger, losses, tiny_data, tiny_engine

from ffalora.privacy.noise import SeededNoise
from ffalora.training.arena import GradientMissing
from ffalora.training.private_gradient import PrivateGradient

DATA = tiny_data(longest=12)
BY_LENGTH = np.argsort(DATA.lengths)


def gradient_of(recorder=None, dropout=0.0, adapter_dropout=0.0, training=True, **where):
    """A private gradient in training mode, as transformers' Trainer has it; with a recorder, as on a GPU."""
    engine, adapters = tiny_engine(**where)
    engine.model.train(training)
    set_dropout(engine.model, dropout)
    for layer in adapters.layers.values():
        layer.p_dropout = adapter_dropout
    private = PrivateGradient(engine.model, adapters, losses, ledger(0, 40, 8), 0.5, SeededNoise(1))
    if recorder is not None:
        private._record, private._standing = recorder, None
    return private


def set_dropout(model, p):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = p


def batches(step, longest=30):
    """Two physical batches of texts, none of them among the longest."""
    drawn = np.random.default_rng(step).choice(np.sort(BY_LENGTH[:longest]), 8, replace=False)
    return [(part, *DATA.collate(part)) for part in np.split(np.sort(drawn), 2)]


def take(private, step, given=None):
    """A step of the model by its gradient, and what it returned."""
    gradient, loss = private.step(step, given or batches(step))
    private.adapters.load_state_(private.adapters.state() - 0.05 * gradient)
    return gradient, loss


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_recorded_passes_are_those_of_passes_that_are_run(recorder, training):
    run, recorded = gradient_of(training=training), gradient_of(recorder, training=training)
    for step in range(12):
        (expected, loss), (found, its_loss) = (take(each, step) for each in (run, recorded))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert its_loss == pytest.approx(loss, rel=1e-4)
    assert len(recorder.made) > 1 and not recorded._graphs.refused
    assert (run.clipped, run.nonfinite) == (recorded.clipped, recorded.nonfinite)


@pytest.mark.parametrize("dropped", [{"dropout": 0.3}, {"adapter_dropout": 0.3}], ids=str)
def test_a_model_that_drops_out_is_run_as_it_is(recorder, dropped):
    run, recorded = gradient_of(**dropped), gradient_of(recorder, **dropped)
    for step in range(6):
        assert torch.equal(take(recorded, step)[0], take(run, step)[0])
    assert not recorder.made and not recorded._graphs._run


def test_dropout_that_is_turned_on_later_is_keyed_and_not_recorded(recorder, caplog):
    """Nothing of the model that is compared tells of it: the pass that is about to be recorded does."""
    run, recorded = gradient_of(), gradient_of(recorder)
    for step in range(8):
        for each in (run, recorded):
            take(each, step)
    made = len(recorder.made)
    longest = np.sort(BY_LENGTH[-6:])  # a shape that was not recorded while nothing dropped out
    for each in (run, recorded):
        set_dropout(each.model, 0.4)
    expected, found = (take(each, 8, [(longest, *DATA.collate(longest))])[0] for each in (run, recorded))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert len(recorder.made) == made and "draws at random" in caplog.text


def test_a_recorded_pass_that_misses_a_tensor_leaves_no_gradient(recorder, monkeypatch):
    private = gradient_of(recorder)
    for step in range(8):
        take(private, step)
    real = private._graphs.unwritten
    monkeypatch.setattr(private._graphs, "unwritten", lambda: ~real())
    with pytest.raises(GradientMissing):
        private.step(8, batches(8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_recorded_on_a_device_are_those_of_a_processor(dropout):
    run, recorded = gradient_of(dropout=dropout), gradient_of(dropout=dropout, device="cuda")
    for step in range(12):
        (expected, _), (found, _) = (take(each, step) for each in (run, recorded))
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)
    assert bool(recorded._graphs._passes) is (dropout == 0.0) and not recorded._graphs.refused
