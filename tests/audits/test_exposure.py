"""Exposure of planted secrets: high where a language model learns without privacy, an untrained one's at ε = 8."""

import json
import math

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from small_runs import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ffalora.audits.exposure import audit_exposure, chance_of, exposures
from ffalora.cli.audit import command
from ffalora.config import ConfigError

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
PRIVATE = {"privacy__unit": "sample", "privacy__target_epsilon": 8, "privacy__max_grad_norm": 0.5}
LEARNS = {
    "federation__rounds": 12, "federation__local_steps": 4, "clients__count": 2, "optimizer__name": "adamw",
    "optimizer__lr": 0.03, "optimizer__batch_size": 16, "adapter__rank": 8, "adapter__alpha": 16,
    "adapter__target_modules": "all-linear", "federation__evaluate_every": 100,
}  # fmt: skip


def save_language_model(folder, words):
    names = ["[PAD]", "[UNK]", "[SEP]", "user", "assistant", "The", "code", "of", "account", "is", *words]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", chat_template=TEMPLATE
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats(small, tmp_path_factory):
    """A configuration of a tiny language model and texts of some form, by its name."""
    folder = tmp_path_factory.mktemp("chats")
    model = save_language_model(folder / "model", [*WORDS, *map(str, range(10))])
    rng = np.random.default_rng(0)
    pairs = [tuple(" ".join(WORDS[i] for i in rng.integers(0, 40, count)) for count in (4, 3)) for _ in range(60)]
    rows = {
        "prompts": [{"prompt": q, "answer": a} for q, a in pairs],
        "texts": [{"text": f"{q} {a}"} for q, a in pairs],
        "conversations": [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs
        ],
    }

    def configured(form="conversations", **changes):
        path = folder / f"{form}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows[form])))
        given = {"data__name": str(path), "data__task": "causal-lm", "data__max_length": 32, "model__name": str(model)}
        return small(**(given | LEARNS | changes))

    return configured


@pytest.mark.long
@pytest.mark.parametrize("form", ["conversations", "prompts", "texts"])
def test_secrets_are_memorised_without_privacy(chats, form):
    found = audit_exposure(chats(form), canaries=6)
    assert found.epsilon is None and found.highest == 7.0
    assert found.is_memorised and np.mean(found.trained) > 5.0
    assert chance_of(found.untrained) > 0.01
    assert "MEMORISED" in str(found) and "no privacy" in str(found)


@pytest.mark.long
def test_secrets_of_a_private_run_are_as_exposed_as_those_of_the_untrained_model(chats):
    found = audit_exposure(chats(**PRIVATE), canaries=6)
    assert 0 < found.epsilon <= 8.0 and found.rounds == 12
    assert not found.is_memorised and chance_of(found.trained) > 0.01
    assert "ε = " in str(found) and "no proof" in str(found)


def test_exposure_is_the_candidates_that_an_attacker_need_not_try():
    losses = np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 1.0, 2.0, 4.0], [4.0, 4.0, 4.0, 4.0]])
    assert exposures(losses) == pytest.approx((2.0, math.log2(4 / 3), 0.0))


def test_the_chance_of_an_exposure_is_that_of_uniform_ranks():
    rng = np.random.default_rng(0)
    chances = [chance_of(exposures(rng.random((8, 512)))) for _ in range(400)]
    assert np.mean(np.array(chances) < 0.05) < 0.09
    assert 0.4 < np.mean(chances) < 0.65


def test_training_stops_after_the_time_that_there_is_and_states_what_was_spent_until_then(chats):
    found = audit_exposure(chats(**PRIVATE), canaries=2, references=3, seconds=1e-9)
    assert found.rounds == 1 and found.epsilon < 8.0


def test_what_no_exposure_can_be_told_of_is_refused(chats, small, tmp_path):
    with pytest.raises(ConfigError, match="exposure is of language models"):
        audit_exposure(small())
    with pytest.raises(ConfigError, match="canaries=0"):
        audit_exposure(chats(), canaries=0)
    blind = save_language_model(tmp_path, WORDS)
    with pytest.raises(ConfigError, match="one that knows digits"):
        audit_exposure(chats(model__name=str(blind)), canaries=1)


def test_the_command_prints_exposure_beside_epsilon_and_writes_nothing(chats, tmp_path):
    path = tmp_path / "chats.yaml"
    config = chats(**PRIVATE, federation__rounds=1)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    said = CliRunner().invoke(command, [str(path), "--exposure", "--canaries", "2", "--repeats", "3"])
    assert said.exit_code == 0, said.output
    assert "2 secrets, each 3 times in the data" in said.output
    assert "untrained model" in said.output and "ε = " in said.output and list(tmp_path.iterdir()) == [path]
    assert "name it" in CliRunner().invoke(command, ["--exposure"]).output
    assert "config.yaml is missing" in str(CliRunner().invoke(command, [str(tmp_path)]).exception)
    assert "give --exposure" in CliRunner().invoke(command, [str(path), "--repeats", "3"]).output


def test_a_bar_shows_the_rounds_that_an_audit_takes(chats, capsys):
    audit_exposure(chats(**PRIVATE, federation__rounds=2), canaries=2, references=3, progress=True)
    assert "2/2" in capsys.readouterr().err
