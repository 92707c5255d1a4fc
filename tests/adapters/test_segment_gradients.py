"""The numbers in the arena are the per-sample gradients, whatever is trained and however the batch is laid out."""

import pytest
import torch
from adapter_cases import (
    adapted,
    one_at_a_time,
    randomise,
    relative_error,
    run_pass,
    sample_losses,
    text_batch,
    tiny_albert,
    tiny_bert,
    tiny_gpt2,
)

from ffalora.adapters import AdapterConfig, TrainingPass, attach

FP32 = 1e-5


@pytest.mark.parametrize("trained", ["b", "a", "both"])
@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_arena_rows_equal_the_gradients_of_single_samples(trained, head):
    adapters, batch = adapted(tiny_bert(), trained=trained, head=head), text_batch()
    _, arena, squares = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5)
    _, rows = one_at_a_time(adapters, batch)
    assert relative_error(arena, rows) < FP32
    assert arena.isfinite().all(), "a trained column was not written"
    for place in adapters.layout.places:
        stored = arena[:, place.start : place.start + place.size].double().square().sum(1)
        torch.testing.assert_close(squares[:, place.slot], stored, rtol=1e-12, atol=0)


def test_losses_of_a_pass_equal_those_of_the_layers_own_parameters():
    adapters, batch = adapted(tiny_bert(), head="trained"), text_batch()
    losses, *_ = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5)
    values, _ = one_at_a_time(adapters, batch)
    torch.testing.assert_close(losses, values, rtol=1e-5, atol=1e-6)


def test_two_dimensional_inputs_are_one_token_a_sample():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).eval()
    adapters = attach(model, AdapterConfig(rank=2, target_modules="all-linear"))
    randomise(adapters)
    batch = {"x": torch.randn(4, 6)}

    def losses(module, inputs):
        return module(inputs["x"]).square().sum(1)

    _, arena, _ = run_pass(adapters, lambda: losses(model, batch), 4)
    assert relative_error(arena, one_at_a_time(adapters, batch, losses)[1]) < FP32


def test_a_linear_layer_on_the_first_position_only_gets_its_own_segments():
    adapters, batch = adapted(tiny_bert(), target_modules=["query", "pooler.dense"]), text_batch()
    _, arena, _ = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5)
    assert relative_error(arena, one_at_a_time(adapters, batch)[1]) < FP32


def test_clients_in_one_pass_equal_each_client_alone():
    adapters, batch = adapted(tiny_bert(), head="trained"), text_batch(samples=6)
    base = adapters.state()
    generator = torch.Generator().manual_seed(5)
    state = base + 0.1 * torch.randn(3, len(base), generator=generator)
    client = [0, 0, 1, 2, 2, 2]
    losses, together, _ = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 6, state, client)
    for c in range(3):
        rows = [i for i, owner in enumerate(client) if owner == c]
        alone = {k: v[rows] for k, v in batch.items()}
        values, arena, _ = run_pass(
            adapters, lambda b=alone: sample_losses(adapters.model, b), len(rows), state[c : c + 1]
        )
        assert relative_error(together[rows], arena) < FP32
        torch.testing.assert_close(losses[rows], values, rtol=1e-5, atol=1e-6)
        adapters.load_state_(state[c])
        assert relative_error(together[rows], one_at_a_time(adapters, alone)[1]) < FP32
    adapters.load_state_(base)


def test_a_segment_of_several_samples_holds_their_sum():
    adapters, batch = adapted(tiny_bert()), text_batch()
    _, rows, _ = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5)
    _, sums, _ = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5, sample_offsets=[0, 2, 2, 5])
    expected = torch.stack([rows[:2].sum(0), torch.zeros_like(rows[0]), rows[2:].sum(0)])
    assert relative_error(sums, expected) < FP32


def test_an_adapter_used_several_times_sums_its_uses():
    adapters, batch = adapted(tiny_albert(), target_modules=["query", "value", "ffn"]), text_batch()
    uses = adapters.count_uses({k: v for k, v in batch.items() if k != "labels"})
    assert set(uses.values()) == {3}, "ALBERT runs its one group of layers three times"
    assert all(layer.shared_use for layer in adapters.layers.values())
    _, arena, _ = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5)
    assert relative_error(arena, one_at_a_time(adapters, batch)[1]) < FP32


class AsOftenAsTokens(torch.nn.Module):
    """Uses its layers once a token, and once more in training mode."""

    def __init__(self):
        super().__init__()
        self.linear, self.classifier = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    def forward(self, x):  # [B, T, 4]
        h = x.new_zeros(len(x), 4)
        for token in x.unbind(1):
            h = torch.tanh(self.linear(h) + token)
        return self.classifier(h) + (self.classifier(self.linear(h)) if self.training else 0.0)


@pytest.mark.parametrize("length,mode", [(1, True), (5, False), (5, True)])
def test_a_layer_used_more_often_than_when_it_was_counted_sums_its_uses(length, mode):
    torch.manual_seed(0)
    model = AsOftenAsTokens()
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["linear"], head="trained", trained="both"))
    randomise(adapters)
    adapters.count_uses(torch.randn(3, 1, 4))
    model.train(mode)
    x = torch.randn(3, length, 4)
    _, arena, squares = run_pass(adapters, lambda: model(x).square().sum(1), 3)
    _, rows = one_at_a_time(adapters, {"x": x}, lambda m, b: m(b["x"]).square().sum(1))
    assert relative_error(arena, rows) < FP32
    torch.testing.assert_close(squares.sum(1), rows.double().square().sum(1), rtol=1e-5, atol=1e-9)


def test_layers_used_once_overwrite_and_unused_ones_are_reported():
    adapters = adapted(tiny_bert(), target_modules=["query", "value"])
    uses = adapters.count_uses({"input_ids": torch.ones(2, 3, dtype=torch.long)})
    assert set(uses.values()) == {1}
    assert not any(layer.shared_use for layer in adapters.layers.values())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    adapters, batch = adapted(tiny_bert(), dropout=0.2, trained="both"), text_batch()
    torch.manual_seed(3)
    _, expected, _ = run_pass(adapters, lambda: _train_losses(adapters, batch), 5)
    adapters.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        adapters.model.enable_input_require_grads()
    torch.manual_seed(3)
    _, arena, _ = run_pass(adapters, lambda: _train_losses(adapters, batch), 5)
    assert torch.equal(arena, expected)


def _train_losses(adapters, batch):
    adapters.model.train()
    for module in adapters.model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p == 0.1:
            module.eval()
    return sample_losses(adapters.model, batch)


def test_conv1d_of_gpt2_has_the_same_gradients():
    adapters = adapted(tiny_gpt2(), target_modules=["c_attn", "c_fc", "c_proj"])
    batch = text_batch()

    def losses(model, inputs):
        logits = model(input_ids=inputs["input_ids"]).logits
        return (
            torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), inputs["input_ids"][:, 1:].flatten(), reduction="none"
            )
            .view(len(logits), -1)
            .sum(1)
        )

    _, arena, _ = run_pass(adapters, lambda: losses(adapters.model, batch), 5)
    assert relative_error(arena, one_at_a_time(adapters, batch, losses)[1]) < FP32


def test_an_input_that_does_not_lead_with_the_samples_is_refused_by_name():
    adapters, batch = adapted(tiny_bert()), text_batch()
    with pytest.raises(ValueError, match=r"encoder\.layer\.0\.attention\.self\.query: input of shape .* 4 samples"):
        run_pass(adapters, lambda: sample_losses(adapters.model, batch), 4)


def test_a_merged_layer_is_refused_in_a_pass_instead_of_training_nothing():
    adapters, batch = adapted(tiny_bert()), text_batch()
    adapters.merge()
    with pytest.raises(RuntimeError, match="unmerge"):
        run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5)


def test_a_second_pass_inside_a_pass_is_refused_and_leaving_clears_the_slot():
    adapters = adapted(tiny_bert())
    arena = torch.zeros(1, adapters.layout.width)
    current = TrainingPass(
        adapters.state()[None], arena, torch.zeros(1, 4).double(), torch.zeros(1).int(), torch.tensor([0, 1]).int(), 1
    )
    with (
        adapters.training_pass(current),
        pytest.raises(RuntimeError, match="under way"),
        adapters.training_pass(current),
    ):
        pass
    with adapters.training_pass(current):
        pass


def test_float64_agrees_with_autograd_to_float64_precision():
    adapters, batch = adapted(tiny_bert().double(), trained="both"), text_batch()
    adapters.model.double()

    def losses(model, inputs):
        return model(**{k: v for k, v in inputs.items() if k != "labels"}).logits.square().sum(1)

    state = torch.cat([p.detach().reshape(-1) for p in map(adapters.layout.parameter, adapters.layout.places)])[None]
    assert state.shape[1] == adapters.layout.width
    _, arena, _ = run_pass(adapters, lambda: losses(adapters.model, batch), 5, state)
    assert relative_error(arena, one_at_a_time(adapters, batch, losses)[1]) < 1e-12


class Windows(torch.nn.Module):
    """Cuts each sample into windows, which follow one another sample by sample, or window by window."""

    def __init__(self, by_sample: bool):
        super().__init__()
        self.by_sample, self.linear = by_sample, torch.nn.Linear(4, 3)

    def forward(self, x):  # [B, T, 4]
        windows = x.unflatten(1, (2, -1))
        windows = windows if self.by_sample else windows.transpose(0, 1)
        y = self.linear(windows.flatten(0, 1)).tanh()
        y = y.unflatten(0, windows.shape[:2])
        return (y if self.by_sample else y.transpose(0, 1)).flatten(1)


@pytest.mark.parametrize("probed", [1, 3])
def test_windows_of_a_sample_are_one_segment_if_they_follow_one_another(probed):
    torch.manual_seed(0)
    model, x = Windows(by_sample=True), torch.randn(3, 6, 4)
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["linear"]))
    randomise(adapters)
    adapters.count_uses(x if probed == 3 else x[:1])
    assert adapters.layers["linear"].folded
    _, arena, _ = run_pass(adapters, lambda: model(x).square().sum(1), 3)
    _, rows = one_at_a_time(adapters, {"x": x}, lambda m, b: m(b["x"]).square().sum(1))
    assert relative_error(arena, rows) < FP32


@pytest.mark.parametrize("probed", [1, 3])
def test_windows_that_interleave_the_samples_are_refused(probed):
    model, x = Windows(by_sample=False), torch.randn(3, 6, 4)
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["linear"]))
    adapters.count_uses(x[:probed])
    assert not adapters.layers["linear"].folded
    with pytest.raises(ValueError, match="does not lead with"):
        run_pass(adapters, lambda: model(x).square().sum(1), 3)


class TokensFirst(torch.nn.Module):
    """Puts tokens before samples."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):  # [B, T, 4]
        return self.linear(x.transpose(0, 1)).tanh().cumsum(0)[-1]


def test_tokens_before_samples_are_refused_where_there_are_as_many_of_both():
    model = TokensFirst()
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["linear"]))
    with pytest.raises(ValueError, match=r"linear: its input leads with 6 rows in a batch of 6 samples.*exclude_modul"):
        adapters.count_uses(torch.randn(6, 6, 4))


class Routed(torch.nn.Module):
    """Each token goes through the one of two layers that its first number chooses."""

    def __init__(self):
        super().__init__()
        self.linear, self.other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, x):  # [B, T, 4]
        tokens = x.flatten(0, 1)
        mine = tokens[:, 0] > 0
        y = tokens.new_zeros(len(tokens), 3)
        y[mine], y[~mine] = self.linear(tokens[mine]).tanh(), self.other(tokens[~mine]).tanh()
        return y.view(*x.shape[:2], 3).sum(1)


def test_routed_tokens_are_never_taken_for_samples():
    model, accepted = Routed(), 0
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["linear", "other"]))
    randomise(adapters)
    for seed in range(100):
        x = torch.randn(3, 2, 4, generator=torch.manual_seed(seed))
        try:
            adapters.count_uses(x)
            _, arena, _ = run_pass(adapters, lambda x=x: model(x).square().sum(1), 3)
        except ValueError as refusal:
            assert "per-sample gradients" in str(refusal)
            continue
        accepted += 1
        _, rows = one_at_a_time(adapters, {"x": x}, lambda m, b: m(b["x"]).square().sum(1))
        assert relative_error(arena, rows) < FP32
    assert 0 < accepted < 20
