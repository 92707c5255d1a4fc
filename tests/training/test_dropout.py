"""Dropout on private runs: a sample's mask is its own, so that one record moves the clipped sum by at most C."""

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from tiny import losses, participants, tiny_data, tiny_engine, tiny_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from ffalora.adapters import AdapterConfig, attach, convert
from ffalora.adapters.dropout import DropoutMasks, branched, masked_dropout
from ffalora.data.tasks import causal_losses
from ffalora.models import MeanPooledClassifier
from ffalora.privacy.noise import SecureNoise, SeededNoise
from ffalora.privacy.sampling import SystemDraw
from ffalora.training.arena import Arena
from ffalora.training.dropout import DropoutKeys, keyed_dropout
from ffalora.training.gradients import segment_gradients
from ffalora.training.independence import SamplesNotIndependent
from ffalora.training.probe import Probe

C, P = 0.05, 0.3


SEEDED = SeededNoise(3)


def keys(samples, noise=SEEDED, step=0):
    number = np.asarray(samples)
    return DropoutKeys.of(noise, np.zeros_like(number), np.full_like(number, step), number)


def clipped_sum(model, adapters, samples, packed=False):
    """Of some samples of the tiny data, float64 ``[P]``."""
    inputs, targets = tiny_data().collate(np.asarray(samples))
    total = torch.zeros(1, adapters.layout.width, dtype=torch.float64)
    found = segment_gradients(
        model,
        adapters,
        losses,
        inputs,
        targets,
        dropout=lambda: keys(samples),
        packed=packed,
        rows=np.zeros(len(samples), int),
    )
    found.clip_into_(total, C)
    return total[0]


def with_own_adapters(trained):
    """Adapters of ours with dropout on a model in evaluation mode, as the engine trains it."""
    model = tiny_model()
    adapters = attach(
        model, AdapterConfig(rank=4, dropout=P, trained=trained, head="trained", target_modules="all-linear")
    )
    return model, adapters


def with_peft(trained):
    """A converted PEFT model in training mode: its adapters' dropout, and the model's own in layers and attention."""
    model = tiny_model()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, lora_dropout=P, target_modules=["query", "value"], task_type="SEQ_CLS")
    )
    adapters = convert(wrapped, trained)
    return wrapped.train(), adapters


def nudged(adapters):
    adapters.load_state_(adapters.state() + 0.05 * torch.randn(adapters.layout.width, generator=torch.manual_seed(1)))
    return adapters


@pytest.mark.parametrize("trained", ["b", "both"])
@pytest.mark.parametrize("make", [with_own_adapters, with_peft])
def test_one_record_moves_the_clipped_sum_by_at_most_the_clipping_norm(make, trained):
    model, adapters = make(trained)
    nudged(adapters)
    everybody = list(range(12))
    whole = clipped_sum(model, adapters, everybody)
    for left_out in (0, 5, 11):
        others = [i for i in everybody if i != left_out]
        moved = (whole - clipped_sum(model, adapters, others)).norm()
        assert 0.5 * C < moved <= 1.0001 * C
    alone = sum(clipped_sum(model, adapters, [i]) for i in everybody)
    assert torch.allclose(alone, whole, rtol=1e-4, atol=1e-7)


def test_masks_are_the_same_packed_and_padded():
    pooled = MeanPooledClassifier(tiny_model().bert, 3, 0.3, 1.0, 0)
    adapters = nudged(attach(pooled.eval(), AdapterConfig(rank=4, dropout=P, target_modules=["query", "value"])))
    samples = list(range(9))
    padded, packed = (clipped_sum(pooled, adapters, samples, packed=packed) for packed in (False, True))
    assert torch.allclose(padded, packed, rtol=1e-4, atol=1e-7)


def test_an_engine_draws_the_same_masks_however_a_batch_is_cut():
    def trained(budget):
        engine, adapters = tiny_engine(token_budget=budget, privacy={"noise_multiplier": 0.0})
        for layer in adapters.layers.values():
            layer.p_dropout = P
        state = adapters.state()[None]
        engine.train(participants(1), state, 2)
        return state

    assert torch.allclose(trained(1000), trained(10), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noise", [SeededNoise(1), SecureNoise()], ids=["seeded", "secure"])
def test_choices_that_samples_share_are_the_same_in_all_batches_of_a_step_and_others_in_the_next(noise):
    engine, adapters = tiny_engine(token_budget=10)
    engine.noise, engine.draw = noise, SystemDraw(bytes(32))
    engine.model.train()
    seen = []
    real = engine.dropout_keys
    engine.dropout_keys = lambda *args: seen.append(real(*args)) or seen[-1]
    client = participants(1)
    state = adapters.state()[None]
    per_step = []
    for _ in range(2):
        seen.clear()
        engine.train(client, state, 1)
        assert len(seen) > 1
        per_step.append({keys.shared for keys in seen})
    assert [len(shared) for shared in per_step] == [1, 1]
    assert per_step[0] != per_step[1]


def test_a_layer_that_is_skipped_at_random_has_a_gradient_of_zero():
    """Of all samples alike; the others' gradients are those of each sample alone under the same choice."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=24, word_embed_proj_dim=16,
        max_position_embeddings=40, pad_token_id=0, layerdrop=0.5,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["v_proj"]))
    model.train()
    ids, arena = torch.randint(1, 60, (3, 7)), Arena(adapters)
    arena.poison, patterns = True, set()
    for shared in range(12):
        keys = DropoutKeys(np.arange(3), shared)
        found = segment_gradients(
            model, adapters, causal_losses, {"input_ids": ids}, ids, arena=arena,
            probe=Probe(adapters, recomputes=True), dropout=lambda keys=keys: keys,
        )  # fmt: skip
        used = torch.stack([found.gradients[:, place.columns].any(1) for place in adapters.layout.places], 1)
        assert (used == used[0]).all() and found.gradients.isfinite().all()
        assert ((found.squares > 0) == used).all()
        patterns.add(tuple(used[0].tolist()))
    assert len(patterns) > 3


def test_secure_runs_never_repeat_a_mask_and_seeded_runs_always_do():
    first, again = keys(range(64)).samples, keys(range(64)).samples
    assert (first == again).all() and (first != keys(range(64), step=1).samples).all()
    fresh, other = (keys(range(64), SecureNoise()).samples for _ in range(2))
    assert (fresh != other).all()
    engine, _ = tiny_engine()
    engine.noise, engine.draw = SecureNoise(), SystemDraw(bytes(32))
    drawn = [engine.dropout_keys(participants(1), np.zeros(8, int), np.arange(8)).samples for _ in range(2)]
    assert (drawn[0] != drawn[1]).all()


def test_keys_of_64_bits_have_masks_of_their_own():
    of = {key: keys(range(4), SeededNoise(key)).samples.tolist() for key in (-1, 2**64 - 1, 2**63, 2**63 - 1, 0)}
    assert of[-1] == of[2**64 - 1]  # as the noise takes them
    assert len({tuple(samples) for samples in of.values()}) == 4


def test_masks_keep_the_stated_share_and_differ_between_samples_calls_and_positions():
    """2^20 elements: the share is within 5 standard deviations (false alarm below 1e-6), correlations likewise."""
    masks = DropoutMasks(torch.as_tensor(keys(range(64)).samples))
    first, second = masks.keep((64, 64, 256), 0.1), masks.keep((64, 64, 256), 0.1)
    share = first.double().mean()
    assert abs(share - 0.9) < 5 * (0.09 / first.numel()) ** 0.5 + 2**-17
    bound = 5 / first.numel() ** 0.5
    centred = (first.double() - share) / 0.3
    for other in (
        (second.double() - share) / 0.3, centred.roll(1, 0), centred.roll(1, 1), centred.roll(1, 2), centred.roll(4, 2),
    ):  # fmt: skip
        assert abs((centred * other).mean()) < bound


def test_a_mask_depends_on_its_own_sample_and_position_alone():
    whole, part = keys(range(8)), keys([2, 5])
    torch.manual_seed(0)
    wide = DropoutMasks(torch.as_tensor(whole.samples)).keep((8, 4, 10, 12), P)
    torch.manual_seed(0)
    narrow = DropoutMasks(torch.as_tensor(part.samples)).keep((2, 4, 7, 9), P)
    assert torch.equal(wide[[2, 5], :, :7, :9], narrow)
    torch.manual_seed(0)
    folded = DropoutMasks(torch.as_tensor(whole.samples)).keep((16, 5), P)
    assert folded.shape == (16, 5) and not torch.equal(folded[::2], folded[1::2])


def left_padded(length, tokens=(3, 4)):
    return {"attention_mask": torch.stack([torch.arange(length) >= length - n for n in tokens]).long()}


def test_a_mask_is_that_of_the_sample_s_own_tokens_wherever_its_padding_is():
    def kept(shape, inputs):
        torch.manual_seed(0)
        return keys(range(2)).masks(torch.device("cpu"), inputs).keep(shape, P)

    right = {"attention_mask": left_padded(9)["attention_mask"].flip(1)}
    for length in (5, 10):
        inputs = left_padded(length)
        weights, both = kept((2, 3, length, length), inputs), kept((2, 3, 9, 9), right)
        assert torch.equal(both, kept((2, 3, 9, 9), {}))
        for features in (7, length):
            hidden, whole = kept((2, length, features), inputs), kept((2, 9, features), right)
            flat = kept((2 * length, features), inputs).view(hidden.shape)
            assert torch.equal(whole, kept((2, 9, features), {}))
            for i, n in enumerate((3, 4)):
                assert torch.equal(hidden[i, -n:], whole[i, :n]) and torch.equal(flat[i], hidden[i])
                assert torch.equal(weights[i, :, -n:, -n:], both[i, :, :n, :n])


def test_a_sample_padded_on_the_left_has_the_gradient_that_it_has_alone():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=60, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, attention_dropout=0.2, pad_token_id=0,
        )
    )  # fmt: skip
    adapters = nudged(attach(model, AdapterConfig(rank=2, dropout=P, target_modules=["q_proj", "v_proj"])))
    model.train()
    ids = torch.randint(1, 60, (2, 9)).masked_fill(left_padded(9)["attention_mask"] == 0, 0)

    def gradients(rows, start):
        inputs = {"input_ids": ids[rows, start:], "attention_mask": left_padded(9)["attention_mask"][rows, start:]}
        targets = inputs["input_ids"].masked_fill(inputs["attention_mask"].cumsum(1) < 2, -100)  # first: not predicted
        probe = Probe(adapters, recomputes=True)
        return segment_gradients(
            model, adapters, causal_losses, inputs, targets, dropout=lambda: keys(rows), probe=probe
        ).gradients.clone()

    together = gradients([0, 1], 0)
    for i, start in ((0, 6), (1, 5), (1, 2)):
        torch.testing.assert_close(gradients([i], start)[0], together[i], rtol=1e-4, atol=1e-7)


def test_dropout_whose_samples_cannot_be_told_apart_is_refused():
    masks = DropoutMasks(torch.as_tensor(keys(range(8)).samples))
    with pytest.raises(ValueError, match="cannot be told"):
        masks.keep((3, 5), P)


def test_keys_are_made_only_where_something_drops_out():
    asked = []
    for dropout in (0.0, P):
        model = tiny_model()
        adapters = attach(model, AdapterConfig(rank=4, dropout=dropout))
        inputs, targets = tiny_data().collate(np.arange(4))
        segment_gradients(
            model, adapters, losses, inputs, targets, dropout=lambda p=dropout: (asked.append(p), keys(range(4)))[1]
        )
    assert asked == [P]


def test_keys_of_all_branches_are_different():
    grown = branched(branched(torch.arange(100), 50), 20)
    assert len(grown.unique()) == grown.numel()


class _Random(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return self.draw(x)


@pytest.mark.parametrize(
    "draw,named",
    [
        (lambda x: x * torch.rand(len(x), 1), "rand"),
        (lambda x: x * torch.empty_like(x).bernoulli_(0.5), "bernoulli_"),
        (lambda x: F.alpha_dropout(x, 0.5, True), "alpha_dropout"),
        (lambda x: x + torch.randn_like(x), "randn_like"),
        (lambda x: torch.alpha_dropout(x, 0.5, True), "alpha_dropout"),
        (lambda x: torch.feature_dropout(x, 0.5, True), "feature_dropout"),
        (lambda x: x + torch.empty_like(x).log_normal_(), "log_normal_"),
        (lambda x: x * torch.distributions.Gamma(x, x).rsample(), "gamma"),
    ],
)
def test_random_tensors_that_belong_to_positions_are_refused(draw, named):
    masks, x = DropoutMasks(torch.as_tensor(keys(range(4)).samples)), torch.ones(4, 6)
    with keyed_dropout(_Random(draw).train(), masks), pytest.raises(SamplesNotIndependent, match=named):
        draw(x)


def test_torch_s_own_dropout_has_the_masks_of_the_samples_by_place_and_by_name():
    masks, ones = DropoutMasks(torch.as_tensor(keys(range(4)).samples)), torch.ones(4, 6)
    found = []
    for call in (
        lambda x: F.dropout(x, 0.5, True),
        lambda x: torch.dropout(x, 0.5, True),
        lambda x: torch.dropout(x, p=0.5, train=True),
        lambda x: (torch.dropout_(x, 0.5, True), x)[1],
        lambda x: (torch.dropout_(x, p=0.5, train=True), x)[1],
    ):
        with keyed_dropout(_Random(None).train(), masks):
            found.append(call(ones.clone()))
            assert torch.equal(torch.dropout(ones, p=0.5, train=False), ones)
    assert set(found[0].unique().tolist()) == {0.0, 2.0}
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    "draw,drawn",
    [
        (lambda x, on: F.rrelu(x, 0.1, 0.3, on), "rrelu"),
        (lambda x, on: torch.rrelu(x, 0.1, 0.3, on), "rrelu"),
        (lambda x, on: torch.rrelu_(x, 0.1, 0.3, training=on), "rrelu_"),
        (lambda x, on: torch.alpha_dropout(x, p=0.5, train=on), "alpha_dropout"),
        (lambda x, on: torch.feature_dropout_(x, 0.5, on), "feature_dropout_"),
        (lambda x, on: F.dropout2d(x[..., None, None], 0.5, on), "dropout2d"),
    ],
)
def test_layers_are_refused_where_they_draw_and_not_where_they_are_switched_off(draw, drawn):
    masks = DropoutMasks(torch.as_tensor(keys(range(4)).samples))
    with keyed_dropout(_Random(None).train(), masks):
        draw(torch.ones(4, 6), False)
        with pytest.raises(SamplesNotIndependent, match=drawn):
            draw(torch.ones(4, 6), True)


def test_what_all_samples_share_may_be_drawn():
    masks = DropoutMasks(torch.as_tensor(keys(range(4)).samples))
    with keyed_dropout(_Random(None).train(), masks):
        assert torch.rand([]).shape == ()  # a layer that is skipped for everybody
        assert F.dropout(torch.ones(4, 3), 0.5, training=False).min() == 1


def test_fused_attention_with_dropout_is_computed_with_masks_of_the_samples():
    masks = DropoutMasks(torch.as_tensor(keys(range(4)).samples))
    q, k, v = torch.randn(3, 4, 2, 5, 8, generator=torch.manual_seed(0))
    hidden = torch.ones(5, 5, dtype=torch.bool).tril()
    with keyed_dropout(_Random(None).train(), masks):
        plain = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        torch.manual_seed(0)
        dropped = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden, dropout_p=0.5)
        torch.manual_seed(0)
        keep = masks.keep((4, 2, 5, 5), 0.5)
    weights = ((q @ k.transpose(-1, -2)) / 8**0.5).masked_fill(~hidden, -torch.inf).softmax(-1)
    assert torch.allclose(plain, weights @ v, atol=1e-5)
    assert torch.allclose(dropped, (weights * keep * 2) @ v, atol=1e-5)


@pytest.mark.parametrize("module", [nn.LSTM(3, 3, num_layers=2, dropout=0.1), nn.MultiheadAttention(4, 2, dropout=0.1)])
def test_dropout_inside_an_operation_of_its_own_is_refused(module):
    masks = DropoutMasks(torch.zeros(2, dtype=torch.int64))
    with (
        pytest.raises(SamplesNotIndependent, match="inside an operation of its own"),
        keyed_dropout(nn.Sequential(module).train(), masks),
    ):
        pass


def test_checkpointed_activations_are_computed_again_with_the_same_masks():
    def gradient(checkpoint):
        model, adapters = with_own_adapters("b")
        nudged(adapters)
        if checkpoint:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.bert.encoder.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        return clipped_sum(model, adapters, range(6))

    assert torch.allclose(gradient(False), gradient(True), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_activations_drop_out_what_the_model_dropped_at_first(use_reentrant):
    inputs, targets = tiny_data().collate(np.arange(6))

    def gradients(checkpoint):
        model, adapters = with_peft("b")
        nudged(adapters)
        if checkpoint:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        probe = Probe(adapters, recomputes=True)  # plain autograd's gradients are those of the same masks
        found = segment_gradients(model, adapters, losses, inputs, targets, dropout=lambda: keys(range(6)), probe=probe)
        return found.gradients.clone()

    assert torch.equal(gradients(True), gradients(False))


def test_checkpoints_within_checkpoints_find_their_masks():
    drop, weight = nn.Dropout(P), torch.ones(4, 8, requires_grad=True)

    def inner(x):
        return checkpoint(drop, x, use_reentrant=True)

    def gradient(outer):
        weight.grad = None
        with keyed_dropout(drop, DropoutMasks(torch.arange(4))):
            (outer(weight * 1.0) * weight).sum().backward()
        return weight.grad

    assert torch.equal(gradient(lambda x: checkpoint(inner, x, use_reentrant=True)), gradient(drop))


def test_dropout_keeps_the_mean_outside_a_pass():
    x = torch.ones(200, 200)
    torch.manual_seed(0)
    assert abs(float(masked_dropout(x, 0.25).mean()) - 1) < 0.02
