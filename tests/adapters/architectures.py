"""Tiny random models of many architectures, and what happens when each is attached, trained privately, saved and
merged.

``python tests/adapters/architectures.py`` writes the table of ``docs/coverage.md``; ``test_coverage.py`` checks its
rows.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as tf
from torch import Tensor
from torch.nn import functional

from ffalora.adapters import AdapterConfig, attach
from ffalora.data.tasks import causal_losses, classification_losses
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.noise import SeededNoise
from ffalora.training.gradients import segment_gradients
from ffalora.training.private_gradient import PrivateGradient

V, D, SAMPLES, LENGTH = 60, 16, 3, 8
DOCUMENT = Path(__file__).parents[2] / "docs" / "coverage.md"


@dataclass(frozen=True)
class Architecture:
    """How to make a tiny model and a batch for it.

    Attributes:
        name: as people call it.
        model: the class of transformers.
        config: its configuration class, and what makes it tiny.
        kind: 'text', 'causal', 'seq2seq', 'image', 'speech' or 'audio'.
        targets: adapted layers.
    """

    name: str
    model: str
    config: str
    tiny: dict[str, Any]
    kind: str
    targets: str | list[str] = "auto"
    adapt: dict[str, Any] = field(default_factory=dict)

    def build(self) -> torch.nn.Module:
        torch.manual_seed(0)
        config = getattr(tf, self.config)(**self.tiny)
        model = getattr(tf, self.model)(config)
        with torch.no_grad():  # a random network whose samples differ visibly
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.15)
        return model.eval()


_bert = dict(
    vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=40, num_labels=3, pad_token_id=0,
)  # fmt: skip
_llama = dict(
    vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=24,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_vit = dict(
    hidden_size=D,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=16,
    patch_size=4,
    num_labels=3,
)
_text = partial(Architecture, kind="text")
_causal = partial(Architecture, kind="causal")
_image = partial(Architecture, kind="image")

ARCHITECTURES = [
    _text("BERT", "BertForSequenceClassification", "BertConfig", _bert),
    _text("RoBERTa", "RobertaForSequenceClassification", "RobertaConfig", _bert),
    _text("XLM-RoBERTa", "XLMRobertaForSequenceClassification", "XLMRobertaConfig", _bert),
    _text("ELECTRA", "ElectraForSequenceClassification", "ElectraConfig", _bert | {"embedding_size": D}),
    _text("MPNet", "MPNetForSequenceClassification", "MPNetConfig", _bert, targets=["q", "v"]),
    _text(
        "DistilBERT", "DistilBertForSequenceClassification", "DistilBertConfig",
        dict(vocab_size=V, dim=D, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40, num_labels=3),
    ),
    _text("ALBERT (shared layers)", "AlbertForSequenceClassification", "AlbertConfig", _bert | {"embedding_size": 8}),
    _text(
        "DeBERTa-v2", "DebertaV2ForSequenceClassification", "DebertaV2Config",
        _bert | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8,
        "pooler_hidden_size": D},
    ),
    _text(
        "DeBERTa-v2, shared position keys", "DebertaV2ForSequenceClassification", "DebertaV2Config",
        _bert | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 8,
                 "pooler_hidden_size": D, "share_att_key": True},
    ),
    _text(
        "ModernBERT", "ModernBertForSequenceClassification", "ModernBertConfig",
        _bert | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    _causal("GPT-2 (Conv1D)", "GPT2LMHeadModel", "GPT2Config", dict(vocab_size=V, n_positions=40, n_embd=D,
    n_layer=2, n_head=2)),
    _causal("GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig", _llama),
    _causal("GPT-J", "GPTJForCausalLM", "GPTJConfig", dict(vocab_size=V, n_positions=40, n_embd=D, n_layer=2,
    n_head=2, rotary_dim=4)),
    _causal(
        "OPT", "OPTForCausalLM", "OPTConfig",
        dict(vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24,
        max_position_embeddings=40,
             word_embed_proj_dim=D, pad_token_id=0),
    ),
    _causal("BLOOM", "BloomForCausalLM", "BloomConfig", dict(vocab_size=V, hidden_size=D, n_layer=2, n_head=2,
    pad_token_id=0)),
    _causal("Llama", "LlamaForCausalLM", "LlamaConfig", _llama),
    _causal("Mistral", "MistralForCausalLM", "MistralConfig", _llama),
    _causal("Mixtral (dropless experts)", "MixtralForCausalLM", "MixtralConfig", _llama | {"num_local_experts": 2}),
    _causal("Qwen2", "Qwen2ForCausalLM", "Qwen2Config", _llama),
    _causal("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", _llama | {"head_dim": 8}),
    _causal("Gemma", "GemmaForCausalLM", "GemmaConfig", _llama | {"head_dim": 8}),
    _causal("Gemma 2", "Gemma2ForCausalLM", "Gemma2Config", _llama | {"head_dim": 8, "sliding_window": 8}),
    _causal("Phi", "PhiForCausalLM", "PhiConfig", _llama | {"num_key_value_heads": 2}),
    _causal("Phi-3", "Phi3ForCausalLM", "Phi3Config", _llama),
    _causal(
        "Falcon", "FalconForCausalLM", "FalconConfig",
        dict(vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2),
    ),
    _causal(
        "Mamba", "MambaForCausalLM", "MambaConfig",
        dict(vocab_size=V, hidden_size=D, num_hidden_layers=2, state_size=4, expand=2, conv_kernel=4, pad_token_id=0),
    ),
    Architecture(
        "T5", "T5ForConditionalGeneration", "T5Config",
        dict(vocab_size=V, d_model=D, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0),
        "seq2seq",
    ),
    Architecture(
        "BART", "BartForConditionalGeneration", "BartConfig",
        dict(vocab_size=V, d_model=D, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2,
             encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40, pad_token_id=0,
             decoder_start_token_id=2),
        "seq2seq",
    ),
    Architecture(
        "Switch Transformers (capacity per sequence)", "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        dict(vocab_size=V, d_model=D, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_sparse_encoder_layers=1,
             num_sparse_decoder_layers=1, num_heads=2, num_experts=2, expert_capacity=2, decoder_start_token_id=0,
             pad_token_id=0),
        "seq2seq",
    ),
    Architecture(
        "Whisper", "WhisperForConditionalGeneration", "WhisperConfig",
        dict(vocab_size=V, d_model=D, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2,
             encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=10, max_target_positions=20,
             pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),
        "speech",
    ),
    Architecture(
        "Wav2Vec2", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config",
        dict(hidden_size=D, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_stride=(4, 4),
             conv_kernel=(8, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
             classifier_proj_size=8, num_labels=3, feat_extract_norm="layer"),
        "audio",
    ),
    _image("ViT", "ViTForImageClassification", "ViTConfig", _vit),
    _image("DeiT", "DeiTForImageClassification", "DeiTConfig", _vit),
    _image("BEiT", "BeitForImageClassification", "BeitConfig", _vit),
    _image(
        "Swin", "SwinForImageClassification", "SwinConfig",
        dict(image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4, num_labels=3),
    ),
    _image(
        "CLIP (vision)", "CLIPForImageClassification", "CLIPConfig",
        dict(vision_config=dict(_vit, projection_dim=8), text_config=dict(_bert, projection_dim=8),
        projection_dim=8, num_labels=3),
        targets=r"vision_model\..*\.(q_proj|v_proj)",
    ),
    _image(
        "ConvNeXt (patches and 1x1 as Linear)", "ConvNextForImageClassification", "ConvNextConfig",
        dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=16, patch_size=2, num_labels=3),
        targets=["pwconv1", "pwconv2"],
    ),
    _image(
        "ViT, patch convolution adapted", "ViTForImageClassification", "ViTConfig", _vit, targets=["projection",
        "q_proj"],
    ),
    _image(
        "ResNet (batch normalisation)", "ResNetForImageClassification", "ResNetConfig",
        dict(hidden_sizes=[8, 8], depths=[1, 1], embedding_size=8, num_labels=3, layer_type="basic"),
        targets=["convolution"],
    ),
]  # fmt: skip


def batch(kind: str, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and targets of three samples, of different lengths where there are lengths."""
    ids = torch.randint(5, V, (SAMPLES, LENGTH), generator=generator)
    lengths = torch.tensor([LENGTH, LENGTH - 3, LENGTH - 1])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    labels = torch.tensor([0, 1, 2])
    if kind == "text":
        return {"input_ids": ids * mask, "attention_mask": mask}, labels
    if kind == "causal":
        return {"input_ids": ids * mask, "attention_mask": mask}, ids.masked_fill(mask == 0, -100)
    if kind == "seq2seq":
        answers = torch.randint(5, V, (SAMPLES, 5), generator=generator)
        inputs = {"input_ids": ids * mask, "attention_mask": mask, "decoder_input_ids": answers.roll(1, 1)}
        return inputs, answers
    if kind == "speech":
        answers = torch.randint(5, V, (SAMPLES, 5), generator=generator)
        return {
            "input_features": torch.randn(SAMPLES, 8, 20, generator=generator),
            "decoder_input_ids": answers.roll(1, 1),
        }, answers
    if kind == "audio":
        return {"input_values": torch.randn(SAMPLES, 200, generator=generator)}, labels
    return {"pixel_values": torch.randn(SAMPLES, 3, 16, 16, generator=generator)}, labels


def losses_of(kind: str) -> Callable[[Any, Tensor], Tensor]:
    if kind == "causal":
        return causal_losses
    if kind in ("seq2seq", "speech"):
        return lambda output, targets: functional.cross_entropy(
            output.logits.transpose(1, 2), targets, reduction="none"
        ).mean(1)
    return classification_losses


@dataclass
class Row:
    """What happened: layers adapted, largest deviation of arena rows, of PEFT's and of merged logits; or a refusal."""

    name: str
    layers: int = 0
    trained: int = 0
    gradients: float = float("nan")
    peft: float = float("nan")
    merged: float = float("nan")
    refusal: str = ""

    def markdown(self) -> str:
        if self.refusal:
            return f"| {self.name} | refused on private runs | | | | {self.refusal} |"
        return (
            f"| {self.name} | {self.layers} | {self.trained:,} | {self.gradients:.0e} | {self.peft:.0e} | "
            f"{self.merged:.0e} |"
        )


def examine(architecture: Architecture) -> Row:
    """Attach, one private step with its detectors, save, load in PEFT, merge; each compared with the plain way."""
    row = Row(architecture.name)
    model, reference = architecture.build(), architecture.build()
    inputs, targets = batch(architecture.kind, torch.Generator().manual_seed(1))
    adapters = attach(model, AdapterConfig(rank=2, target_modules=architecture.targets, **architecture.adapt))
    row.layers, row.trained = len(adapters.layers), adapters.layout.size
    losses = losses_of(architecture.kind)
    ledger = PrivacyLedger(0, 100, 0.03, 1.0, 1e-5, 10)
    private = PrivateGradient(model, adapters, losses, ledger, 1e9, SeededNoise(0))
    private._arena.poison = True
    train_mode = architecture.name.startswith("ResNet")
    try:
        model.train(train_mode)
        gradient, _ = private.step(0, [(range(len(targets)), inputs, targets)])
    except ValueError as refusal:
        row.refusal = str(refusal).split(": ", 1)[-1].split(". ")[0]
        return row
    adapters.load_state_(adapters.state() + 0.02 * torch.sign(gradient))
    adapters.train_factors("b")
    row.gradients = _compare_gradients(model, adapters, losses, inputs, targets, private)
    expected = model(**inputs).logits
    with tempfile.TemporaryDirectory() as folder:
        adapters.save(folder)
        theirs = peft.PeftModel.from_pretrained(reference, folder).eval()
        row.peft = _difference(theirs(**inputs).logits, expected)
    adapters.merge()
    row.merged = _difference(model(**inputs).logits, expected)
    return row


def _compare_gradients(model, adapters, losses, inputs, targets, private) -> float:
    """Largest relative deviation of an arena row from one sample alone with ordinary autograd."""
    arena = segment_gradients(model, adapters, losses, inputs, targets, arena=private._arena).gradients
    worst = 0.0
    parameters = [adapters.layout.parameter(place) for place in adapters.layout.places]
    for i in range(SAMPLES):
        one = {name: value[i : i + 1] for name, value in inputs.items()}
        grads = torch.autograd.grad(losses(model(**one), targets[i : i + 1]).sum(), parameters)
        expected = torch.zeros(adapters.layout.width)
        for place, grad in zip(adapters.layout.places, grads, strict=True):
            expected[place.start : place.start + place.size] = grad.reshape(-1)
        worst = max(worst, _difference(arena[i], expected))
    return worst


def _difference(actual: Tensor, expected: Tensor) -> float:
    error = (actual - expected).detach().double().square().mean().sqrt()
    return float(error / expected.detach().double().square().mean().sqrt().clamp(min=1e-30))


def document(rows: list[Row]) -> str:
    worked = sum(not row.refusal for row in rows)
    head = [
        "# Models that were tried",
        "",
        f"{worked} of {len(rows)} architectures of transformers {tf.__version__}, as tiny random models: attached,",
        "one private step with its detectors (every trained column written, samples independent), saved, loaded in",
        "PEFT, merged. `gradients`: the worst sample's gradient in the arena against that sample alone with ordinary",
        "autograd; `PEFT` and `merged`: logits against ours before. All three are RMS(error)/RMS(reference) in",
        "float32. Written by `python tests/adapters/architectures.py`.",
        "",
        "| architecture | adapted layers | trained numbers | gradients | PEFT | merged |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *(row.markdown() for row in rows)]) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    tf.logging.set_verbosity_error()
    rows = [examine(copy.deepcopy(architecture)) for architecture in ARCHITECTURES]
    DOCUMENT.write_text(document(rows))
    print(document(rows))


if __name__ == "__main__":
    main()
