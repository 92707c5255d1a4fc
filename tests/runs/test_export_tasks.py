"""Language models and classifiers of images go to a colleague and back: the same numbers there, without us."""

import json

import numpy as np
import pytest
import torch
from test_export import card_code, colleague
from test_generate import language_model, words  # noqa: F401
from test_tasks import images

from ffalora.adapters import Adapters
from ffalora.adapters.peft_load import read_config
from ffalora.cli import main
from ffalora.federated.simulate import simulate
from ffalora.planning import starter
from ffalora.runs.bundle import load_bundle
from ffalora.runs.export import export

RESULT = """
model = model.eval()
with torch.no_grad():
    print("RESULT", json.dumps(model(**inputs).logits.tolist()))
"""


def theirs(folder, code):
    return torch.tensor(json.loads(colleague(folder, code).partition("RESULT ")[2]))


def ours(run, inputs):
    with torch.no_grad():
        return load_bundle(run, {"model.dtype": "float32"}).loaded.model(**inputs).logits


def chats(folder, rows=60):
    rng = np.random.default_rng(0)
    path = folder / "chats.jsonl"
    asked = [words(rng, 3) for _ in range(rows)]
    said = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": " ".join(text.split()[:2])}]
        for text in asked
    ]
    path.write_text("\n".join(json.dumps({"messages": m, "site": "ab"[i % 2]}) for i, m in enumerate(said)))
    return path


@pytest.fixture(scope="module")
def chat_run(language_model, small, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("chat")
    config = small(
        data__name=str(chats(folder)), data__task="causal-lm", model__name=str(language_model), federation__rounds=1,
        adapter__target_modules="all-linear", optimizer__lr=5.0, adapter__use_rslora=True,
        adapter__rank_pattern={"q_proj": 3},
    )  # fmt: skip
    simulate(config, folder / "run", progress=False)
    return folder / "run"


@pytest.mark.long
@pytest.mark.parametrize(("merged", "tolerance"), [(False, 1e-6), (True, 1e-5)])
def test_a_language_model_answers_a_colleague_as_it_answers_us(chat_run, tmp_path, merged, tolerance):
    made = export(chat_run, tmp_path / "shared", merged=merged)
    ids = torch.tensor([[5, 9, 13, 7, 3], [8, 8, 21, 30, 11]])
    inputs = f"\ninputs = {{'input_ids': torch.tensor({ids.tolist()})}}\n"
    code = card_code(made.folder)
    assert "AutoTokenizer" in code and "ForCausalLM" in code
    found = theirs(made.folder, code + inputs + RESULT).softmax(-1)
    assert (found - ours(chat_run, {"input_ids": ids}).softmax(-1)).abs().max() <= tolerance
    plain = load_bundle(chat_run)
    with plain.adapters.disabled(), torch.no_grad():
        base = plain.loaded.model(input_ids=ids).logits.softmax(-1)
    assert (found - base).abs().max() > 1e-4, "the adapter moved nothing that is compared"
    if not merged:
        config = json.loads((made.folder / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] and isinstance(config["lora_alpha"], int)
        assert not (config["rank_pattern"] or config["use_rslora"] or config["modules_to_save"])
        assert read_config(made.folder).rank == config["r"] and read_config(made.folder).trained == "b"
        auto = "import peft\nmodel = peft.AutoPeftModelForCausalLM.from_pretrained('shared')"
        assert torch.equal(theirs(made.folder, auto + inputs + RESULT).softmax(-1), found)


def test_weights_that_cannot_be_merged_leave_no_folder_behind(chat_run, tmp_path, monkeypatch):
    def refuse(_):
        raise ValueError("tied")

    monkeypatch.setattr(Adapters, "merge", refuse)
    with pytest.raises(ValueError, match="tied"):
        export(chat_run, tmp_path / "shared", merged=True)
    assert not (tmp_path / "shared").exists()


@pytest.mark.long
@pytest.mark.parametrize(("merged", "tolerance"), [(False, 1e-6), (True, 1e-5)])
def test_a_classifier_of_images_gives_a_colleague_the_same_probabilities(small, tmp_path, merged, tolerance):
    asked = {**images(tmp_path), "adapter__head": "trained", "federation__rounds": 1, "optimizer__lr": 1.0}
    simulate(small(**asked), tmp_path / "run", progress=False)
    made = export(tmp_path / "run", tmp_path / "shared", merged=merged)
    pixels = torch.arange(2 * 64.0).reshape(2, 1, 8, 8).sin()
    inputs = "\ninputs = {'pixel_values': torch.arange(128.0).reshape(2, 1, 8, 8).sin()}\n"
    found = theirs(made.folder, card_code(made.folder) + inputs + RESULT).softmax(-1)
    assert (found - ours(tmp_path / "run", {"pixel_values": pixels}).softmax(-1)).abs().max() <= tolerance
    plain = load_bundle(tmp_path / "run")
    with plain.adapters.disabled(), torch.no_grad():
        base = plain.loaded.model(pixel_values=pixels).logits.softmax(-1)
    assert (found - base).abs().max() > 1e-2, "the adapter moved nothing that is compared"


@pytest.mark.long
def test_three_commands_lead_from_conversations_to_answers(language_model, tmp_path, monkeypatch, capsys):  # noqa: F811
    chats(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in (("LANGUAGE_MODEL", str(language_model)), ("UPPER_LAYERS", (1,)), ("ROUNDS", 1)):
        monkeypatch.setattr(starter, name, value)
    for command in (
        ["init", "chats.jsonl"],
        ["simulate", "chats.yaml", "--no-progress"],
        ["generate", "runs/chats", "word1 word2", "--max-new-tokens", "3"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(command)
        assert done.value.code == 0, command
    assert capsys.readouterr().out.strip()
    assert "ε = 5.9" in (tmp_path / "runs" / "chats" / "privacy.txt").read_text()
