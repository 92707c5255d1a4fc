"""Steps whose passes are recorded lose nothing that steps of passes that are run have: what is looked at, what is kept
from others, and what an error leaves behind.
"""

import numpy as np
import pytest
import torch
from tiny import losses, participants, tiny_engine

from ffalora.data.examples import Ragged, TokenizedDataset
from ffalora.training.arena import GradientMissing
from ffalora.training.detectors import UpdateWatch
from ffalora.training.graphs import PassGraphs
from ffalora.training.independence import SamplesNotIndependent
from ffalora.training.step import LogicalStep
from ffalora.training.workers import Workers

SHORT, LONG = 30, 10


def data():
    rng = np.random.default_rng(0)
    lengths = [4] * SHORT + [8] + [9] * (LONG - 1)
    rows = [rng.integers(1, 60, length).tolist() for length in lengths]
    return TokenizedDataset(Ragged(rows), rng.integers(0, 3, SHORT + LONG), pad_token_id=0)


def engine_of(recorder, drawn=None, **changes):
    """An engine that records, whose steps draw the same samples each (or those of ``drawn`` in turn)."""
    engine, adapters = tiny_engine(data=data(), **changes)
    if recorder is not None:
        engine.graphs = PassGraphs(engine.model, adapters, losses, engine.arena, engine.probe, recorder, 9)
    turns = iter(drawn or [])
    engine.sample = lambda participant: next(turns) if drawn else np.arange(8)
    return engine, adapters, adapters.state()[None].clone()


@pytest.mark.parametrize("records", [True, False])
def test_a_model_that_counts_padding_is_refused_at_the_first_batch_that_tells(recorder, records):
    long, mixed = np.arange(SHORT, SHORT + 8), np.r_[np.arange(7), SHORT + 1]
    drawn = [np.arange(8)] * 3 + [long] * 3 + [mixed] * 4  # of the long ones alone nothing can be told
    engine, _, state = engine_of(recorder if records else None, drawn)
    engine.probe.padding.has_told = False
    widths = []
    engine.model.register_forward_pre_hook(
        lambda model, args, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )

    def counted(model, args, output):
        output.logits = output.logits * (1 + 0.2 * widths[-1])
        return output

    engine.model.register_forward_hook(counted)
    client = participants(1)
    with pytest.raises(SamplesNotIndependent):
        engine.train(client, state, steps=10)
    assert client[0].steps_taken == 6


def test_a_collator_that_begins_to_repeat_samples_is_refused(recorder):
    engine, _, state = engine_of(recorder)
    engine.train(participants(1), state, steps=6)
    assert recorder.made
    collate, before = engine.data.collate, state.clone()
    engine.data.collate = lambda samples: collate(np.repeat(samples, 2))
    with pytest.raises(ValueError, match="a row for each is needed"):
        engine.train(participants(1), state, steps=1)
    assert torch.equal(state, before)


def test_a_batch_that_is_too_long_for_rotary_embeddings_is_refused(recorder):
    engine, _, state = engine_of(recorder)
    engine.train(participants(1), state, steps=6)
    engine.probe._rotary = ("rotary", "dynamic", 3)
    with pytest.raises(SamplesNotIndependent, match="more than 3 tokens"):
        engine.train(participants(1), state, steps=1)


def test_a_pass_that_fails_once_it_was_computed_is_counted_once(recorder):
    engine, _, state = engine_of(recorder)
    engine.train(participants(1), state, steps=6)
    (held,) = engine.graphs._passes.values()

    class Full:
        """The losses of a device that has no memory for a copy of them."""

        def copy_(self, found):
            pass

        def __getitem__(self, which):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    held.losses = Full()
    expected, _, other = engine_of(None)
    other.copy_(state)
    engine.train(participants(1, sigma=0.0), state, steps=1)
    expected.train(participants(1, sigma=0.0), other, steps=1)
    assert "memory" in engine.graphs.refused
    torch.testing.assert_close(state, other, rtol=1e-5, atol=1e-7)


class TwoProcesses(Workers):
    """As the first of two, of which the other has no samples; what was sent to it."""

    def __init__(self):
        super().__init__(0, 2)
        object.__setattr__(self, "sent", [])

    def add_up_(self, tensor):
        self.sent.append(tensor.clone())

    def gather(self, value):
        return [value, value]

    def same_for_all(self, value):
        return value

    def share(self, lengths):
        return np.arange(len(lengths))


def test_a_sum_that_misses_a_tensor_is_not_sent_to_other_processes(recorder):
    engine, adapters, state = engine_of(recorder)
    engine.workers = TwoProcesses()
    engine.train(participants(1), state, steps=6)
    assert recorder.made and len(engine.workers.sent) == 6
    list(adapters.layers.values())[-1].is_enabled = False
    with pytest.raises(GradientMissing):
        engine.train(participants(1), state, steps=1)
    assert len(engine.workers.sent) == 6


def test_an_interrupted_step_that_misses_a_tensor_is_taken_back_too(recorder, monkeypatch):
    engine, adapters, state = engine_of(recorder)
    engine.train(participants(1), state, steps=6)
    list(adapters.layers.values())[-1].is_enabled, before = False, state.clone()

    def interrupted(watch):
        raise KeyboardInterrupt

    monkeypatch.setattr(UpdateWatch, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.train(participants(1), state, steps=1)
    assert torch.equal(state, before)


def test_a_model_without_any_adapter_on_is_said_to_have_missed_its_tensors(recorder):
    engine, adapters, state = engine_of(recorder)
    engine.train(participants(1), state, steps=6)
    for layer in adapters.layers.values():
        layer.is_enabled = False
    with pytest.raises(GradientMissing):
        engine.train(participants(1), state, steps=1)


def test_what_is_recorded_has_run_as_the_model_stands(recorder):
    """Compiled kernels and workspaces of libraries cannot be made while a device records."""
    engine, _, state = engine_of(recorder)
    made = []
    for change in (None, lambda: engine.model.classifier.register_forward_hook(lambda module, x, y: 3 * y)):
        if change is not None:
            change()
        for _ in range(4):
            engine.train(participants(1), state, steps=1)
            made.append(len(recorder.made))
    before, after = made[:4], made[4:]
    assert before[-1] == 1 and after == [1, 2, 2, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_recorded_step_waits_for_the_device_by_its_results_alone(monkeypatch):
    engine, adapters = tiny_engine(device="cuda")
    state = adapters.state()[None].clone()
    engine.sample = lambda participant: np.arange(8)
    engine.train(participants(1), state, steps=6)
    assert engine.graphs._passes
    run, taken = LogicalStep.run, []

    def watched(*arguments):
        taken.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(taken) > 1 else "default")  # the first one is looked at besides
        try:
            run(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(LogicalStep, "run", watched)
    engine.train(participants(1), state, steps=5)
    assert len(taken) == 5
