"""Models that are cut, offloaded or wrapped are refused by name; those that each process holds whole are not."""

import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.utils import DistributedType
from ranks import on_ranks
from tiny import ledger, losses, participants, tiny_engine, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from ffalora.adapters import AdapterConfig, attach
from ffalora.privacy.noise import SeededNoise
from ffalora.trainer.terms import check_distribution
from ffalora.training.private_gradient import PrivateGradient

CPU = torch.device("cpu")


def _sharded(workers):
    engine, adapters = tiny_engine()
    mesh = init_device_mesh("cpu", (workers.size,))
    own = {p for p in engine.model.parameters() if p.requires_grad}
    for layer in engine.model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh, ignored_params=own)
    return engine.model, adapters, None  # the engine takes it: see test_sharded_base


def _tensor_parallel(workers):
    model = tiny_model()
    plan = {"intermediate.dense": ColwiseParallel()}
    parallelize_module(model.bert.encoder.layer[0], init_device_mesh("cpu", (workers.size,)), plan)
    return model, attach(model, AdapterConfig(rank=4, head="frozen", target_modules=["query", "value"])), None


def _wrapped(workers):
    engine, adapters = tiny_engine()
    engine.model = FullyShardedDataParallel(engine.model, use_orig_params=True, device_id=CPU)
    return engine.model, adapters, engine


CUT = {
    "FSDP2": (_sharded, "is a DTensor, cut over 2 processes"),
    "tensor parallelism": (_tensor_parallel, "is a DTensor, cut over 2 processes"),
    "FSDP": (_wrapped, "wrapped in FullyShardedDataParallel"),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", CUT)
def test_a_model_that_is_cut_over_processes_is_refused_by_name(name):
    make, said = CUT[name]

    def train(workers):
        model, adapters, engine = make(workers)
        with pytest.raises(ValueError, match=f"{said}.*let processes share the samples"):
            PrivateGradient(model, adapters, losses, ledger(0, 40, 8), 0.5, SeededNoise(0))
        if engine is not None:
            engine.workers = workers
            with pytest.raises(ValueError, match=said):
                engine.train(participants(1), torch.zeros(1, adapters.layout.width), 1)

    on_ranks(2, train)


@pytest.mark.parametrize(
    "offload", [lambda model, folder: cpu_offload(model, CPU), lambda model, folder: disk_offload(model, folder, CPU)]
)
def test_an_offloaded_model_is_refused_by_name(offload, tmp_path):
    engine, adapters = tiny_engine()
    offload(engine.model, tmp_path)
    with pytest.raises(ValueError, match="is on the meta device: offloaded"):
        engine.train(participants(1), torch.zeros(1, adapters.layout.width), 1)


def test_a_model_on_several_devices_or_in_data_parallel_is_refused_by_name():
    engine, adapters = tiny_engine()
    state = adapters.state()[None]
    whole, engine.model = engine.model, torch.nn.DataParallel(engine.model)
    with pytest.raises(ValueError, match="wrapped in DataParallel"):
        engine.train(participants(1), state, 1)
    engine.model = whole
    there = SimpleNamespace(
        device=torch.device("cuda", 1), dtype=torch.float32, requires_grad=False, data_ptr=lambda: 64
    )
    layer = whole.bert.encoder.layer[1]
    layer._parameters["elsewhere"] = there
    with pytest.raises(
        ValueError, match=r"on 2 devices \(bert.* on cpu, bert\.encoder\.layer\.1\.elsewhere on cuda:1\)"
    ):
        engine.train(participants(1), state, 1)
    del layer._parameters["elsewhere"]
    engine.train(participants(1), state, 1)


@pytest.mark.parametrize("kind", list(DistributedType))
def test_the_trainer_takes_plain_data_parallelism_and_names_all_else(kind):
    if kind.value in ("NO", "MULTI_GPU", "MULTI_CPU"):
        check_distribution(SimpleNamespace(distributed_type=kind))
        return
    with pytest.raises(ValueError, match=f"cannot keep its promise with {kind.value}"):
        check_distribution(SimpleNamespace(distributed_type=kind))
