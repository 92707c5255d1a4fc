"""Faults that frameworks swallow, made on purpose: each must be named, and nothing sound may raise the alarm."""

import copy

import numpy as np
import peft
import pytest
import torch
from tiny import ledger, losses, participants, tiny_data, tiny_engine, tiny_model
from torch import nn

from ffalora.adapters import convert
from ffalora.privacy.noise import SeededNoise
from ffalora.training import gradients
from ffalora.training import step as step_module
from ffalora.training.arena import GradientMissing
from ffalora.training.detectors import Standing, StorageParted, UpdateLost
from ffalora.training.independence import SamplesNotIndependent
from ffalora.training.participant import Participant
from ffalora.training.private_gradient import PrivateGradient

_QUERY = "bert.encoder.layer.0.attention.self.query"


def _train(engine, adapters, clients=None, steps=1, **options):
    clients = clients or participants(1)
    state = adapters.state().repeat(len(clients), 1)
    engine.train(clients, state, steps, **options)
    return state


# ---- storage that parted ---------------------------------------------------------------------------------------------


def test_a_model_copied_after_its_adapters_is_refused():
    engine, adapters = tiny_engine()
    engine.model = copy.deepcopy(engine.model)
    with pytest.raises(StorageParted, match=r"query of these adapters is not a module of this model"):
        _train(engine, adapters)


def test_an_adapter_whose_layer_was_put_back_is_named():
    engine, adapters = tiny_engine()
    engine.model.bert.encoder.layer[0].attention.self.query = adapters.layers[_QUERY].base_layer
    with pytest.raises(StorageParted, match=_QUERY):
        _train(engine, adapters)


def test_a_layer_replaced_by_its_copy_is_refused():
    engine, adapters = tiny_engine()
    twin = copy.deepcopy(adapters.layers[_QUERY])
    engine.model.bert.encoder.layer[0].attention.self.query = twin
    adapters.layers[_QUERY] = twin
    with pytest.raises(StorageParted, match="training pass somewhere else"):
        _train(engine, adapters)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
def test_a_cast_of_the_whole_model_is_refused(cast):
    engine, adapters = tiny_engine()
    engine.model.to(cast)
    with pytest.raises(StorageParted, match="trained tensors are float32"):
        _train(engine, adapters)


def test_a_model_moved_after_the_engine_was_made_is_refused():
    engine, adapters = tiny_engine()
    state = adapters.state()[None]
    engine.model.to("meta")
    with pytest.raises(StorageParted, match="moved after the engine was made"):
        engine.train(participants(1), state, 1)


def test_moving_to_where_the_model_is_already_raises_no_alarm():
    engine, adapters = tiny_engine()
    engine.model.to("cpu").float()
    assert not torch.equal(_train(engine, adapters)[0], adapters.state())


def test_two_adapters_over_one_memory_are_refused():
    engine, adapters = tiny_engine()
    first, second = list(adapters.layers.values())[:2]
    second.lora_B = nn.Parameter(first.lora_B.data)
    with pytest.raises(StorageParted, match="is trained, and its memory is also that of"):
        _train(engine, adapters)


def test_a_pass_that_reads_a_copy_of_the_state_is_refused(monkeypatch):
    engine, adapters = tiny_engine()

    class CopyingPass(gradients.TrainingPass):
        def __post_init__(self):
            self.state = self.state.clone()
            super().__post_init__()

    monkeypatch.setattr(gradients, "TrainingPass", CopyingPass)
    with pytest.raises(StorageParted, match="reads a copy of the state"):
        _train(engine, adapters)


# ---- steps that change nothing ---------------------------------------------------------------------------------------


def _lossy(monkeypatch, keep=None):
    """An optimiser that writes into a copy; ``keep`` are columns that it writes back."""
    real = step_module.privatize_step_

    def step(state, total, **options):
        copied = state.clone()
        real(copied, total, **options)
        if keep is not None:
            state[:, keep] = copied[:, keep]

    monkeypatch.setattr(step_module, "privatize_step_", step)


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9}, {"name": "adamw", "lr": 0.01}])
@pytest.mark.parametrize("trained", ["b", "a", "both"])
@pytest.mark.parametrize("unit", ["none", "sample"])
def test_an_optimiser_that_updates_a_copy_is_seen(monkeypatch, unit, trained, optimizer):
    privacy = {} if unit == "sample" else {"unit": "none", "noise_multiplier": None}
    engine, adapters = tiny_engine(trained, optimizer=optimizer, privacy=privacy)
    clients = participants(1) if unit == "sample" else [Participant(0, np.arange(40))]
    _train(engine, adapters, clients)
    _lossy(monkeypatch)
    with pytest.raises(UpdateLost, match=f"of {adapters.layout.slots} trained tensors"):
        _train(engine, adapters, participants(1) if unit == "sample" else clients)


def test_a_single_tensor_left_out_of_the_update_is_seen_and_named(monkeypatch):
    engine, adapters = tiny_engine(head="trained")
    forgotten = adapters.layout.places[3]
    keep = torch.ones(adapters.layout.width, dtype=torch.bool)
    keep[forgotten.start : forgotten.start + forgotten.size] = False
    _lossy(monkeypatch, keep)
    with pytest.raises(UpdateLost, match=rf"1 of \d+ trained tensors.*{forgotten.name}"):
        _train(engine, adapters)


@pytest.mark.parametrize("trained", ["b", "a", "both"])
def test_a_factor_that_backward_never_reaches_is_seen_and_named(trained):
    engine, adapters = tiny_engine(trained)
    layer = adapters.layers[_QUERY]
    layer.forward = lambda x: layer.base_layer(x)
    state = adapters.state()[None]
    with pytest.raises(GradientMissing, match=_QUERY):
        engine.train(participants(1), state, 1)
    assert torch.equal(state[0], adapters.state())


# ---- no false alarms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9}, {"name": "adamw"}])
@pytest.mark.parametrize("unit", ["none", "sample"])
def test_a_learning_rate_of_zero_raises_no_alarm(unit, optimizer):
    privacy = {} if unit == "sample" else {"unit": "none", "noise_multiplier": None}
    engine, adapters = tiny_engine(optimizer=optimizer, privacy=privacy)
    clients = participants(1) if unit == "sample" else [Participant(0, np.arange(40))]
    state = _train(engine, adapters, clients, steps=2, lr_factors=[0.0, 0.0])
    assert torch.equal(state[0], adapters.state())


def test_an_a_whose_b_is_still_zero_raises_no_alarm():
    engine, adapters = tiny_engine("a", privacy={"unit": "none", "noise_multiplier": None})
    for layer in adapters.layers.values():
        layer.lora_B.data.zero_()
    state = _train(engine, adapters, [Participant(0, np.arange(40))])
    assert torch.equal(state[0], adapters.state())


def test_a_gradient_of_zero_raises_no_alarm():
    engine, adapters = tiny_engine(privacy={"unit": "none", "noise_multiplier": None})
    engine.losses = lambda output, targets: 0.0 * losses(output, targets)
    state = _train(engine, adapters, [Participant(0, np.arange(40))])
    assert torch.equal(state[0], adapters.state())


def test_columns_that_a_client_does_not_have_raise_no_alarm():
    engine, adapters = tiny_engine()
    lacks = adapters.layout.places[2]
    mask = torch.ones(1, adapters.layout.width, dtype=torch.bool)
    mask[:, lacks.start : lacks.start + lacks.size] = False
    adapters.layout.parameter(lacks).data.zero_()
    state = _train(engine, adapters, mask=mask)
    assert not state[0, ~mask[0]].any()


def test_empty_draws_and_rates_below_rounding_raise_no_alarm():
    engine, adapters = tiny_engine(optimizer={"lr": 1e-12})
    _train(engine, adapters)
    engine, adapters = tiny_engine()
    _train(engine, adapters, [Participant(0, np.arange(40), ledger(0, 40, 1e-9))])


# ---- updates that broke ----------------------------------------------------------------------------------------------


def test_a_row_that_diverged_leaves_the_rows_beside_it_sound():
    engine, adapters = tiny_engine()
    clients = participants(2)
    clients[0].lr = 1e40
    state = _train(engine, adapters, clients, steps=4)
    assert not state[0].isfinite().all()
    assert state[1].isfinite().all()


CHANGES = {
    "nothing": lambda model, adapters: None,
    "a hook on outputs": lambda model, adapters: model.classifier.register_forward_hook(lambda m, x, y: 3 * y),
    "a hook on inputs": lambda model, adapters: model.classifier.register_forward_pre_hook(lambda m, x: x),
    "a hook on gradients": lambda model, adapters: model.classifier.register_full_backward_hook(lambda m, x, y: None),
    "a hook before gradients": lambda model, adapters: model.classifier.register_full_backward_pre_hook(
        lambda m, y: None
    ),
    "another forward pass": lambda model, adapters: setattr(model.classifier, "forward", lambda x: x),
    "attention": lambda model, adapters: model.set_attn_implementation("eager"),
    "merged": lambda model, adapters: adapters.merge(),
    "off": lambda model, adapters: [setattr(layer, "is_enabled", False) for layer in adapters.layers.values()],
    "scale": lambda model, adapters: [setattr(layer, "scale", 9.0) for layer in adapters.layers.values()],
    "dropout": lambda model, adapters: [setattr(layer, "p_dropout", 0.5) for layer in adapters.layers.values()],
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_computes_something_else_stands_otherwise(change, wrapped):
    if wrapped and change in ("scale", "dropout"):
        pytest.skip("layers of PEFT hold these themselves")
    _, adapters = tiny_engine()
    model = adapters.model
    if wrapped:
        model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
        adapters = convert(model)
    before = Standing.of(model, adapters)
    assert Standing.of(model, adapters) == before
    CHANGES[change](model, adapters)
    assert (Standing.of(model, adapters) == before) is (change == "nothing")


@pytest.mark.parametrize("change", ["nothing", "a hook", "running statistics", "another tensor", "another format"])
def test_a_model_is_looked_at_again_where_anything_changed(change):
    engine, adapters = tiny_engine()
    model = engine.model
    model.norm = torch.nn.BatchNorm1d(4).eval()
    before = Standing.of(model, adapters)
    if change == "a hook":
        model.bert.pooler._hf_hook = object()
    elif change == "running statistics":
        model.norm.track_running_stats = False
    elif change == "another tensor":
        model.norm.weight = torch.nn.Parameter(model.norm.weight.data)
    elif change == "another format":
        model.norm.bias.data = model.norm.bias.data.view(torch.int32).view(torch.float32).view(torch.bfloat16)
    assert (Standing.of(model, adapters) == before) is (change == "nothing")


def test_what_is_private_now_is_looked_at_anew():
    engine, _ = tiny_engine(privacy={"unit": "none"})
    engine.model.norm = torch.nn.BatchNorm1d(4).train().requires_grad_(False)
    engine.check_model()
    engine.privacy = tiny_engine()[0].privacy
    with pytest.raises(SamplesNotIndependent, match="norm is a BatchNorm1d"):
        engine.check_model()


@pytest.mark.parametrize(
    "change,error,said",
    [
        (
            lambda model: model.bert.pooler.dense.base_layer.requires_grad_(True),
            ValueError,
            "neither clipped nor noised",
        ),
        (lambda model: model.norm.train(), SamplesNotIndependent, "norm is a BatchNorm1d"),
        (lambda model: model.bfloat16(), StorageParted, "trained tensors are float32"),
    ],
)
def test_a_loop_of_one_s_own_looks_again_at_a_model_that_changed(change, error, said):
    engine, adapters = tiny_engine()
    engine.model.norm = nn.BatchNorm1d(4).eval().requires_grad_(False)
    private = PrivateGradient(engine.model, adapters, losses, ledger(0, 40, 8), 1.0, SeededNoise(1))
    batches = [(np.arange(4), *tiny_data().collate(np.arange(4)))]
    private.step(0, batches)
    change(engine.model)
    with pytest.raises(error, match=said):
        private.step(1, batches)
    assert private.ledger.steps_taken == 1, "nothing is charged"


def test_a_callback_that_thaws_a_tensor_is_seen_before_the_next_step():
    engine, adapters = tiny_engine()

    def thaw(number):
        engine.model.classifier.requires_grad_(True)

    clients = participants(1)
    with pytest.raises(ValueError, match="classifier"):
        _train(engine, adapters, clients, steps=3, on_step=thaw)
    assert clients[0].ledger.steps_taken == 1
