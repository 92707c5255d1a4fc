"""``PrivateGradient`` with recorded passes: the gradients of passes that are run, and none is recorded that draws."""

import gc
import random
import weakref
from functools import partial

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


@pytest.mark.long
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


def test_dropout_that_is_turned_on_later_is_keyed_and_not_recorded(recorder):
    run, recorded = gradient_of(), gradient_of(recorder)
    for step in range(12):
        if step == 8:
            made = len(recorder.made)
            for each in (run, recorded):
                set_dropout(each.model, 0.4)
        (expected, _), (found, _) = (take(each, step) for each in (run, recorded))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(recorder.made) == made > 0 and not recorded._graphs._passes


def skipped(layer, forward, x, *rest, **named):
    return x if layer.training and random.random() < 0.0 else forward(x, *rest, **named)


def scaled(layer, forward, x, *rest, **named):
    return forward(x * (np.random.uniform(1.0, 1.0) if layer.training else 1.0), *rest, **named)


def left_out(layer, forward, x, *rest, **named):
    return x if layer.training else forward(x, *rest, **named)


@pytest.mark.parametrize("how", [skipped, scaled, left_out])
def test_a_model_that_is_another_one_in_each_pass_is_run_as_it_is(recorder, how):
    """Whatever draws outside torch, or leaves layers out in training."""
    private = gradient_of(recorder)
    private._recomputes, private._standing = False, None
    layer = private.model.bert.encoder.layer[1]
    layer.forward = partial(how, layer, layer.forward)
    for step in range(8):
        take(private, step)
    assert not recorder.made and private.ledger.steps_taken == 8
    assert "every time" in private._graphs.refused or private._draws


def test_recordings_and_their_arena_go_with_their_owner(recorder):
    """A device's memory does not wait for Python's collector."""
    gc.collect()
    gc.disable()
    try:
        private = gradient_of(lambda compute: compute() or weak(compute))
        for step in range(8):
            take(private, step)
        assert private._graphs._passes
        held = [weakref.ref(each) for each in (private._graphs, *private._graphs._passes.values())]
        private.model.eval()
        private._look_again()
        assert not any(each() for each in held)
        arena = weakref.ref(private._arena)
        del private
        assert arena() is None
    finally:
        gc.enable()


def weak(compute):
    """A replay that holds what it repeats no more than a graph of a device does."""
    found = weakref.WeakMethod(compute)
    return lambda: found()()


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
