"""What is exported works without us: transformers and PEFT alone give the same probabilities."""

import json
import re
import subprocess
import sys
from html import unescape
from types import SimpleNamespace

import pytest
import yaml
from small_runs import WORDS

from ffalora.adapters import CheckpointError
from ffalora.config import ConfigError, from_mapping
from ffalora.data.embedded import EMBEDDED
from ffalora.federated.simulate import simulate
from ffalora.runs.bundle import load_bundle, predict
from ffalora.runs.card import Exported, _code
from ffalora.runs.export import export

TEXTS = [" ".join(WORDS[(7 * row + 3 * word) % 40] for word in range(2 + row % 6)) for row in range(12)]
#: A colleague's machine: neither of our packages is there.
WITHOUT_US = """
import json, sys
class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("ffalora", "ffalora_kernels"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import torch
texts = json.loads(sys.argv[1])
"""
PROBABILITIES = """
inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
with torch.no_grad():
    print("RESULT", json.dumps(model.eval()(**inputs).logits.softmax(-1).tolist()))
"""


def colleague(folder, code):
    """What the code prints on a machine that has the folder's parent as its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_US + code, json.dumps(TEXTS)],
        cwd=folder.parent, capture_output=True, text=True, check=False,
        env={"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder.parent / "modules"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def card_code(folder):
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def largest_difference(folder, run):
    shown = colleague(folder, card_code(folder) + PROBABILITIES)
    theirs = json.loads(shown.partition("RESULT ")[2])
    ours = [list(answer["probabilities"].values()) for answer in predict(run, TEXTS)]
    return max(abs(a - b) for row, own in zip(theirs, ours, strict=True) for a, b in zip(row, own, strict=True))


@pytest.fixture(scope="module", params=["mean", "model"])
def run(request, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    asked = {"model__pooling": request.param, "model__head_start": "random", "adapter__head": "trained"}
    config = small(federation__rounds=2, federation__local_steps=4, optimizer__lr=40.0, **asked)
    simulate(config, folder, progress=False)
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("merged", "tolerance"), [(False, 1e-6), (True, 1e-5)])
def test_transformers_and_peft_alone_give_the_same_probabilities(run, tmp_path, merged, tolerance):
    made = export(run, tmp_path / "shared", merged=merged)
    assert largest_difference(made.folder, run) <= tolerance


def test_the_adapter_moved_the_probabilities_that_are_compared(run):
    bundle = load_bundle(run)
    ours = [list(answer["probabilities"].values()) for answer in predict(run, TEXTS)]
    assert all(layer.factors() for layer in bundle.adapters.layers.values())
    with bundle.adapters.disabled():
        inputs = bundle.loaded.tokenizer(TEXTS, padding=True, return_tensors="pt")
        without = bundle.loaded.model(**inputs).logits.softmax(-1).tolist()
    assert max(abs(a - b) for row, own in zip(without, ours, strict=True) for a, b in zip(row, own, strict=True)) > 1e-3


@pytest.mark.long
def test_peft_s_auto_class_loads_the_adapter_by_what_it_says_of_itself(run, tmp_path):
    folder = export(run, tmp_path / "shared").folder
    pooled = (folder / "adapter").exists()
    place = folder / "adapter" if pooled else folder
    config = json.loads((place / "adapter_config.json").read_text())
    assert config["task_type"] == ("FEATURE_EXTRACTION" if pooled else "SEQ_CLS")
    kind = "AutoPeftModelForFeatureExtraction" if pooled else "AutoPeftModelForSequenceClassification"
    path = str(place.relative_to(folder.parent))
    shown = colleague(
        folder, f"import peft\nmodel = peft.{kind}.from_pretrained({path!r})\nprint(type(model).__name__)"
    )
    assert shown.split()[-1] == kind.replace("AutoPeft", "Peft")


@pytest.mark.long
def test_the_encoder_alone_is_loaded_as_the_card_says(run, tmp_path):
    folder = export(run, tmp_path / "shared").folder
    said = re.search(r"with its adapter alone: `(.*?)`", (folder / "README.md").read_text())
    assert bool(said) == (folder / "adapter").exists()
    if said:
        code = f"from peft import PeftModel\nfrom transformers import AutoModel\nprint(len({said[1]}.peft_config))"
        assert colleague(folder, code).split()[-1] == "1"


def test_the_base_model_has_the_name_that_others_know_it_by(run, tmp_path):
    folder = export(run, tmp_path / "shared", base="someone/encoder").folder
    files = [file for file in folder.rglob("*") if file.suffix in (".json", ".md")]
    assert all(load_bundle(run).config.model.name not in file.read_text() for file in files)
    assert any("someone/encoder" in file.read_text() for file in folder.rglob("adapter_config.json"))


def test_the_card_states_privacy_ledgers_results_and_use(small, tmp_path):
    private = {"privacy__unit": "sample", "privacy__noise_multiplier": 1.0, "privacy__noise": "secure"}
    simulate(small(federation__rounds=1, baselines=True, **private), tmp_path / "run", progress=False)
    card = (export(tmp_path / "run", tmp_path / "shared").folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "peft" and head["pipeline_tag"] == "text-classification"
    statement = (tmp_path / "run" / "privacy.txt").read_text().strip()
    assert statement in card and "Nothing is promised" not in card
    digests = []
    for ledger in (tmp_path / "run" / "checkpoint" / "ledgers").glob("*.json"):
        held = json.loads(ledger.read_text())
        digests.append(held["digest"])
        ledger.write_text(json.dumps({name: value for name, value in held.items() if name != "salt"}))
    assert digests and all(digest in card for digest in digests)
    accuracy = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = accuracy["evaluated"]["rows"]
    assert (
        f"Of {rows} rows of the test split" in card and f"| accuracy | {accuracy['metrics']['accuracy']:.4f} |" in card
    )
    assert "| largest class |" in card and "## Intended use and limits" in card
    without = (export(tmp_path / "run", tmp_path / "bare", metrics=False).folder / "README.md").read_text()
    assert "| accuracy |" not in without and "largest class" not in without
    assert not any(digest in without for digest in digests)  # without random bits they would tell of the data


def test_the_card_of_a_seeded_run_promises_nothing(small, tmp_path):
    private = {"privacy__unit": "sample", "privacy__noise_multiplier": 1.0, "privacy__noise": "seeded"}
    simulate(small(federation__rounds=1, **private), tmp_path / "run", progress=False)
    assert "**Nothing is promised**" in (export(tmp_path / "run", tmp_path / "out").folder / "README.md").read_text()


def test_names_of_any_letters_stay_in_their_cells_of_the_card(small, tmp_path):
    private = {"privacy__unit": "sample", "privacy__noise_multiplier": 1.0, "privacy__noise": "secure"}
    config = small(federation__rounds=1, baselines=True, **private)
    simulate(config, tmp_path / "run", progress=False)
    name = "a|b\\|c\n<b>d</b> *e* `f` & g_h"
    ledger = next((tmp_path / "run" / "checkpoint" / "ledgers").glob("*.json"))
    ledger.write_text(json.dumps(json.loads(ledger.read_text()) | {"label": name}))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    summary["baselines"][0]["about"] = name
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    folder = export(tmp_path / "run", tmp_path / "shared", base="some: one#two").folder
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "some: one#two"
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    rows = re.findall(r"<tr>\n(.*?)</tr>", markdown.render(card), re.DOTALL)
    cells = [[unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", row)] for row in rows]
    shown = " ".join(name.split())
    assert {len(row) for row in cells} == {2, 3, 4}
    assert any(row[0] == shown for row in cells if len(row) == 2) and any(row[-1] == shown for row in cells)


def test_the_card_of_a_classifier_of_pairs_gives_it_two_texts(tmp_path):
    made = Exported(tmp_path, "shared", True, "someone/encoder", False)
    named = next(name for name, one in EMBEDDED.items() if len(one.input_columns) == 2 and one.task == "classification")
    config = from_mapping({"data": {"name": named}})
    pairs = SimpleNamespace(config=config, trained_on=named, label_names=["no", "yes"], loaded=SimpleNamespace(root=""))
    assert 'tokenizer("the first text", "the second",' in _code(made, pairs)
    pairs.trained_on = "texts.csv"
    assert 'tokenizer("a text",' in _code(made, pairs)


@pytest.mark.parametrize("name", ["summary.json", "privacy.json", "partition.json", "environment.json", "ledger"])
def test_no_card_is_written_of_damaged_files(name, small, tmp_path):
    private = {"privacy__unit": "sample", "privacy__noise_multiplier": 1.0, "privacy__noise": "seeded"}
    simulate(small(federation__rounds=1, **private), tmp_path / "run", progress=False)
    path = tmp_path / "run" / name
    if name == "ledger":
        path = tmp_path / "run" / "checkpoint" / "ledgers" / "0.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    for bad in (path.read_bytes()[:-1], b"5", b""):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=path.name):
            export(tmp_path / "run", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_card_without_the_run_s_statement_says_that_none_came(small, tmp_path):
    private = {"privacy__unit": "sample", "privacy__noise_multiplier": 1.0, "privacy__noise": "seeded"}
    simulate(small(federation__rounds=1, **private), tmp_path / "run", progress=False)
    (tmp_path / "run" / "privacy.json").unlink()
    card = (export(tmp_path / "run", tmp_path / "out").folder / "README.md").read_text()
    assert "no statement came with this model" in card and "trained without differential privacy" not in card


def test_a_metric_that_is_no_number_stands_on_the_card_as_what_it_is(small, tmp_path):
    simulate(small(federation__rounds=1), tmp_path / "run", progress=False)
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    summary["metrics"]["loss"] = "nan"
    path.write_text(json.dumps(summary))
    assert "| loss | nan |" in (export(tmp_path / "run", tmp_path / "out").folder / "README.md").read_text()


@pytest.mark.long
def test_nothing_is_written_over_and_adapters_without_a_format_of_peft_are_merged(small, tmp_path):
    simulate(small(federation__rounds=1, adapter__method="vera"), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="PEFT has no format for this kind of adapter; export the merged model"):
        export(tmp_path / "run", tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
    made = export(tmp_path / "run", tmp_path / "shared", merged=True)
    assert largest_difference(made.folder, tmp_path / "run") <= 1e-5
    with pytest.raises(ConfigError, match="holds something already"):
        export(tmp_path / "run", tmp_path / "shared", merged=True)


def test_a_run_that_has_not_finished_is_to_be_continued(small, tmp_path, monkeypatch):
    monkeypatch.setattr("ffalora.federated.simulate.finish_folder", lambda *_: None)
    simulate(small(federation__rounds=1), tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match=r"has not finished, and no adapter yet: .*--resume"):
        export(tmp_path / "run", tmp_path / "shared")


def test_of_several_runs_in_a_folder_one_is_to_be_named(small, tmp_path):
    for name in ("a", "b"):
        simulate(small(federation__rounds=1), tmp_path / "runs" / name, progress=False)
    with pytest.raises(CheckpointError, match=r"holds 2 runs; give one of them: .*a, .*b"):
        export(tmp_path / "runs", tmp_path / "shared")
