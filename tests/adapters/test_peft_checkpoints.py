"""Our checkpoints load in PEFT and PEFT's in ours, with equal logits and equal gradients; damaged ones say what is
wrong."""

import copy
import json

import peft
import pytest
import torch
from adapter_cases import adapted, relative_error, text_batch, tiny_bert, tiny_gpt2, tiny_llama
from safetensors.torch import load_file, save_file

from ffalora.adapters import AdapterConfig, CheckpointError, attach, load_adapters
from ffalora.adapters.peft_plain import is_plain, plain_factors

LOGITS = 1e-6
MODELS = {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama}


def logits(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def gradients(parameters, value):
    return torch.autograd.grad(value.square().sum(), parameters)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("targets", ["auto", "all-linear"])
def test_peft_loads_our_checkpoint_with_equal_logits_and_gradients(kind, targets, tmp_path):
    base, batch = MODELS[kind](), text_batch()
    reference = copy.deepcopy(base)
    # with larger b float32 itself is 1.3e-6 away from float64 on the Llama, for PEFT as for us
    adapters = adapted(base, b_std=0.05, target_modules=targets, use_rslora=True, rank_pattern={r".*0\..*": 2})
    adapters.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(reference, tmp_path, is_trainable=True).eval()
    ours = logits(base, batch)
    rival = logits(theirs, batch)
    assert relative_error(ours, rival) < LOGITS
    modules = dict(theirs.base_model.model.named_modules())
    mine = gradients([layer.lora_B for layer in adapters.layers.values()], ours)
    others = gradients([modules[name].lora_B["default"].weight for name in adapters.layers], rival)
    assert relative_error(torch.cat([g.flatten() for g in mine]), torch.cat([g.flatten() for g in others])) < LOGITS


@pytest.mark.parametrize("kind", MODELS)
def test_our_loader_reads_peft_checkpoints_with_equal_logits(kind, tmp_path):
    base, batch = MODELS[kind](), text_batch()
    reference = copy.deepcopy(base)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules="all-linear", use_rslora=True, alpha_pattern={"q_proj": 2}
    )
    theirs = peft.get_peft_model(base, config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = logits(theirs, batch)
    theirs.save_pretrained(tmp_path)
    adapters = load_adapters(reference, tmp_path)
    assert relative_error(logits(adapters.model, batch), expected) < LOGITS


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"rank_pattern": {r".*0\..*": 2}, "alpha_pattern": {"q_proj": 3}},
        {"init": "pissa", "trained": "both", "alpha": 2.5},
    ],
)
def test_plain_factors_add_to_the_base_what_the_adapter_adds(changes):
    base = tiny_llama()
    weights = {name: p.detach().clone() for name, p in base.named_parameters()}
    adapters = adapted(base, target_modules="all-linear", **changes)
    assert not is_plain(adapters.config)
    rank, factors = plain_factors(adapters.layers)
    for name, layer in adapters.layers.items():
        a, b = factors[name]["lora_A.weight"], factors[name]["lora_B.weight"]
        assert len(a) == b.shape[1] == rank
        expected = layer.base_weight() + layer.delta()
        assert relative_error(weights[f"{name}.weight"] + b @ a, expected) < LOGITS


@pytest.mark.parametrize("before", [{"init": "pissa"}, {"target_modules": "all-linear"}, {"method": "vera"}])
def test_what_peft_has_written_over_our_files_is_read_as_peft_reads_it(before, tmp_path):
    attach(tiny_bert(), AdapterConfig(rank=3, alpha=6.0, **before)).save(tmp_path)
    theirs = peft.get_peft_model(tiny_bert(), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["key"]))
    batch = text_batch()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    adapters = load_adapters(tiny_bert(), tmp_path)
    assert relative_error(logits(adapters.model, batch), logits(theirs.eval(), batch)) < LOGITS


def test_alpha_is_written_as_a_whole_number_where_it_is_one(tmp_path):
    adapted(tiny_llama(), alpha=6.0).save(tmp_path)
    assert '"lora_alpha": 6,' in (tmp_path / "adapter_config.json").read_text()


def test_a_trained_head_travels_with_the_adapters(tmp_path):
    adapters, batch = adapted(tiny_bert(), head="trained"), text_batch()
    adapters.load_state_(adapters.state() + 0.1)
    adapters.save(tmp_path)
    expected = logits(adapters.model, batch)
    again = load_adapters(tiny_bert(), tmp_path)
    torch.testing.assert_close(logits(again.model, batch), expected)
    assert torch.equal(again.state(), adapters.state())
    theirs = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs, batch), expected, rtol=0, atol=LOGITS)


def test_a_frozen_output_layer_of_a_language_model_is_not_written(tmp_path):
    adapted(tiny_gpt2()).save(tmp_path)
    assert not any("lm_head" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] is None


@pytest.mark.parametrize("is_merged", [False, True])
def test_an_adapter_on_the_task_head_travels_beside_its_base(is_merged, tmp_path):
    adapters, batch = adapted(tiny_bert(), target_modules=["query", "classifier"]), text_batch()
    expected = logits(adapters.model, batch)
    if is_merged:
        adapters.merge()
    adapters.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None and "classifier" in config["target_modules"]
    for seed in (0, 1):  # the other seed: a head as random as the one that was trained beside
        base = tiny_bert()
        base.classifier = tiny_bert(seed).classifier
        ours = load_adapters(copy.deepcopy(base), tmp_path)
        torch.testing.assert_close(logits(ours.model, batch), expected, rtol=0, atol=LOGITS)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        torch.testing.assert_close(logits(theirs, batch), expected, rtol=0, atol=LOGITS)


def test_of_a_head_with_several_layers_peft_replaces_those_without_an_adapter(tmp_path):
    model = tiny_bert()
    model.classifier = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    other = copy.deepcopy(model)
    other.classifier[2].reset_parameters()
    adapters, batch = adapted(model, target_modules=["query", "classifier.0"]), text_batch()
    adapters.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"] == ["classifier.2"]
    theirs = peft.PeftModel.from_pretrained(other, tmp_path).eval()
    torch.testing.assert_close(logits(theirs, batch), logits(model, batch), rtol=0, atol=LOGITS)


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_an_output_layer_tied_to_the_embeddings_is_read_as_peft_reads_it(where, tmp_path):
    """PEFT trains a copy of a tied layer that ``modules_to_save`` names; the input embeddings keep their own values."""
    settings = {"target_modules": ["c_attn"]}
    settings[where] = [*settings.get(where, []), "lm_head"]
    theirs, batch = peft.get_peft_model(tiny_gpt2(), peft.LoraConfig(r=3, **settings)).eval(), text_batch()
    torch.manual_seed(3)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    expected = logits(theirs, batch)
    adapters = load_adapters(tiny_gpt2(), tmp_path)
    assert relative_error(logits(adapters.model, batch), expected) < LOGITS
    assert torch.equal(adapters.model.transformer.wte.weight, tiny_gpt2().transformer.wte.weight)
    adapters.save(tmp_path / "again")
    again = load_adapters(tiny_gpt2(), tmp_path / "again")
    assert relative_error(logits(again.model, batch), expected) < LOGITS


def test_a_model_inside_another_is_saved_under_the_names_peft_expects(tmp_path):
    wrapper = torch.nn.ModuleDict({"encoder": tiny_bert()})
    adapters, batch = adapted(wrapper, target_modules=["query"]), text_batch()
    adapters.save(tmp_path, root="encoder")
    theirs = peft.PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs, batch), logits(wrapper["encoder"], batch), rtol=0, atol=LOGITS)
    again = load_adapters(torch.nn.ModuleDict({"encoder": tiny_bert()}), tmp_path, root="encoder")
    assert torch.equal(again.state(), adapters.state())


@pytest.fixture
def folder(tmp_path):
    adapted(tiny_bert()).save(tmp_path)
    return tmp_path


def damage_config(folder, **changes):
    (folder / "ffalora_config.json").unlink()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "VERA"}, "VERA"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 0}, "rank"),
        ({"r": "eight"}, "rank"),
        ({"target_modules": ["nothing"]}, "nothing"),
        ({"lora_bias": True}, "lora_bias"),
        ({"a_key_of_tomorrow": 1}, "a_key_of_tomorrow"),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_refused_by_name(folder, changes, message):
    damage_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_adapters(tiny_bert(), folder)


def test_unreadable_files_are_named(folder):
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        load_adapters(tiny_bert(), folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        load_adapters(tiny_bert(), folder)
    (folder / "ffalora_config.json").unlink()
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="JSON object"):
        load_adapters(tiny_bert(), folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_adapters(tiny_bert(), folder)


def test_missing_unknown_and_misshapen_tensors_are_named(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if k.endswith("lora_B.weight"))
    save_file({k: v for k, v in tensors.items() if k != key}, path)
    model = tiny_bert()
    with pytest.raises(CheckpointError, match="1 tensors missing"):
        load_adapters(model, folder)
    assert "lora" not in str(model), "a refused checkpoint leaves the model as it was"
    save_file({**tensors, "base_model.model.stranger": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="stranger"):
        load_adapters(tiny_bert(), folder)
    save_file({**tensors, key: torch.ones(2, 2)}, path)
    model = tiny_bert()
    with pytest.raises(CheckpointError, match="has shape"):
        load_adapters(model, folder)
    assert "lora" not in str(model)


def test_nan_weights_are_refused(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if k.endswith("lora_B.weight"))
    tensors[key][0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="NaN"):
        load_adapters(tiny_bert(), folder)


def test_an_interrupted_save_leaves_the_earlier_checkpoint(folder, monkeypatch):
    from ffalora.adapters import peft as module

    before = (folder / "adapter_model.safetensors").read_bytes()

    def fails(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(OSError):
        adapted(tiny_bert(), seed=7).save(folder)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
