"""PEFT models work on after convert: same logits, gradients, files, switches, merges; refusals change nothing."""

import copy
import dataclasses
from pathlib import Path

import peft
import pytest
import torch
from adapter_cases import (
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

from ffalora.adapters import AdapterConfig, attach, convert, get_peft_model
from ffalora.config.peft_names import HONOURED, NEUTRAL, REFUSED

MODELS = {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama}


def logits(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def peft_model(base=None, **config):
    """A PEFT model whose B is not zero."""
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value"], **config}
    model = peft.get_peft_model(tiny_bert() if base is None else base, peft.LoraConfig(**config)).eval()
    fill(model)
    return model


def fill(model, std=0.05):
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def factors(model, kind):
    return {n: p for n, p in model.named_parameters() if f"lora_{kind}" in n}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", "pissa", "olora"])
def test_logits_and_gradients_equal_those_of_peft(kind, init):
    if (kind, init) == ("gpt2", "olora"):
        pytest.skip("PEFT's OLoRA takes the QR of a Conv1D's weight without transposing it and fails")
    theirs, batch = peft_model(MODELS[kind](), target_modules="all-linear", init_lora_weights=init, r=2), text_batch()
    ours = copy.deepcopy(theirs)
    convert(ours, trained="both")
    assert relative_error(logits(ours, batch), logits(theirs, batch)) < 1e-6
    flat = []
    for model in (ours, theirs):
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(logits(model, batch).square().sum(), parameters)
        flat.append(torch.cat([g.flatten() for g in grads]))
    assert relative_error(flat[0], flat[1]) < 2e-6


def test_converting_freezes_a_and_detaching_gives_peft_back():
    model, batch = peft_model(), text_batch()
    kinds = {n: type(m) for n, m in model.named_modules()}
    before = logits(model, batch)
    adapters = convert(model)
    assert not any(p.requires_grad for p in factors(model, "A").values())
    assert all(p.requires_grad for p in factors(model, "B").values())
    assert adapters.detach() is model
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert all(p.requires_grad for p in factors(model, "A").values())
    assert torch.equal(logits(model, batch), before)


def test_arena_rows_of_a_converted_model_equal_single_samples():
    model, batch = peft_model(modules_to_save=["classifier"]), text_batch()
    adapters = convert(model, trained="both")
    assert list(adapters.heads) == ["classifier"]
    _, arena, _ = run_pass(adapters, lambda: sample_losses(model, batch), 5)
    assert relative_error(arena, one_at_a_time(adapters, batch)[1]) < 1e-5
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(adapters.layout.parameter(place)) for place in adapters.layout.places
    }


def test_converted_and_attached_models_have_the_same_layout_and_state():
    converted = get_peft_model(tiny_bert(), peft.LoraConfig(r=3, target_modules=["query", "value"]), seed=5)
    adapters = convert(converted)
    attached = attach(tiny_bert(), AdapterConfig(rank=3, target_modules=["query", "value"], seed=5))
    assert [p.name for p in adapters.layout.places] == [p.name for p in attached.layout.places]
    for name, layer in attached.layers.items():
        assert torch.equal(adapters.layers[name].lora_A, layer.lora_A)
    row = torch.randn(adapters.layout.width)
    adapters.load_state_(row)
    attached.load_state_(row)
    torch.testing.assert_close(logits(converted.eval(), text_batch()), logits(attached.model, text_batch()))


def test_attach_takes_the_configuration_of_peft():
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["query", "value"], use_rslora=True, lora_dropout=0.1,
        init_lora_weights="gaussian", modules_to_save=["classifier"], task_type="SEQ_CLS",
    )  # fmt: skip
    theirs = attach(tiny_bert(), config)
    ours = attach(
        tiny_bert(),
        AdapterConfig(
            rank=3, alpha=6, target_modules=["query", "value"], use_rslora=True, dropout=0.1, init="gaussian",
            head="trained",
        ),
    )  # fmt: skip
    assert theirs.config == ours.config
    assert torch.equal(theirs.state(), ours.state()) and list(theirs.heads) == ["classifier"]
    assert attach(tiny_bert(), peft.LoraConfig()).config == AdapterConfig()


@pytest.mark.parametrize(
    "config, words",
    [
        (peft.LoraConfig(use_dora=True), "use_dora"),
        (peft.LoraConfig(lora_bias=True), "lora_bias"),
        (peft.LoraConfig(modules_to_save=["pooler"]), r"modules_to_save=\['pooler'\] .*classifier"),
        (peft.VeraConfig(target_modules=["query"]), "peft_type"),
    ],
)
def test_attach_refuses_what_peft_s_configuration_asks_beyond_lora_and_leaves_the_model(config, words):
    model = tiny_bert()
    with pytest.raises(ValueError, match=words):
        attach(model, config)
    assert all(p.requires_grad for p in model.parameters())


def test_moving_the_model_leaves_no_stale_alias():
    model, batch = peft_model(), text_batch()
    adapters = convert(model)
    model.double().float()
    randomise(adapters)
    _, arena, _ = run_pass(adapters, lambda: sample_losses(model, batch), 5)
    assert relative_error(arena, one_at_a_time(adapters, batch)[1]) < 1e-5


def test_several_named_adapters_switch_without_thawing_the_frozen_factor():
    model, batch = peft_model(), text_batch()
    first = convert(model)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["query"]))
    outputs = {}
    for name in ("second", "default", "second"):
        model.set_adapter(name)
        fill(model)
        assert not any(p.requires_grad for p in factors(model, "A").values())
        assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {name}
        outputs[name] = logits(model, batch)
    assert not torch.equal(outputs["second"], outputs["default"])
    second = convert(model, adapter_name="second")
    assert len(second.layers) == 2 and len(first.layers) == 4
    _, arena, _ = run_pass(second, lambda: sample_losses(model, batch), 5)
    assert relative_error(arena, one_at_a_time(second, batch)[1]) < 1e-5


def test_disabling_merging_and_unloading_are_peft_s_own():
    model, batch = peft_model(), text_batch()
    plain = logits(tiny_bert(), batch)
    convert(model)
    adapted = logits(model, batch)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, batch), plain, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in factors(model, "A").values())
    model.merge_adapter()
    torch.testing.assert_close(logits(model, batch), adapted, rtol=0, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, batch), adapted, rtol=0, atol=1e-5)
    merged = model.merge_and_unload()
    assert "lora" not in str(merged)
    torch.testing.assert_close(logits(merged, batch), adapted, rtol=0, atol=1e-5)


def test_a_disabled_handle_answers_with_the_head_of_the_base_too():
    model, batch = peft_model(modules_to_save=["classifier"]), text_batch()
    adapters = convert(model)
    adapters.load_state_(adapters.state() + 0.2)
    before, trained = logits(model, batch), {n for n, p in model.named_parameters() if p.requires_grad}
    for is_merged in (False, True):
        if is_merged:
            adapters.merge()
        with adapters.disabled():
            with adapters.disabled():
                pass
            torch.testing.assert_close(logits(model, batch), logits(tiny_bert(), batch), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits(model, batch), before, rtol=1e-5, atol=1e-6)
        assert all(layer.is_merged == is_merged for layer in adapters.layers.values())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained


def test_a_pass_over_what_has_no_sample_gradients_is_refused_by_name():
    model, batch = peft_model(), text_batch()
    adapters = convert(model)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["query"]))
    model.base_model.set_adapter(["default", "second"])
    logits(model, batch)
    with pytest.raises(RuntimeError, match="default, second are active at once"):
        run_pass(adapters, lambda: sample_losses(model, batch), 5)
    model.set_adapter("default")
    model.merge_adapter()
    with pytest.raises(RuntimeError, match="merged"):
        run_pass(adapters, lambda: sample_losses(model, batch), 5)


def test_mixed_batches_are_answered_by_peft():
    model, batch = peft_model(), text_batch(samples=2)
    convert(model)
    both = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], adapter_names=["default", "__base__"]
    ).logits
    torch.testing.assert_close(both[:1], logits(model, batch)[:1])
    torch.testing.assert_close(both[1:], logits(tiny_bert(), batch)[1:])


def test_files_of_a_converted_model_load_in_peft(tmp_path):
    model, batch = peft_model(modules_to_save=["classifier"]), text_batch()
    adapters = convert(model)
    adapters.save(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    assert torch.equal(logits(again, batch), logits(adapters.detach(), batch))


def test_pissa_checkpoints_carry_the_change_of_the_base_weight(tmp_path):
    adapters, batch = attach(tiny_bert(), AdapterConfig(rank=3, init="pissa", target_modules=["query"])), text_batch()
    base = {n: p.clone() for n, p in tiny_bert().named_parameters()}
    assert relative_error(logits(adapters.model, batch), logits(tiny_bert(), batch)) < 1e-5
    adapters.load_state_(adapters.state() * 1.1)
    expected = logits(adapters.model, batch)
    adapters.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    assert relative_error(logits(theirs, batch), expected) < 1e-5
    for name, parameter in adapters.detach().named_parameters():
        torch.testing.assert_close(parameter, base[name], rtol=0, atol=1e-6)


def test_an_orthogonal_init_starts_at_the_base_model_with_orthonormal_rows():
    model = get_peft_model(
        tiny_bert(), peft.LoraConfig(r=4, target_modules=["query"], init_lora_weights="orthogonal")
    ).eval()
    assert torch.equal(logits(model, text_batch()), logits(tiny_bert(), text_batch()))
    for a in factors(model, "A").values():
        torch.testing.assert_close(a @ a.T, torch.eye(4), rtol=0, atol=1e-5)


def test_an_embedding_adapter_trains_its_zero_factor():
    model = peft_model(target_modules=["query", "word_embeddings"])
    convert(model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "embedding" in n}
    assert trained == {n for n, _ in model.named_parameters() if "lora_embedding_A" in n}


def test_convolutions_are_converted_as_linear_layers_of_patches():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(5, 4, 2))
    theirs = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0", "2"])).eval()
    fill(theirs, std=0.5)
    ours = copy.deepcopy(theirs)
    adapters = convert(ours)
    x = torch.randn(4, 3, 9, 7)
    torch.testing.assert_close(ours(x), theirs(x))
    _, arena, _ = run_pass(adapters, lambda: ours(x).square().sum((1, 2, 3)), 4)
    _, rows = one_at_a_time(adapters, {"x": x}, lambda m, b: m(b["x"]).square().sum((1, 2, 3)))
    assert relative_error(arena, rows) < 1e-5


@pytest.mark.parametrize("layout", [{"groups": 3, "padding": 1}, {"padding": "same"}])
def test_a_convolution_that_is_no_product_of_patches_is_not_converted(layout):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, **layout))
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["0"]))
    with pytest.raises(ValueError, match=r"0: a Conv2d with groups=.*exclude_modules"):
        convert(model)


def test_layers_of_torch_that_read_weights_are_refused_or_called():
    class Attends(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)

        def forward(self, x):
            return self.layer(x)

    model, x = peft_model(Attends(), target_modules=["linear1"]), torch.randn(2, 3, 16)
    convert(model)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), model.train()(x))
    with pytest.raises(ValueError, match=r"layer\.self_attn is an nn\.MultiheadAttention"):
        convert(peft_model(Attends(), target_modules=["out_proj"]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_changes(options, message):
    model = peft_model(**options)
    before = {n: (p.clone(), p.requires_grad) for n, p in model.named_parameters()}
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        convert(model)
    assert [type(m) for m in model.modules()] == kinds
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
    base = tiny_bert()
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, peft.LoraConfig(target_modules=["query"], **options))
    assert "lora" not in str(base)


def test_models_without_peft_layers_and_unknown_adapters_are_refused():
    with pytest.raises(ValueError, match="attach"):
        convert(tiny_bert())
    with pytest.raises(ValueError, match="nobody"):
        convert(peft_model(), adapter_name="nobody")


def test_adapters_added_by_transformers_itself_are_converted():
    model, batch = tiny_bert(), text_batch()
    model.add_adapter(peft.LoraConfig(r=3, target_modules=["query"]))
    adapters = convert(model)
    _, arena, _ = run_pass(adapters, lambda: sample_losses(model, batch), 5)
    assert relative_error(arena, one_at_a_time(adapters, batch)[1]) < 1e-5


def test_trained_biases_of_the_base_get_peft_s_gradients():
    theirs, batch = peft_model(bias="lora_only"), text_batch()
    ours = copy.deepcopy(theirs)
    convert(ours, trained="both")
    for model in (ours, theirs):
        sample_losses(model, batch).sum().backward()
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if other.grad is not None:
            assert relative_error(mine.grad, other.grad) < 1e-5 or other.grad.abs().max() < 1e-6, name


def test_every_key_of_peft_s_configuration_is_decided_and_documented():
    keys = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    undecided = keys - HONOURED.keys() - NEUTRAL.keys() - REFUSED.keys()
    assert not undecided, "PEFT has keys that are neither honoured nor refused"
    page = (Path(__file__).parents[2] / "docs" / "peft.md").read_text()
    assert not [key for key in keys if f"| `{key}` |" not in page]


def test_an_init_that_trains_the_other_factor_is_refused():
    with pytest.raises(ValueError, match="MiCA"):
        convert(peft_model(init_lora_weights="mica"))


def test_adapters_in_bfloat16_are_followed():
    config = peft.LoraConfig(r=3, target_modules=["query", "value"])
    model = peft.get_peft_model(tiny_bert().bfloat16(), config, autocast_adapter_dtype=False).eval()
    fill(model)
    adapters, batch = convert(model), text_batch()
    assert {p.dtype for p in factors(model, "B").values()} == {torch.bfloat16}
    _, arena, _ = run_pass(adapters, lambda: sample_losses(model, batch), 5)
    assert arena.dtype == torch.float32 and arena.isfinite().all()
    sample_losses(model, batch).sum().backward()
    total = torch.cat([p.grad.flatten().float() for p in factors(model, "B").values()])
    assert relative_error(arena.sum(0), total) < 3e-2


@pytest.mark.long
def test_a_converted_model_compiles_into_one_graph():
    torch._dynamo.reset()
    model, batch = peft_model(tiny_bert(layers=1)), text_batch()
    adapters = convert(model)
    compiled = torch.compile(model.base_model.model, backend="aot_eager", fullgraph=True)
    _, expected, _ = run_pass(adapters, lambda: sample_losses(model, batch), 5)
    _, arena, _ = run_pass(adapters, lambda: sample_losses(compiled, batch), 5)
    assert relative_error(arena, expected) < 1e-5
    torch._dynamo.reset()
