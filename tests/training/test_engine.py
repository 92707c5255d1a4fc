"""The training loop: its clipped sums against Opacus, and what must not change the result."""

import copy
import math

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from tiny import ledger, losses, participants, tiny_data, tiny_engine, tiny_model
from torch import nn

from ffalora.config import PrivacyConfig
from ffalora.privacy.accounting import PrivacyBudgetSpent
from ffalora.privacy.clipping import AdaptiveQuantileClipping
from ffalora.training.arena import GradientMissing
from ffalora.training.independence import SamplesNotIndependent
from ffalora.training.participant import Participant
from ffalora.training.report import TrainingReport
from ffalora.training.step import LogicalStep


class _PlainAdapter(nn.Module):
    """LoRA out of stock modules, so that Opacus's own rules for nn.Linear give its per-sample gradients."""

    def __init__(self, layer):
        super().__init__()
        self.base, self.scale = layer.base_layer, layer.scale
        r, k = layer.lora_A.shape
        self.down, self.up = nn.Linear(k, r, bias=False), nn.Linear(r, layer.lora_B.shape[0], bias=False)
        self.down.weight = nn.Parameter(layer.lora_A.detach().clone(), requires_grad=layer.lora_A.requires_grad)
        self.up.weight = nn.Parameter(layer.lora_B.detach().clone(), requires_grad=layer.lora_B.requires_grad)

    def forward(self, x):
        return self.base(x) + self.scale * self.up(self.down(x))


def _opacus_clipped_sum(engine, adapters, samples, c):
    """Σ clip(g_i, C) in the columns of our state, from Opacus's GradSampleModule on the same model."""
    model = copy.deepcopy(engine.model)
    parts = {}
    for name, layer in adapters.layers.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        parts[name] = _PlainAdapter(layer)
        setattr(parent, name.rpartition(".")[2], parts[name])
    for name in adapters.heads:
        head = model.get_submodule(name).base_layer
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], head)
        parts[name] = head
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    wrapped = GradSampleModule(model.train(), strict=False, loss_reduction="sum")  # it ignores modules in eval mode
    inputs, targets = engine.data.collate(samples)
    losses(wrapped(**inputs), targets).sum().backward()
    rows = torch.zeros(len(samples), adapters.layout.width, dtype=torch.float64)
    for place in adapters.layout.places:
        module = parts[place.layer]
        parameter = {"lora_A": lambda m=module: m.down.weight, "lora_B": lambda m=module: m.up.weight}.get(
            place.tensor, lambda m=module, t=place.tensor: getattr(m, t)
        )()
        rows[:, place.start : place.start + place.size] = parameter.grad_sample.reshape(len(samples), -1).double()
    norms = rows.norm(dim=1)
    return (rows * (c / norms).clamp(max=1.0)[:, None]).sum(0), norms


@pytest.mark.parametrize("trained,head", [("b", "frozen"), ("both", "frozen"), ("b", "trained"), ("both", "trained")])
def test_clipped_sum_equals_opacus(trained, head):
    engine, adapters = tiny_engine(trained, head, optimizer={"lr": 1.0}, privacy={"noise_multiplier": 0.0})
    engine.arena.poison = True
    (client,) = participants(1, sigma=0.0)
    samples = engine.sample(client)
    before = adapters.state()
    state = before[None].clone()
    norms = _opacus_clipped_sum(engine, adapters, samples, math.inf)[1]
    c = float(norms.median())
    client.max_grad_norm = c
    expected, _ = _opacus_clipped_sum(engine, adapters, samples, c)
    engine.train([client], state, steps=1)
    got = (before - state[0]).double() * client.ledger.sample_rate * len(client.samples)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("optimizer", [{}, {"momentum": 0.9}, {"name": "adamw", "lr": 0.01}])
def test_one_pass_over_clients_equals_one_after_another(optimizer):
    engine, adapters = tiny_engine(optimizer=optimizer)
    together = adapters.state().repeat(4, 1)
    engine.train(participants(4), together, steps=3)
    for i, client in enumerate(participants(4)):
        alone = adapters.state()[None]
        engine.train([client], alone, steps=3)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_without_privacy_one_pass_equals_one_after_another_and_autograd():
    engine, adapters = tiny_engine(privacy={"unit": "none"}, optimizer={"lr": 0.1})
    clients = [Participant(i, p) for i, p in enumerate(np.array_split(np.arange(40), 3))]
    together = adapters.state().repeat(3, 1)
    batches = [engine.sample(c) for c in clients]
    engine.train(clients, together, steps=1)
    for i, batch in enumerate(batches):
        inputs, targets = engine.data.collate(batch)
        engine.model.zero_grad()
        losses(engine.model(**inputs), targets).mean().backward()
        for place in adapters.layout.places:
            parameter = adapters.layout.parameter(place)
            expected = (parameter - 0.1 * parameter.grad).detach().reshape(-1)
            torch.testing.assert_close(
                together[i, place.start : place.start + place.size], expected, rtol=1e-5, atol=1e-6
            )


def test_physical_batches_do_not_change_the_result():
    engine, adapters = tiny_engine()
    states = []
    for budget in (10_000, 30, 9):
        engine.token_budget = budget
        states.append(adapters.state().repeat(2, 1))
        engine.train(participants(2), states[-1], steps=2)
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states[0], states[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", ["b", "both"])
def test_merged_weights_do_not_change_the_result(trained):
    states = []
    for merge in (False, True):
        engine, adapters = tiny_engine(trained)
        engine.merge_weights = merge
        states.append(adapters.state()[None])
        engine.train(participants(1), states[-1], steps=3)
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
    assert not torch.equal(states[0][0], adapters.state())


def test_same_seed_gives_the_same_bits_and_another_seed_does_not():
    def run(seed):
        engine, adapters = tiny_engine(seed=seed)
        state = adapters.state().repeat(2, 1)
        engine.train(participants(2), state, steps=2)
        return state

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_noise_has_the_stated_standard_deviation():
    """The deviation of 7,168 draws is within 5% of σC/batch: a false alarm once in 10⁸ seeds."""
    engine, adapters = tiny_engine(privacy={"max_grad_norm": 1e-9}, optimizer={"lr": 1.0})
    clients = [Participant(i, np.arange(40), ledger(i, 40, 8, sigma=2e9)) for i in range(4)]
    before = adapters.state()
    state = before.repeat(4, 1)
    engine.train(clients, state, steps=1)
    noise = state - before
    assert noise.numel() == 7168
    assert abs(float(noise.std()) / (2e9 * 1e-9 / 8) - 1) < 0.05


def test_an_empty_draw_still_adds_noise_and_counts():
    engine, adapters = tiny_engine()
    client = Participant(0, np.arange(40), ledger(0, 40, 1e-9))
    state = adapters.state()[None]
    engine.train([client], state, steps=1)
    assert client.ledger.steps_taken == 1
    assert not torch.equal(state[0], adapters.state())


def test_padding_columns_receive_no_noise():
    engine, adapters = tiny_engine(head="trained")
    index = adapters.layout.parameter_index()
    state = adapters.state()[None]
    engine.train(participants(1), state, steps=2)
    assert (index < 0).any()
    assert (state[0, index < 0] == 0).all()


def test_a_step_beyond_the_ledger_is_refused():
    engine, adapters = tiny_engine()
    client = Participant(0, np.arange(40), ledger(0, 40, 8, max_steps=2))
    state = adapters.state()[None]
    with pytest.raises(PrivacyBudgetSpent, match="client 0"):
        engine.train([client], state, steps=3)
    assert client.ledger.steps_taken == 2


def test_private_training_without_a_ledger_is_refused():
    engine, adapters = tiny_engine()
    with pytest.raises(ValueError, match="without a ledger"):
        engine.train([Participant(0, np.arange(40))], adapters.state()[None], steps=1)


def test_a_trainable_tensor_outside_the_state_is_refused_by_name():
    engine, _ = tiny_engine()
    engine.model.bert.embeddings.LayerNorm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"bert\.embeddings\.LayerNorm\.weight"):
        type(engine)(
            **{
                f: getattr(engine, f)
                for f in ("model", "adapters", "data", "losses", "optimizer", "privacy", "noise", "draw")
            }
        )


def test_an_adapter_that_backward_never_reaches_is_named_before_noise_moves_it():
    engine, adapters = tiny_engine()
    layer = next(iter(adapters.layers.values()))
    layer.forward = lambda x: layer.base_layer(x)
    state = adapters.state()[None]
    with pytest.raises(GradientMissing, match=layer.name):
        engine.train(participants(1), state, steps=1)
    assert torch.equal(state[0], adapters.state())


class _MixesSamples(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.norm = nn.BatchNorm1d(32)

    def forward(self, hidden):
        return self.base(self.norm(hidden))


def test_a_model_that_mixes_samples_is_refused():
    engine, adapters = tiny_engine()
    engine.model.classifier = _MixesSamples(engine.model.classifier).requires_grad_(False).train()
    with pytest.raises(SamplesNotIndependent, match="mixes samples"):
        engine.train(participants(1), adapters.state()[None], steps=1)


class _Shared(nn.Module):
    def forward(self, hidden):
        return hidden + 0.5 * hidden.mean(0, keepdim=True)


@pytest.mark.parametrize("start", ["zero", "random"])
def test_a_model_that_mixes_samples_is_refused_wherever_its_head_starts(start):
    engine, adapters = tiny_engine(head="trained", privacy={"check_gradients": False})
    engine.model.dropout = _Shared()
    head = engine.model.classifier.base_layer
    if start == "zero":
        nn.init.zeros_(head.weight)
    before = head.weight.detach().clone()
    with pytest.raises(SamplesNotIndependent, match="mixes samples"):
        engine.train(participants(1), adapters.state()[None], steps=1)
    assert torch.equal(head.weight, before)


def test_a_nonfinite_sample_is_counted_and_contributes_nothing():
    def run(bad):
        engine, adapters = tiny_engine(privacy={"noise_multiplier": 0.0})
        (client,) = participants(1, sigma=0.0)
        drawn = engine.sample(client)
        engine.data.labels[:] %= 2
        engine.data.labels[drawn[0]] = 2

        def one_bad_loss(output, targets):
            return losses(output, targets) * torch.where(targets == 2, math.nan if bad else 0.0, 1.0)

        engine.losses = one_bad_loss
        state = adapters.state()[None]
        report = engine.train([client], state, steps=1)
        assert len(drawn) > 1
        return state, report

    (with_nan, report), (without, _) = run(True), run(False)
    assert report.nonfinite.tolist() == [1]
    torch.testing.assert_close(with_nan, without)


def test_secure_noise_refuses_seeded_sources():
    with pytest.raises(ValueError, match="SecureNoise"):
        tiny_engine(privacy={"noise": "secure"})


def test_per_layer_thresholds_bound_the_whole_gradient():
    engine, adapters = tiny_engine(
        privacy={"clipping": "per-layer", "noise_multiplier": 0.0, "max_grad_norm": 1e-3}, optimizer={"lr": 1.0}
    )
    (client,) = participants(1, sigma=0.0)
    drawn = engine.sample(client)
    before = adapters.state()
    state = before[None].clone()
    engine.train([client], state, steps=1)
    moved = float((before - state[0]).double().norm()) * client.ledger.sample_rate * 40
    assert 0 < moved <= len(drawn) * 1e-3 * (1 + 1e-3)


@pytest.mark.parametrize("share", [0.9, 0.2])
def test_a_trained_head_is_clipped_apart_to_its_share_of_the_squared_norm(share):
    engine, adapters = tiny_engine(
        head="trained", privacy={"head_share": share, "noise_multiplier": 0.0, "max_grad_norm": 1e-3},
        optimizer={"lr": 1.0, "batch_size": 1},
    )  # fmt: skip
    client = Participant(0, np.arange(1), ledger(0, 1, 1, sigma=0.0))
    before = adapters.state()
    state = before[None].clone()
    engine.train([client], state, steps=1)
    moved, head = (before - state[0]).double(), torch.zeros(len(before), dtype=torch.bool)
    for place in adapters.layout.places:
        head[place.start : place.start + place.size] = place.layer in adapters.heads
    assert float(moved[head].norm()) == pytest.approx(1e-3 * share**0.5, rel=1e-3)
    assert float(moved[~head].norm()) == pytest.approx(1e-3 * (1 - share) ** 0.5, rel=1e-3)


def test_adaptive_clipping_follows_the_median_and_adds_more_noise_to_the_sum():
    """40 steps from a norm that clips nobody: C ends within a factor 2 of the median norm."""
    engine, adapters = tiny_engine(privacy={"clipping": "adaptive"}, optimizer={"lr": 1e-9, "batch_size": 20})
    policy = AdaptiveQuantileClipping(noise_multiplier=0.5, expected_rows=20, max_grad_norm=5.0)
    client = Participant(0, np.arange(40), ledger(0, 40, 20, sigma=0.5, max_steps=40), adaptive=policy)
    assert policy.sum_noise_multiplier > 0.5
    report = engine.train([client], adapters.state()[None], steps=40)
    assert 0.5 < policy.max_grad_norm / report.numbers()["median_norm"] < 2.0


def test_a_refused_step_charges_nobody_of_the_cohort():
    engine, adapters = tiny_engine()
    rich, poor = participants(2)
    poor.ledger = ledger(1, 20, 8, max_steps=1, steps_taken=1)
    poor.steps_taken = 1
    with pytest.raises(PrivacyBudgetSpent, match="client 1"):
        engine.train([rich, poor], adapters.state().repeat(2, 1), steps=1)
    assert rich.ledger.steps_taken == 0


def test_a_learning_rate_of_zero_is_taken_as_given():
    engine, adapters = tiny_engine()
    (client,) = participants(1)
    client.lr = 0.0
    state = adapters.state()[None]
    engine.train([client], state, steps=1)
    assert torch.equal(state[0], adapters.state())


def test_adapter_dropout_changes_training_and_not_evaluation():
    def run(dropout):
        engine, adapters = tiny_engine()
        for layer in adapters.layers.values():
            layer.p_dropout = dropout
        inputs, _ = engine.data.collate(np.arange(4))
        state = adapters.state()[None]
        engine.train(participants(1), state, steps=2)
        return state, engine.model(**inputs).logits

    (plain, before), (dropped, after), (again, _) = run(0.0), run(0.5), run(0.5)
    assert torch.equal(before, after)
    assert not torch.equal(plain, dropped)
    assert torch.equal(dropped, again)


def test_the_report_covers_every_client_however_they_were_trained():
    engine, adapters = tiny_engine()
    together, apart = engine.train(participants(3), adapters.state().repeat(3, 1), steps=1), TrainingReport(3)
    for row, client in enumerate(participants(3)):
        engine.train([client], adapters.state()[None], steps=1, report=apart, index=torch.tensor([row]))
    numbers = apart.numbers()
    assert together.numbers() == pytest.approx(numbers | {"padding": together.numbers()["padding"]}, rel=1e-4)
    assert numbers["samples"] == len(apart.rows) > 0 and apart.rows.tolist() == together.rows.sort()[0].tolist()


@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
def test_gradients_are_clipped_to_the_norm_that_the_noise_is_scaled_to(clipping):
    """To the last bit of float64: 0.1 in float32 is above 0.1."""
    engine, adapters = tiny_engine(privacy={"clipping": clipping, "max_grad_norm": 0.1})
    step = LogicalStep(engine, participants(1), adapters.state()[None], None, 0.0, None, None)
    assert float(step.clipping.max_grad_norm.square().sum().sqrt()) == pytest.approx(0.1, rel=1e-12)
    assert float(step.norms) == 0.1


@pytest.mark.parametrize("steps", [1, 5])
def test_dp_bias_correction_keeps_updates_of_the_order_of_the_learning_rate(steps):
    engine, adapters = tiny_engine(optimizer={"name": "adamw", "lr": 0.01, "dp_bias_correction": True})
    before = adapters.state()
    state = before[None].clone()
    engine.train(participants(1), state, steps=steps)
    assert 0.01 < float((state[0] - before).abs().max()) < 0.01 * 15 * steps


def test_privacy_needs_exactly_one_way_to_set_the_noise():
    with pytest.raises(ValueError, match="exactly one of target_epsilon"):
        PrivacyConfig(unit="sample", target_epsilon=3, noise_multiplier=1)


def test_tiny_model_and_data_are_what_the_tests_assume():
    assert tiny_model().num_labels == 3
    assert tiny_data().lengths.min() >= 3
