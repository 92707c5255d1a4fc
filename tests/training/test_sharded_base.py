"""Processes that each hold a part of the frozen base end where one process ends that holds it whole."""

import gc
import os

import pytest
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
SIZES = (2, 3)
CASES = {
    "private, many passes": ({"token_budget": 24}, 1),
    "two clients, each layer clipped by itself": ({"privacy": {"clipping": "per-layer"}}, 2),
    "both factors, a trained head, adamw": (
        {"optimizer": {"name": "adamw", "lr": 0.01}, "trained": "both", "head": "trained"},
        1,
    ),
    "plain": ({"privacy": {"unit": "none", "noise_multiplier": None}, "token_budget": 24}, 2),
    "draws that leave processes without a sample": ({"optimizer": {"batch_size": 1}}, 1),
    "merged weights asked for": ({"merge_weights": True}, 1),
}


def _run(name, workers=ALONE, steps=3):
    """State, ledgers' steps, losses' mean, and samples collated for passes."""
    options, clients = CASES[name]
    engine, adapters = tiny_engine(**options)
    if workers.size > 1:
        _shard(engine, adapters)
    engine.workers = workers
    state = adapters.state().repeat(clients, 1)
    cohort = participants(clients, batch=engine.optimizer.batch_size)
    report = engine.train(cohort, state, steps)
    return state, [one.ledger.steps_taken for one in cohort], (int(report.samples.sum()), float(report.losses.mean()))


def _shard(engine, adapters):
    own = {factor for layer in adapters.trained_layers() for factor in layer.factors().values()}
    in_parts(lambda: engine.model, lambda model: (model, own), CPU)


def _rms(found, expected):
    return float((found - expected).double().square().mean().sqrt() / expected.double().square().mean().sqrt())


@pytest.fixture(scope="module")
def processes():
    return {size: on_ranks(size, lambda workers: {name: _run(name, workers) for name in CASES}) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_processes_with_parts_of_the_base_end_where_one_ends_that_has_it_whole(processes, name, size):
    state, steps, numbers = _run(name)
    found = [each[name] for each in processes[size]]
    for theirs, taken, counted in found:
        assert _rms(theirs, state) <= 1e-5 and taken == steps
        assert torch.equal(theirs, found[0][0])
        assert counted == pytest.approx(numbers, rel=1e-4, nan_ok=True)


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


def _bytes_in_memory():
    """Of all storages that tensors of this process hold."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and type(each) is not DTensor]
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t.device.type == "cpu"}
    return sum(storage.nbytes() for storage in storages.values())


def _held(workers):
    """Bytes of the base, what cutting it freed, and what training left beside that."""
    engine, adapters = tiny_engine()
    base = sum(p.nbytes for p in engine.model.parameters() if not p.requires_grad)
    base -= sum(f.nbytes for layer in adapters.layers.values() for f in layer.factors().values() if not f.requires_grad)
    whole = saved_bytes(engine.model, {k: v for k, v in engine.data.collate([0])[0].items()})
    state, before = adapters.state()[None], _bytes_in_memory()
    _shard(engine, adapters)
    engine.workers = workers
    parts = _bytes_in_memory()
    engine.train(participants(1), state, 1)
    ready = _bytes_in_memory()
    engine.train(participants(1), state, 1)
    after = _bytes_in_memory()
    saved = saved_bytes(engine.model, {k: v for k, v in engine.data.collate([0])[0].items()})
    return base, before - parts, after - ready, whole, saved


def test_each_process_holds_its_part_of_the_base_between_steps():
    for base, freed, grown, whole, saved in on_ranks(2, _held):
        assert freed == pytest.approx(base / 2, rel=0.02)
        assert grown < 0.05 * base and saved == whole
