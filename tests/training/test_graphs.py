"""Recorded passes: the same sums as passes that are run, for every size of batch, without a read from the device."""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from recorded import HostRead
from tiny import losses, participants, tiny_data, tiny_engine

from ffalora.data.examples import IGNORE_INDEX
from ffalora.privacy.accounting import PrivacyBudgetSpent
from ffalora.training import graphs, step
from ffalora.training.arena import GradientMissing
from ffalora.training.common_shapes import shared_size, widened
from ffalora.training.gradients import Clipping, segment_gradients
from ffalora.training.graphs import PassGraphs
from ffalora.training.optim import Moments
from ffalora.training.recorder import CudaRecorder
from ffalora.training.report import TrainingReport
from ffalora.training.results import StepResults
from ffalora.training.step import LogicalStep


def _recording(record, **changes):
    engine, adapters = tiny_engine(**changes)
    longest = int(engine.data.lengths.max())
    engine.graphs = PassGraphs(engine.model, adapters, losses, engine.arena, engine.probe, record, longest)
    return engine, adapters


@pytest.mark.long
@pytest.mark.parametrize("trained,head", [("b", "trained"), ("both", "frozen")])
@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
def test_recorded_steps_lead_to_the_state_of_steps_that_are_run(recorder, trained, head, clipping):
    states, clients = [], 1 if trained == "both" else 3
    for build in (tiny_engine, lambda **changes: _recording(recorder, **changes)):
        engine, adapters = build(trained=trained, head=head, privacy={"clipping": clipping})
        engine.arena.poison = True
        state = adapters.state()[None].repeat(clients, 1)
        report = engine.train(participants(clients), state, steps=24)
        states.append((state, report.norms, report.losses))
    assert len(recorder.made) > 1
    for run, recorded in zip(*states, strict=True):
        assert torch.allclose(run, recorded, rtol=1e-5, atol=1e-6)


def test_samples_that_fill_the_room_add_nothing_and_a_size_without_a_recording_shares_one(recorder):
    engine, adapters = _recording(recorder)
    state, groups = adapters.state()[None].clone(), torch.tensor([0, adapters.layout.width], dtype=torch.int32)
    clipping = Clipping(torch.full((1, 1), 0.5, dtype=torch.float64), groups, "flat")

    def sums(samples):
        total = torch.zeros(1, adapters.layout.width, dtype=torch.float64)
        inputs, targets = engine.data.collate(np.asarray(samples))
        inputs = {name: torch.nn.functional.pad(held, (0, 16 - held.shape[1])) for name, held in inputs.items()}
        found = engine.graphs.run(inputs, targets, np.zeros(len(samples), dtype=np.int64), state, total, clipping)
        return found, total

    (found_losses, norms), run = sums(range(5))
    assert len(found_losses) == len(norms) == 5 and not recorder.made, "what is seen for the first time is run"
    (found_losses, norms), five = sums(range(5))
    assert len(found_losses) == len(norms) == 5 and len(recorder.made) == 1
    assert torch.allclose(five, run, atol=1e-6)
    alone = sums([0])[1]
    assert len(recorder.made) == 1, "one sample and four copies"
    alone = alone + sum(sums([i])[1] for i in range(1, 5))
    assert len(recorder.made) == 2, "a size that comes again is recorded"
    assert torch.allclose(five, alone, atol=1e-6) and five.abs().max() > 1e-3


def test_a_sample_that_is_not_finite_fills_no_room(recorder):
    engine, adapters = _recording(recorder)
    state, groups = adapters.state()[None].clone(), torch.tensor([0, adapters.layout.width], dtype=torch.int32)
    clipping = Clipping(torch.full((1, 1), 0.5, dtype=torch.float64), groups, "flat")
    inputs, targets = engine.data.collate(np.arange(3))
    engine.graphs.losses = lambda output, y: losses(output, y.clamp(max=2)) * torch.where(y == 7, torch.nan, 1.0)
    total, rows = torch.zeros(1, adapters.layout.width, dtype=torch.float64), np.zeros(3, dtype=np.int64)
    targets[2] = 7
    engine.graphs.run(inputs, targets, rows, state, total, clipping)
    _, norms = engine.graphs.run(inputs, targets, rows, state, total, clipping)
    assert norms[:2].isfinite().all() and not norms[2].isfinite() and total.isfinite().all()


def test_a_pass_that_reads_from_the_device_is_noticed(recorder):
    engine, adapters = _recording(recorder)
    engine.graphs.losses = lambda output, y: losses(output, y) * float(output.logits.detach().abs().max() > 0)
    with pytest.raises(HostRead):
        engine.train(participants(1), adapters.state()[None].clone(), steps=12)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("operation not permitted when stream is capturing"), torch.OutOfMemoryError("CUDA out of memory.")],
    ids=["a read", "memory"],
)
def test_a_model_that_cannot_be_recorded_is_run_and_said_once(caplog, error):
    def refuse(compute):
        raise error

    engine, adapters = _recording(refuse)
    expected, other = tiny_engine()
    state, run = adapters.state()[None].clone(), other.state()[None].clone()
    engine.train(participants(1), state, steps=12)
    expected.train(participants(1), run, steps=12)
    assert torch.equal(state, run)
    assert [record.message for record in caplog.records] == [
        f"passes of this model are not recorded as CUDA graphs: {error}"
    ]


@pytest.fixture
def fake_cuda(monkeypatch, entered_devices):
    """torch.cuda as a recorder calls it; the devices that it was called on."""
    seen = []
    for name in ("Stream", "CUDAGraph", "graph_pool_handle", "stream", "synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    torch.cuda.stream.side_effect = lambda *_: seen.append(entered_devices[-1]) or nullcontext()
    torch.cuda.CUDAGraph.return_value.capture_begin.side_effect = lambda **_: seen.append(entered_devices[-1])
    return seen


def test_passes_are_recorded_on_the_device_that_they_run_on(fake_cuda, entered_devices):
    CudaRecorder(torch.device("cuda:1"))(lambda: fake_cuda.append(entered_devices[-1]))
    assert fake_cuda == ["cuda:1"] * 3 and entered_devices == ["cuda:0"]
    assert not torch.cuda.empty_cache.called, "what passes have used stays theirs"


@pytest.mark.parametrize("short", [1, 2])
def test_a_recording_that_finds_no_memory_has_what_is_cached_given_back(fake_cuda, short):
    tried = []

    def compute():
        tried.append(1)
        if len(tried) <= short:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with nullcontext() if short == 1 else pytest.raises(torch.OutOfMemoryError):
        CudaRecorder(torch.device("cuda:1"))(compute)
    assert len(tried) == 2 and torch.cuda.empty_cache.call_count == 1
    assert torch.cuda.CUDAGraph.return_value.capture_end.call_count == 2


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", [{}, {"name": "sgd", "momentum": 0.9}, {"name": "adamw"}], ids=str)
def test_a_recorded_pass_that_misses_a_tensor_changes_nothing(recorder, steps, optimizer):
    engine, adapters = _recording(recorder, optimizer=optimizer)
    state = adapters.state()[None].clone()
    moments = Moments.zeros(engine.optimizer, *state.shape)
    engine.train(participants(1), state, steps=12, moments=moments)
    last = list(adapters.layers.values())[-1]
    last.is_enabled, before = False, [each.clone() for each in (state, *moments.tensors().values())]
    with pytest.raises(GradientMissing, match=last.name):
        engine.train(participants(1), state, steps=steps, moments=moments)
    for now, then in zip((state, *moments.tensors().values()), before, strict=True):
        assert torch.equal(now, then)


def test_a_step_that_misses_a_tensor_is_the_last_one(recorder, monkeypatch):
    """The step after it has been charged and passed through the model when the host reads of it; it updates nothing."""
    engine, adapters = _recording(recorder)
    state, client = adapters.state()[None].clone(), participants(1)
    engine.train(client, state, steps=12)
    real, missed, states = engine.graphs.unwritten, [], []

    def unwritten():
        states.append(state.clone())
        missed.append(1)
        return real() | torch.tensor(len(missed) == 3)

    monkeypatch.setattr(engine.graphs, "unwritten", unwritten)
    with pytest.raises(GradientMissing):
        engine.train(client, state, steps=6)
    assert len(missed) == 4 and client[0].ledger.steps_taken == 12 + 4
    assert not torch.equal(states[1], states[2]), "two steps were taken"
    assert torch.equal(states[2], states[3]) and torch.equal(states[3], state)


def test_results_of_a_step_are_read_while_the_next_one_is_under_way(monkeypatch):
    engine, adapters = tiny_engine()
    order, run, read = [], LogicalStep.passes, StepResults.read
    monkeypatch.setattr(LogicalStep, "passes", lambda *arguments: order.append("passes") or run(*arguments))
    monkeypatch.setattr(StepResults, "read", lambda results: order.append("read") or read(results))
    engine.train(participants(1), adapters.state()[None].clone(), steps=3)
    assert order == ["passes", "passes", "read", "passes", "read", "read"]
    order.clear()
    engine.train(participants(1), adapters.state()[None].clone(), steps=2, on_step=lambda number: order.append(number))
    assert order == ["passes", "read", 0, "passes", "read", 1], "whoever is called after a step finds its report"


def test_a_refused_step_leaves_the_report_of_those_before(monkeypatch):
    engine, adapters = tiny_engine()
    client, report = participants(1), TrainingReport(1)
    client[0].ledger.max_steps = 3
    with pytest.raises(PrivacyBudgetSpent):
        engine.train(client, adapters.state()[None].clone(), 5, report=report, index=torch.tensor([0]))
    assert client[0].steps_taken == 3
    expected, other = tiny_engine()[0], participants(1)
    assert report.numbers() == expected.train(other, adapters.state()[None].clone(), 3).numbers()


def test_recordings_of_tensors_that_moved_are_dropped(recorder):
    engine, adapters = _recording(recorder)
    state = adapters.state()[None].clone()
    engine.train(participants(1), state, steps=12)
    made = len(recorder.made)
    weight = engine.model.bert.embeddings.word_embeddings.weight
    weight.data = weight.data.clone()
    engine.train(participants(1), state, steps=12)
    assert len(recorder.made) > made


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("trained", ["b", "both"])
def test_graphs_on_a_device_lead_to_the_state_of_steps_that_are_run(trained):
    states = []
    for recorded in (True, False):
        engine, adapters = tiny_engine(trained=trained, head="trained", device="cuda", cuda_graphs=recorded)
        state = adapters.state()[None].clone()
        engine.train(participants(1), state, steps=30)
        states.append(state)
        assert not recorded or (engine.graphs._passes and not engine.graphs.refused)
    assert torch.allclose(*states, rtol=1e-4, atol=1e-5)


def test_dropout_and_packing_are_run_as_they_are():
    engine, adapters = tiny_engine()
    assert not engine.may_record, "the probe has not looked yet"
    engine.train(participants(1), adapters.state()[None].clone(), steps=4)
    assert engine.may_record
    engine.packed = True
    assert not engine.may_record
    engine.packed = False
    engine.model.train()
    engine.check_model()
    assert not engine.may_record


@pytest.mark.parametrize("change,passes", [("nothing", 0), ("training mode", 2), ("a hook", 0)])
def test_a_model_that_changes_between_steps_is_run_as_it_is(recorder, monkeypatch, change, passes):
    engine, adapters = _recording(recorder, optimizer={"batch_size": 40})
    state, clients, run = adapters.state()[None].clone(), participants(1, batch=40), []
    engine.train(clients, state, steps=6)

    def changed(number):
        if number == 0 and change == "training mode":
            engine.model.train()
        if number == 0 and change == "a hook":
            engine.model.classifier.register_forward_hook(lambda module, x, y: 3 * y)

    def counted(*arguments, **named):
        run.append(1)
        return segment_gradients(*arguments, **named)

    monkeypatch.setattr(step, "segment_gradients", counted)
    recordings = len(recorder.made)
    engine.train(clients, state, steps=3, on_step=changed)
    assert (len(run), len(recorder.made) - recordings) == (passes, int(change == "a hook"))


def test_a_merged_adapter_is_refused_although_its_passes_were_recorded(recorder):
    engine, adapters = _recording(recorder)
    state, clients = adapters.state()[None].clone(), participants(1)
    engine.train(clients, state, steps=12)
    assert engine.graphs._passes
    adapters.merge()
    with pytest.raises(RuntimeError, match="unmerge"):
        engine.train(clients, state, steps=1)


def test_room_is_at_most_an_eighth_more_than_the_samples_and_eight_tokens():
    for count in range(1, 5000):
        assert count <= shared_size(count) <= count * 9 / 8
        assert count <= shared_size(count, 8) <= max(count + 7, count * 9 / 8)
    assert shared_size(4) == 4
    assert len({shared_size(samples) for samples in range(200, 300)}) <= 6


@pytest.mark.parametrize(("trained", "clients"), [("b", 1), ("both", 1), ("b", 2)])
def test_recorded_steps_without_privacy_lead_to_the_state_of_steps_that_are_run(recorder, trained, clients):
    """One client's passes are recorded; those of several together are run."""
    states = []
    for build in (tiny_engine, lambda **changes: _recording(recorder, **changes)):
        engine, adapters = build(trained=trained, head="trained", privacy={"unit": "none"})
        engine.arena.poison = True
        state = adapters.state()[None].repeat(clients, 1)
        report = engine.train(participants(clients), state, steps=12)
        states.append((state, report.norms, report.losses))
    assert bool(recorder.made) is (clients == 1)
    for run, recorded in zip(*states, strict=True):
        assert torch.allclose(run, recorded, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("task", ["classes", "tokens"])
def test_texts_of_many_lengths_share_a_few_recordings(recorder, task):
    """More padding than the longest text needs changes no gradient, and nothing is padded beyond the longest of all."""
    engine, adapters = _recording(recorder, data=tiny_data(longest=30))
    state, groups = adapters.state()[None].clone(), torch.tensor([0, adapters.layout.width], dtype=torch.int32)
    clipping, rows = Clipping(torch.full((1, 1), 0.5, dtype=torch.float64), groups, "flat"), np.zeros(4, dtype=np.int64)
    widths = []

    def per_token(output, targets):
        widths.append(targets.shape[1])
        found = torch.nn.functional.cross_entropy(output.logits, targets.clamp(min=0)[:, 0] % 3, reduction="none")
        return found * (targets != IGNORE_INDEX).sum(1)

    if task == "tokens":
        engine.graphs.losses = per_token
    totals = {}
    for recorded in (False, True):
        engine.graphs._seen.clear()
        for start in range(36):
            inputs, targets = engine.data.collate(np.arange(start, start + 4))
            if task == "tokens":
                targets = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
            total = torch.zeros(1, adapters.layout.width, dtype=torch.float64)
            if recorded:
                engine.graphs.run(inputs, targets, rows, state, total, clipping)
                total.zero_()
                engine.graphs.run(inputs, targets, rows, state, total, clipping)
            else:
                found = segment_gradients(
                    engine.model, adapters, engine.graphs.losses, inputs, targets, state=state, rows=rows
                )
                found.clip_into_(total, *clipping)
            totals.setdefault(start, []).append(total)
    assert len(recorder.made) == len(engine.graphs._passes) <= 4  # lengths; all batches have one size
    assert not widths or max(widths) == engine.data.lengths.max()
    for run, recorded in totals.values():
        assert torch.allclose(run, recorded, rtol=1e-5, atol=1e-6) and run.abs().max() > 1e-3


def test_a_batch_without_padding_needs_no_mask(recorder):
    engine, adapters = _recording(recorder, data=tiny_data(longest=3))
    seen = []
    plain = engine.model.bert.forward
    engine.model.bert.forward = lambda *args, **kwargs: (
        seen.append(kwargs.get("attention_mask")),
        plain(*args, **kwargs),
    )[1]
    engine.train(participants(1), adapters.state()[None].clone(), steps=24)
    assert seen[0] is not None and seen.count(None) >= 2


def test_a_training_goes_on_once_the_tensor_that_was_missed_is_used_again(recorder):
    engine, adapters = _recording(recorder)
    state = adapters.state()[None].clone()
    engine.train(participants(1), state, steps=12)
    last = list(adapters.layers.values())[-1]
    last.is_enabled = False
    with pytest.raises(GradientMissing):
        engine.train(participants(1), state, steps=1)
    last.is_enabled = True
    before = state.clone()
    engine.train(participants(1), state, steps=1)
    assert not torch.equal(state, before)


@pytest.mark.parametrize("longest,left_out", [(3, True), (9, False)])
def test_masks_are_left_out_of_recordings_of_whole_texts_alone(recorder, monkeypatch, longest, left_out):
    engine, adapters = _recording(recorder, data=tiny_data(longest=longest))
    entered = []
    monkeypatch.setattr(graphs, "without_masks", lambda: entered.append(1) or nullcontext())
    engine.train(participants(1), adapters.state()[None].clone(), steps=24)
    assert recorder.made and bool(entered) is left_out


PADDED = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
IDS = PADDED * 7 + (1 - PADDED) * 3
WIDENED = {
    "texts": ({"input_ids": IDS, "attention_mask": PADDED}, torch.tensor([0, 1]), True),
    "targets of tokens": (
        {"input_ids": IDS, "attention_mask": PADDED}, IDS.masked_fill(PADDED == 0, IGNORE_INDEX), True,
    ),
    "no padding": ({"input_ids": IDS, "attention_mask": torch.ones_like(PADDED)}, torch.tensor([0, 1]), False),
    "padding on the left": ({"input_ids": IDS, "attention_mask": PADDED.flip(1)}, torch.tensor([0, 1]), False),
    "other inputs": ({"x": IDS, "attention_mask": PADDED}, torch.tensor([0, 1]), False),
    "a mask of pairs": ({"input_ids": IDS, "attention_mask": PADDED[:, None].expand(2, 9, 9)}, torch.zeros(2), False),
    "several labels": ({"input_ids": IDS, "attention_mask": PADDED}, torch.ones(2, 9, dtype=torch.long), False),
    "several scores": ({"input_ids": IDS, "attention_mask": PADDED}, torch.zeros(2, 9), False),
    "other targets": ({"input_ids": IDS, "attention_mask": PADDED}, torch.zeros(2, 4), False),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDENED)
def test_only_what_is_known_to_be_padded_text_is_padded_further(name):
    inputs, targets, is_widened = WIDENED[name]
    wider, more = widened(inputs, targets, longest=64)
    if not is_widened:
        assert wider is inputs and more is targets
        return
    assert wider["input_ids"].shape == wider["attention_mask"].shape == (2, 16)
    assert (wider["input_ids"][:, 9:] == 3).all() and (wider["attention_mask"][:, 9:] == 0).all()
    assert (more[:, 9:] == IGNORE_INDEX).all() if more.dim() == 2 else more is targets
    assert widened(inputs, targets, longest=9)[0] is inputs


def test_no_more_recordings_are_kept_than_are_allowed(recorder, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_RECORDINGS", 2)
    engine, adapters = _recording(recorder)
    engine.train(participants(1), adapters.state()[None].clone(), steps=40)
    assert len(recorder.made) > len(engine.graphs._passes) == 2


def test_a_step_is_cut_by_what_a_pass_costs_on_its_device(monkeypatch):
    engine, adapters = tiny_engine(data=tiny_data(longest=30))
    passes, counts = [], {}
    monkeypatch.setattr(
        step, "segment_gradients", lambda *given, **named: passes.append(1) or segment_gradients(*given, **named)
    )
    for cost in (0, 10**6):
        passes.clear()
        monkeypatch.setattr(step, "pass_tokens", lambda device, cost=cost: cost)
        engine.train(participants(1), adapters.state()[None].clone(), steps=4)
        counts[cost] = len(passes)
    assert counts[10**6] <= 4 < counts[0]
