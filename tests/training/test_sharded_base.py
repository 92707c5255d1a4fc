"""Processes that each hold a part of the frozen base end where one process ends that holds it whole."""

import os

import pytest
import tiny
import torch
from ranks import on_ranks
from tiny import participants, tiny_engine
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ffalora.models.shards import in_parts
from ffalora.training.token_budget import saved_bytes
from ffalora.training.workers import ALONE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CPU = torch.device("cpu")
CASES = {
    "private, many passes, merged weights asked for": ({"token_budget": 24, "merge_weights": True}, 1),
    "two clients, each layer clipped by itself": ({"privacy": {"clipping": "per-layer"}}, 2),
    "both factors, a trained head, adamw": (
        {"optimizer": {"name": "adamw", "lr": 0.01}, "trained": "both", "head": "trained"},
        1,
    ),
    "plain": ({"privacy": {"unit": "none", "noise_multiplier": None}, "token_budget": 24}, 2),
    "draws that leave processes without a sample": ({"optimizer": {"batch_size": 1}}, 1),
}


def _engine(workers, **options):
    """On several processes the base is cut before adapters are attached, as a run's is."""
    whole = tiny.tiny_model
    if workers.size > 1:
        tiny.tiny_model = lambda: in_parts(whole, lambda model: model.bert, CPU)
    try:
        return tiny.tiny_engine(workers=workers, **options)
    finally:
        tiny.tiny_model = whole


def _run(name, workers=ALONE):
    """State, ledgers' steps, the samples' number and mean loss, and the samples of each pass of this process."""
    options, clients = CASES[name]
    engine, adapters = _engine(workers, **options)
    passes = []
    engine.model.register_forward_pre_hook(
        lambda _, __, inputs: passes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    state = adapters.state().repeat(clients, 1)
    cohort = participants(clients, batch=engine.optimizer.batch_size)
    report = engine.train(cohort, state, 3)
    numbers = int(report.samples.sum()), float(report.losses.mean())
    return state, [one.ledger.steps_taken for one in cohort], numbers, passes


def _rms(found, expected):
    return float((found - expected).double().square().mean().sqrt() / expected.double().square().mean().sqrt())


@pytest.fixture(scope="module")
def processes():
    last = list(CASES)[-1]
    return {
        2: on_ranks(2, lambda workers: {name: _run(name, workers) for name in CASES}),
        3: on_ranks(3, lambda workers: {last: _run(last, workers)}),
    }


@pytest.mark.long
@pytest.mark.parametrize("name,size", [*((name, 2) for name in CASES), (list(CASES)[-1], 3)])
def test_processes_with_parts_of_the_base_end_where_one_ends_that_has_it_whole(processes, name, size):
    state, steps, numbers, _ = _run(name)
    found = [each[name] for each in processes[size]]
    for theirs, taken, counted, _ in found:
        assert _rms(theirs, state) <= 1e-5 and taken == steps
        assert torch.equal(theirs, found[0][0])
        assert counted == pytest.approx(numbers, rel=1e-4, nan_ok=True)


def test_all_take_as_many_passes_though_their_samples_make_more_of_some(processes):
    for found in processes.values():
        for name in found[0]:
            assert len({len(each[name][3]) for each in found}) == 1
    assert processes[2][0]["plain"][3] != processes[2][1]["plain"][3]


def _own_shards(engine, adapters, whole=True):
    """As a program of one's own does it: layers alone, the trained tensors left out or (wrongly) not."""
    mesh = init_device_mesh("cpu", (2,))
    own = {p for p in engine.model.parameters() if p.requires_grad} if whole else None
    for layer in engine.model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh, ignored_params=own)


def _program_of_ones_own(workers):
    engine, adapters = tiny_engine()
    _own_shards(engine, adapters)
    with pytest.raises(ValueError, match=r"cut over 2 processes .*, but 1 share the steps; give .*find_workers"):
        engine.train(participants(1), adapters.state()[None], 1)
    engine.workers = workers
    with pytest.raises(ValueError, match=r"first 1 samples of the largest client are too few"):
        engine.train(participants(1, samples=1, batch=1), adapters.state()[None], 1)
    state = adapters.state()[None]
    engine.train(participants(1), state, 2)
    other, theirs = tiny_engine()
    _own_shards(other, theirs, whole=False)
    other.workers = workers
    with pytest.raises(ValueError, match=r"is a DTensor, cut over 2 processes .*, and trained; .*ignored_params"):
        other.train(participants(1), torch.zeros(1, theirs.layout.width), 1)
    return state


def test_a_base_that_a_program_sharded_itself_trains_and_what_does_not_fit_is_refused_by_name():
    engine, adapters = tiny_engine()
    expected = adapters.state()[None]
    engine.train(participants(1), expected, 2)
    for state in on_ranks(2, _program_of_ones_own):
        assert _rms(state, expected) <= 1e-5


def _held(workers):
    """Bytes of the base and of its parts here, of its gathered weights after a step, and what a forward pass saves."""
    gathered = {}

    def keep(part, _):
        gathered.update({id(p): p.untyped_storage() for p in part.parameters() if type(p) is not DTensor})

    whole, engine = tiny.tiny_model(), _engine(workers)[0]
    inputs = engine.data.collate([0])[0]
    for part in (engine.model.bert, *engine.model.bert.encoder.layer):
        part.register_forward_pre_hook(keep)
    saved = saved_bytes(engine.model, inputs), saved_bytes(_engine(ALONE)[0].model, inputs)
    engine.train(participants(1), engine.adapters.state()[None], 1)
    own = {id(p) for p in engine.model.parameters() if type(p) is not DTensor}
    parts = [p.to_local().nbytes for p in engine.model.parameters() if type(p) is DTensor]
    left = {key: storage.nbytes() for key, storage in gathered.items() if key not in own}
    return sum(p.nbytes for p in whole.bert.parameters()), sum(parts), len(parts), left, saved


def test_each_process_holds_its_part_of_the_base_between_steps():
    for base, part, weights, left, (saved, expected) in on_ranks(2, _held):
        assert part == pytest.approx(base / 2, rel=0.02)
        assert len(left) == weights > 30 and not any(left.values())
        assert saved == expected
