"""What attach puts where: targets, starting values, errors, modes, and what a layer keeps in memory."""

import warnings

import peft
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
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
)

from ffalora.adapters import AdapterConfig, attach
from ffalora.adapters.autograd import adapted_linear
from ffalora.adapters.dropout import masked_dropout
from ffalora.adapters.init import initial_a
from ffalora_kernels import Segments


def test_a_fresh_adapter_does_not_change_the_outputs():
    model, batch = tiny_bert(), text_batch()
    before = sample_losses(model, batch)
    attach(model)
    assert torch.equal(sample_losses(model, batch), before)


def test_only_the_chosen_factor_is_trained():
    model = tiny_bert()
    adapters = attach(model)
    assert {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad} == {"lora_B"}
    adapters.train_factors("both")
    assert adapters.layout.size == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="trained must be"):
        adapters.train_factors("c")


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthonormal"])
def test_the_frozen_factor_depends_on_seed_and_name_alone(init):
    torch.manual_seed(123)
    first = initial_a(4, 16, init, 0, "layer.0.query")
    torch.manual_seed(321)
    torch.randn(10)
    assert torch.equal(initial_a(4, 16, init, 0, "layer.0.query"), first)
    assert not torch.equal(initial_a(4, 16, init, 1, "layer.0.query"), first)
    assert not torch.equal(initial_a(4, 16, init, 0, "layer.1.query"), first)


def test_adapters_on_fewer_layers_have_the_same_frozen_factors():
    both = attach(tiny_bert(), AdapterConfig(target_modules=["query", "value"]))
    one = attach(tiny_bert(), AdapterConfig(target_modules=["value"]))
    for name, layer in one.layers.items():
        assert torch.equal(layer.lora_A, both.layers[name].lora_A)


@pytest.mark.parametrize("rank, width", [(4, 16), (16, 16), (20, 8)])
def test_orthonormal_rows_are_orthonormal_within_each_block(rank, width):
    a = initial_a(rank, width, "orthonormal", 0, "layer").double()
    assert a.shape == (rank, width)
    for start in range(0, rank, width):
        block = a[start : start + width]
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "targets, message",
    [
        (["querry"], "near matches: query"),
        (["embeddings.LayerNorm"], "is a LayerNorm, not a linear layer"),
        (r".*\.nothing", "matches no linear layer"),
        ("(", "is not a regular expression"),
    ],
)
def test_a_mistaken_target_is_answered_with_what_there_is(targets, message):
    with pytest.raises(ValueError, match=message):
        attach(tiny_bert(), AdapterConfig(target_modules=targets))


def test_nothing_is_changed_when_targets_are_refused():
    model = tiny_bert()
    names = [n for n, _ in model.named_modules()]
    with pytest.raises(ValueError):
        attach(model, AdapterConfig(target_modules=["nothing"]))
    assert [n for n, _ in model.named_modules()] == names
    assert all(p.requires_grad for p in model.parameters())


def test_attaching_twice_is_refused():
    model = tiny_bert()
    attach(model)
    with pytest.raises(ValueError, match="adapters already"):
        attach(model)


def test_ranks_below_one_are_refused():
    with pytest.raises(ValueError, match="rank"):
        AdapterConfig(rank=0)


def test_patterns_choose_rank_and_scale_by_layer():
    config = AdapterConfig(
        rank=4, alpha=8, rank_pattern={"query": 2}, alpha_pattern={r"layer\.1\..*\.value": 3}, use_rslora=True
    )
    layers = attach(tiny_bert(), config).layers
    assert {n: layer.rank for n, layer in layers.items() if n.endswith("query")} == dict.fromkeys(
        [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)], 2
    )
    assert layers["bert.encoder.layer.0.attention.self.query"].scale == pytest.approx(8 / 2**0.5)
    assert layers["bert.encoder.layer.1.attention.self.value"].scale == pytest.approx(3 / 2)


def test_a_head_that_shares_its_weight_is_not_merged_into_it():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    for tied in (True, False):
        model = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, tie_word_embeddings=tied, **sizes)).eval()
        adapters = attach(model, AdapterConfig(rank=2, target_modules=["q_proj", "lm_head"]))
        torch.nn.init.normal_(adapters.layers["lm_head"].lora_B)
        before, weight = model(torch.arange(5)[None]).logits, model.lm_head.base_layer.weight.clone()
        if tied:
            with pytest.raises(
                ValueError, match=r"lm_head shares its weight with model\.embed_tokens.* untie them first"
            ):
                adapters.merge()
            assert torch.equal(model.lm_head.base_layer.weight, weight)
        else:
            adapters.merge()
        torch.testing.assert_close(model(torch.arange(5)[None]).logits, before)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_factors_are_not_taken_from_a_weight_that_others_read_too(init):
    model, batch = tiny_gpt2(), text_batch()
    before = model(input_ids=batch["input_ids"]).logits
    with pytest.raises(
        ValueError, match=rf"lm_head shares its weight with transformer\.wte, which init='{init}'.* untie"
    ):
        attach(model, AdapterConfig(rank=2, target_modules=["lm_head"], init=init))
    assert torch.equal(model(input_ids=batch["input_ids"]).logits, before)


def test_weights_can_be_tied_again_beside_an_adapter():
    model, batch = tiny_gpt2(), text_batch()
    adapted(model, target_modules=["lm_head"])
    before = model(input_ids=batch["input_ids"]).logits
    model.transformer.wte.weight = torch.nn.Parameter(model.transformer.wte.weight.clone())
    model.tie_weights()
    assert model.lm_head.weight is model.lm_head.base_layer.weight is model.transformer.wte.weight
    assert torch.equal(model(input_ids=batch["input_ids"]).logits, before)


def test_merge_keeps_the_outputs_and_unmerge_restores_the_weight():
    for model, losses in ((tiny_bert(), sample_losses), (tiny_gpt2(), lambda m, b: m(input_ids=b["input_ids"]).logits)):
        batch = text_batch()
        base = {n: p.clone() for n, p in model.named_parameters()}
        adapters = adapted(model, target_modules="all-linear")
        before = losses(model, batch)
        adapters.merge()
        torch.testing.assert_close(losses(model, batch), before, rtol=1e-4, atol=1e-5)
        adapters.unmerge()
        torch.testing.assert_close(losses(model, batch), before, rtol=1e-4, atol=1e-5)
        for name, parameter in adapters.detach().named_parameters():
            torch.testing.assert_close(parameter, base[name], rtol=0, atol=1e-6)


def test_disabled_adapters_answer_as_the_base_model():
    model, batch = tiny_bert(), text_batch()
    before = sample_losses(model, batch)
    adapters = adapted(model)
    assert not torch.equal(sample_losses(model, batch), before)
    with adapters.disabled():
        assert torch.equal(sample_losses(model, batch), before)


@pytest.mark.parametrize("config", [{}, {"init": "pissa", "trained": "both"}])
@pytest.mark.parametrize("is_merged", [False, True])
def test_disabled_adapters_leave_the_base_model_and_come_back_as_they_were(config, is_merged):
    model, batch = tiny_bert(), text_batch()
    base = sample_losses(model, batch)
    adapters = adapted(model, **config)
    if is_merged:
        adapters.merge()
    before = sample_losses(model, batch)
    with adapters.disabled():
        with adapters.disabled():
            torch.testing.assert_close(sample_losses(model, batch), base, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sample_losses(model, batch), base, rtol=1e-5, atol=1e-6)
        if is_merged:
            with pytest.raises(RuntimeError, match=r"is disabled.*outside of disabled\(\)"):
                adapters.unmerge()
    assert torch.equal(sample_losses(model, batch), before)
    assert all(layer.is_merged == is_merged for layer in adapters.layers.values())


def test_a_state_is_not_loaded_beside_one_that_is_merged():
    adapters = adapted(tiny_bert())
    adapters.merge()
    with pytest.raises(RuntimeError, match=r"is merged into its base weight; call unmerge\(\)"):
        adapters.load_state_(adapters.state() * 2)
    adapters.unmerge()
    adapters.load_state_(adapters.state() * 2)


def test_a_merge_that_one_layer_refuses_changes_no_other():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    adapters = adapted(model, target_modules=["0", "1"])
    whole = torch.zeros(4, 4, dtype=torch.int8)
    model[1].base_layer.weight = torch.nn.Parameter(whole, requires_grad=False)
    with pytest.raises(ValueError, match=r"^1: .* cannot hold a merged adapter"):
        adapters.merge()
    assert not any(layer.is_merged for layer in adapters.layers.values())


def test_a_float32_head_is_trained_on_a_model_in_bfloat16():
    model, batch = tiny_bert().bfloat16(), text_batch()
    model.classifier.float()
    adapters = adapted(model, head="trained")
    losses = sample_losses(model, batch)
    found, arena, _ = run_pass(adapters, lambda: sample_losses(model, batch), len(losses))
    torch.testing.assert_close(found, losses.detach(), rtol=2e-2, atol=2e-2)
    _, rows = one_at_a_time(adapters, batch)
    columns = adapters.layout.at["classifier.weight"].columns
    assert relative_error(arena[:, columns], rows[:, columns]) < 2e-2


def test_a_model_in_float64_answers_in_float64():
    model, batch = tiny_bert(), text_batch()
    adapters = adapted(model, head="trained")
    before = sample_losses(model, batch)
    model.double()
    for name in adapters.layers:
        model.get_submodule(name).float()
        model.get_submodule(name).base_layer.double()
    torch.testing.assert_close(sample_losses(model, batch), before, rtol=1e-5, atol=1e-6)
    sample_losses(model, batch).sum().backward()


def test_a_base_weight_in_float64_keeps_its_digits_when_an_adapter_is_merged():
    base = torch.nn.Linear(6, 5, dtype=torch.float64)
    before = base.weight.detach().clone()
    adapters = adapted(torch.nn.Sequential(base), target_modules=["0"])
    adapters.merge()
    adapters.unmerge()
    torch.testing.assert_close(base.weight.detach(), before, rtol=0, atol=1e-15)


def test_hooks_on_the_backward_pass_of_a_base_layer_are_called():
    model, called = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)), []
    model[1].register_full_backward_pre_hook(lambda module, dy: called.append("before"))
    adapters = adapted(model, target_modules=["0", "1"])
    model(torch.randn(3, 6)).sum().backward()
    adapters.detach()
    model[1].register_full_backward_hook(lambda module, dx, dy: called.append("after"))
    adapted(model, target_modules=["0", "1"])
    model(torch.randn(3, 6)).sum().backward()
    assert called == ["before", "before", "after"]


def test_a_layer_that_nothing_holds_is_not_adapted():
    with pytest.raises(ValueError, match=r"is a Linear that nothing holds.*torch\.nn\.Sequential\(model\)"):
        attach(torch.nn.Linear(4, 4), AdapterConfig(target_modules="all-linear"))


def test_tensors_without_numbers_pass_adapted_layers():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 2), torch.nn.Flatten(), torch.nn.Linear(20, 4)).to("meta")
    adapters = attach(model, AdapterConfig(target_modules=["0", "2"]))
    model(torch.empty(2, 3, 3, 3, device="meta")).sum().backward()
    assert [layer.lora_B.grad.shape for layer in adapters.layers.values()] == [(5, 8), (4, 8)]


def test_adapted_layers_have_the_sizes_of_their_own():
    model = tiny_bert()
    attach(model, AdapterConfig(head="trained"))
    query = model.bert.encoder.layer[0].attention.self.query
    assert (query.in_features, query.out_features) == (16, 16)
    assert (model.classifier.in_features, model.classifier.out_features) == (16, 3)
    assert not hasattr(attach(tiny_gpt2()).layers["transformer.h.0.attn.c_attn"], "in_features")


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_autocast_gives_the_gradients_of_full_precision_to_its_rounding(dtype, tolerance):
    adapters, batch = adapted(tiny_bert(), head="trained", trained="both"), text_batch()
    _, expected, _ = run_pass(adapters, lambda: sample_losses(adapters.model, batch), 5)

    def losses():
        with torch.autocast("cpu", dtype=dtype):
            return sample_losses(adapters.model, batch)

    _, arena, _ = run_pass(adapters, losses, 5)
    assert arena.isfinite().all()
    assert relative_error(arena, expected) < tolerance
    losses().sum().backward()
    total = torch.cat([adapters.layout.parameter(p).grad.reshape(-1).float() for p in adapters.layout.places])
    assert relative_error(total, expected.sum(0)[: len(total)]) < tolerance


@pytest.mark.parametrize(
    "method, targets", [("lora", ["0", "2"]), *((m, ["2"]) for m in ("vera", "lokr", "bottleneck"))]
)
def test_a_backward_pass_inside_autocast_has_the_bits_of_one_outside(method, targets):
    """The forward pass ran in float32, outside; ordinary gradients and those of segments."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    config = AdapterConfig(method=method, rank=2, target_modules=targets, trained="both" if method == "lora" else "b")
    adapters, x = attach(model, config), torch.randn(5, 3, 6)
    adapters.load_state_(torch.randn(adapters.layout.width))

    def losses():
        with torch.autocast("cpu", enabled=False):
            return model(x).square().sum((1, 2))

    def gradients():
        _, arena, _ = run_pass(adapters, losses, 5)
        return arena, *torch.autograd.grad(losses().sum(), [*map(adapters.layout.parameter, adapters.layout.places)])

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients()
    assert all(torch.equal(mine, other) for mine, other in zip(inside, expected, strict=True))


@pytest.mark.parametrize("method", ["lora", "vera", "lokr", "bottleneck"])
def test_second_derivatives_are_refused_instead_of_left_out(method):
    """The gradient of the input depends on what is trained, which its own gradient does not show."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 8))
    adapters = attach(model, AdapterConfig(method=method, rank=2, target_modules=["0"]))
    loss = model(torch.randn(5, 6, requires_grad=True)).square().sum()
    trained = [*map(adapters.layout.parameter, adapters.layout.places)]
    with pytest.raises(RuntimeError, match="create_graph=True asks for derivatives of a backward pass that has none"):
        torch.autograd.grad(loss, trained, create_graph=True)
    assert torch.autograd.grad(loss, trained)[0].isfinite().all()


def test_a_bfloat16_base_keeps_float32_adapters_and_its_own_bits():
    model = tiny_bert().bfloat16()
    base = {n: p.clone() for n, p in model.named_parameters()}
    adapters, batch = adapted(model), text_batch()
    reference = adapted(tiny_bert())
    _, expected, _ = run_pass(reference, lambda: sample_losses(reference.model, batch), 5)
    _, arena, _ = run_pass(adapters, lambda: sample_losses(model, batch), 5)
    assert arena.dtype == torch.float32 and relative_error(arena, expected) < 5e-2
    adapters.load_state_(adapters.state() + 1)
    assert all(torch.equal(p, base[n]) for n, p in adapters.detach().named_parameters())


def saved_bytes(model, call) -> int:
    """Bytes of distinct tensors that the forward pass of ``call`` keeps for backward, the model's own left out."""
    kept, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = call()
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("trained", ["b", "both"])
def test_the_layer_saves_no_more_than_peft(dropout, trained):
    tokens, k, n, r = 64, 48, 40, 4
    torch.manual_seed(0)
    ours = torch.nn.Sequential(torch.nn.Linear(k, n))
    attach(ours, AdapterConfig(rank=r, target_modules=["0"], dropout=dropout, trained=trained))
    theirs = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(k, n)), peft.LoraConfig(r=r, target_modules=["0"], lora_dropout=dropout)
    )
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_("lora_B" in name or (trained == "both" and "lora_A" in name))
    x = torch.randn(tokens, k).requires_grad_()
    mine, rival = saved_bytes(ours, lambda: ours.train()(x * 1)), saved_bytes(theirs, lambda: theirs.train()(x * 1))
    assert mine <= rival
    if trained == "b" and not dropout:
        assert mine <= 4 * tokens * r, "with a frozen, only h [M,R] is kept"
    if dropout:
        assert mine < rival


def test_the_input_is_never_kept_when_a_is_frozen():
    x, w, a = torch.randn(32, 24).requires_grad_(), torch.randn(16, 24), torch.randn(4, 24)
    b = torch.randn(1, 16, 4).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        adapted_linear(x, w, None, a, b, 1.0, Segments.uniform(4, 8))
    assert (32, 24) not in kept and (32, 16) not in kept


def test_adapted_linear_passes_gradcheck_in_float64():
    torch.manual_seed(0)
    x, w, bias = torch.randn(6, 5).double(), torch.randn(4, 5).double(), torch.randn(4).double()
    a, b = torch.randn(3, 5).double(), torch.randn(1, 4, 3).double()
    inputs = [t.requires_grad_() for t in (x, bias, a, b)]

    def function(x, bias, a, b):
        return adapted_linear(x, w, bias, a, b, 0.7, Segments.uniform(1, 6))

    assert torch.autograd.gradcheck(function, inputs)


def test_a_separate_adapter_input_passes_gradcheck_in_float64():
    torch.manual_seed(0)
    x, w = torch.randn(6, 5).double().requires_grad_(), torch.randn(4, 5).double()
    other = torch.randn(6, 5).double().requires_grad_()
    a, b = torch.randn(3, 5).double().requires_grad_(), torch.randn(1, 4, 3).double().requires_grad_()
    for base in (w, None):
        assert torch.autograd.gradcheck(
            lambda x, o, a, b, base=base: adapted_linear(x, base, None, a, b, 0.7, Segments.uniform(1, 6), x_adapter=o),
            (x, other, a, b),
        )


def test_dropout_acts_on_the_adapter_alone_and_only_in_training():
    model = tiny_bert()
    adapters, batch = adapted(model, dropout=0.5), text_batch()
    assert torch.equal(sample_losses(model, batch), sample_losses(model, batch))
    layer = next(iter(adapters.layers.values())).train()
    x = torch.randn(4, 16)
    torch.manual_seed(0)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    with torch.no_grad():
        layer.lora_B.zero_()
    torch.testing.assert_close(layer(x), layer.base_layer(x))


def test_ordinary_gradients_equal_those_of_the_arena_summed():
    adapters, batch = adapted(tiny_llama(), target_modules="all-linear", trained="both"), text_batch()

    def losses():
        logits = adapters.model(input_ids=batch["input_ids"]).logits
        return logits.square().mean((1, 2))

    _, arena, _ = run_pass(adapters, losses, 5)
    losses().sum().backward()
    row = torch.zeros(adapters.layout.width)
    for place in adapters.layout.places:
        row[place.start : place.start + place.size] = adapters.layout.parameter(place).grad.reshape(-1)
    assert relative_error(arena.sum(0), row) < 1e-5


def test_state_and_payload_survive_a_round_trip():
    adapters = adapted(tiny_bert(), rank=3)
    row = adapters.state()
    payload = adapters.layout.payload(row)
    assert payload.numel() == adapters.layout.size
    assert torch.equal(adapters.layout.from_payload(payload), row)
    randomise(adapters, seed=9)
    assert not torch.equal(adapters.state(), row)
    adapters.load_state_(row)
    assert torch.equal(adapters.state(), row)


def test_dropout_by_masks_has_second_derivatives():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def function(x):
        torch.manual_seed(0)
        return masked_dropout(x, 0.5).pow(3)

    assert torch.autograd.gradgradcheck(function, (x,))


def test_dropout_keeps_the_mean_and_passes_gradients_through_its_own_mask():
    x = torch.ones(400, 50).requires_grad_()
    torch.manual_seed(0)
    y = masked_dropout(x, 0.25)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert y.detach().unique().tolist() == pytest.approx([0.0, 4 / 3])


def test_a_base_weight_that_is_trained_beside_its_adapter_gets_its_gradient():
    model, batch = tiny_bert(), text_batch()
    layer = next(iter(adapted(model).layers.values()))
    weight = layer.base_layer.weight.requires_grad_()
    (beside,) = torch.autograd.grad(sample_losses(model, batch).sum(), weight)
    with torch.no_grad():
        layer.merge()
    (merged,) = torch.autograd.grad(sample_losses(model, batch).sum(), weight)
    torch.testing.assert_close(beside, merged, rtol=1e-4, atol=1e-6)


class Encoder(torch.nn.Module):
    """torch's own Transformer, whose evaluation reads weights where it can."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2)

    def forward(self, x, padding=None):
        return self.encoder(x, src_key_padding_mask=padding)


def test_a_transformer_of_torch_answers_with_its_adapters_in_evaluation_too():
    model, x = Encoder(), torch.randn(3, 5, 16)
    padding = torch.arange(5) >= torch.tensor([5, 3, 4])[:, None]
    adapted(model, target_modules="all-linear")
    trained = model.train()(x, padding)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x, padding)[~padding], trained[~padding])


def test_an_adapter_whose_layer_is_never_called_is_refused():
    with pytest.raises(ValueError, match=r"self_attn is an nn\.MultiheadAttention.*exclude_modules"):
        attach(Encoder(), AdapterConfig(target_modules=["linear1", "out_proj"]))
    assert not any("out_proj" in name for name in attach(Encoder(), AdapterConfig(target_modules="all-linear")).layers)


@pytest.mark.parametrize("norm", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.weight_norm])
def test_a_weight_that_is_computed_from_others_takes_no_adapter_in(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older weight norm, which models still have
        model = torch.nn.Sequential(norm(torch.nn.Linear(6, 5)))
    with pytest.raises(ValueError, match=r"init='pissa' changes base weights, but the weight of 0 is .* param"):
        attach(model, AdapterConfig(rank=2, target_modules=["0"], init="pissa"))
    adapters, x = adapted(model, target_modules=["0"]), torch.randn(3, 6)
    before = model(x)
    with pytest.raises(ValueError, match=r"cannot hold a merged adapter .*parametrisation"):
        adapters.merge()
    torch.testing.assert_close(model(x), before)


def test_a_model_with_adapters_of_peft_is_not_adapted_again():
    model = peft.get_peft_model(tiny_bert(), peft.LoraConfig(r=2, target_modules=["query"]))
    before = str(model)
    with pytest.raises(ValueError, match=r"has PEFT's adapters already .*convert\(model\)"):
        attach(model, AdapterConfig(target_modules="all-linear"))
    assert str(model) == before


def test_an_empty_pattern_of_layers_is_none():
    one = attach(tiny_bert(), AdapterConfig(layers_to_transform=[1], layers_pattern=""))
    assert one.layers.keys() == attach(tiny_bert(), AdapterConfig(layers_to_transform=[1])).layers.keys()


@pytest.mark.parametrize("targets", ["all-linear", "auto", ["query"]])
def test_layers_that_the_model_does_not_have_are_named_with_those_that_it_has(targets):
    with pytest.raises(ValueError, match=r"layers_to_transform=\[9\] names none of this model's layers.* 0 to 1"):
        attach(tiny_bert(), AdapterConfig(target_modules=targets, layers_to_transform=[9]))
