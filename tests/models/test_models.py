"""Loading models: formats, seeds, devices, and clear refusals."""

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
)

from ffalora.config import ConfigError, ModelConfig
from ffalora.models import MeanPooledClassifier, base_dtype, cast_base, choose_device, compile_model, load_model
from ffalora.models.load import _not_loaded

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A local stand-in for a hub model: a tiny random BERT without a head, and a tokenizer trained on a sentence."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        ["a film that is good", "a film that is bad"], trainers.BpeTrainer(vocab_size=80, special_tokens=special)
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=90, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40)
    BertModel(config).save_pretrained(folder)
    return folder


def _load(folder, pooling="mean", seed=0, dtype="float32", task="classification"):
    return load_model(ModelConfig(name=str(folder), pooling=pooling, dtype=dtype), task, 3, seed, CPU)


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_a_fresh_head_depends_on_the_seed_alone(checkpoint, pooling):
    heads = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        heads.append(_load(checkpoint, pooling, seed).model.classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_runs_of_all_seeds_share_a_head_that_has_a_seed_of_its_own(checkpoint, pooling):
    config = ModelConfig(name=str(checkpoint), pooling=pooling, dtype="float32", head_seed=1)
    heads = [load_model(config, "classification", 3, seed, CPU).model.classifier.weight for seed in (0, 7)]
    assert torch.equal(*heads) and torch.equal(heads[0], _load(checkpoint, pooling, seed=1).model.classifier.weight)


def test_bfloat16_base_keeps_its_head_in_float32_and_answers_alike(checkpoint):
    ids = torch.randint(4, 80, (5, 6))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    narrow, wide = _load(checkpoint, dtype="bfloat16").model, _load(checkpoint).model
    assert narrow.classifier.weight.dtype == torch.float32
    assert narrow.encoder.encoder.layer[0].attention.self.query.weight.dtype == torch.bfloat16
    assert narrow(**inputs).logits.dtype == torch.float32
    difference = (narrow(**inputs).logits - wide(**inputs).logits).square().mean().sqrt()
    assert difference < 0.02 * wide(**inputs).logits.square().mean().sqrt()


def test_mean_pooling_ignores_padding(checkpoint):
    model = _load(checkpoint).model
    ids = torch.randint(4, 80, (1, 5))
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=ids.dtype)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits, alone, rtol=1e-4, atol=1e-5)


def test_root_names_the_module_that_peft_wraps(checkpoint):
    assert isinstance(_load(checkpoint).model, MeanPooledClassifier)
    assert _load(checkpoint).root == "encoder"
    assert _load(checkpoint, "model").root == ""


def test_a_model_that_cannot_be_loaded_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.name=.*cannot be loaded"):
        _load(tmp_path)


def test_devices_are_checked_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="device='abacus'"):
        choose_device("abacus")
    assert choose_device("cpu") == CPU
    assert base_dtype("bfloat16", CPU) is torch.bfloat16
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            choose_device("cuda")


def test_without_a_compiler_the_model_runs_eagerly_with_one_message(checkpoint, monkeypatch):
    from torch._inductor import cpp_builder

    def missing():
        raise RuntimeError("none here")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    model = _load(checkpoint).model
    with pytest.warns(UserWarning, match="running eagerly"):
        assert compile_model(model, CPU) is model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit", "bert"])
def test_a_bfloat16_base_works_with_the_head_of_every_task(kind):
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40)
    if kind == "vit":
        model = AutoModelForImageClassification.from_config(
            AutoConfig.for_model("vit", image_size=8, patch_size=4, num_channels=1, num_labels=3, **sizes)
        )
        inputs = {"pixel_values": torch.randn(2, 1, 8, 8)}
        inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    else:
        family = AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM
        sizes = dict(n_embd=32, n_layer=1, n_head=2) if kind == "gpt2" else sizes
        model = family.from_config(AutoConfig.for_model(kind, vocab_size=50, **sizes))
        inputs = {"input_ids": torch.randint(1, 50, (2, 5))}
    model = model.float().eval()
    wide = model(**{n: v.float() if v.is_floating_point() else v for n, v in inputs.items()}).logits
    cast_base(model, torch.bfloat16)
    narrow = model(**inputs).logits
    assert (narrow.float() - wide).square().mean().sqrt() < 0.05 * wide.square().mean().sqrt()


@pytest.mark.parametrize(
    "name,task,said",
    [
        ("all-MiniLM-L6", "classification", r"there is no such model; did you mean all-MiniLM-L6-v2\?"),
        ("OWN", "image-classification", "its architecture does not do this task. Give an embedded model"),
    ],
)
def test_a_model_that_cannot_be_had_is_answered_in_one_line(small, name, task, said, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = small().model if name == "OWN" else ModelConfig(name=name)
    with pytest.raises(ConfigError, match=said) as refused:
        load_model(config, task, 2, 0, CPU)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_weights_in_a_gguf_file_name_what_reads_them(tmp_path):
    (tmp_path / "weights.gguf").write_bytes(b"")
    assert "pip install ffalora[gguf]" in _not_loaded("own", "causal-lm", str(tmp_path), ImportError("no gguf"))
