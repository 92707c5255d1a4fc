"""Pushed to a hub on this machine, an adapter is there for those who may read it, and works from there without us."""

import json
import subprocess
import sys

import huggingface_hub.constants
import pytest
from hub_stand_in import serving
from test_export import PROBABILITIES, TEXTS, WITHOUT_US, card_code

from ffalora import predict, push_to_hub
from ffalora.cli import main
from ffalora.config import ConfigError
from ffalora.federated.simulate import simulate


@pytest.fixture
def hub(monkeypatch):
    with serving() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed") / "run"
    asked = {"model__head_start": "random", "adapter__head": "trained"}
    simulate(small(federation__rounds=1, optimizer__lr=40.0, **asked), folder, progress=False)
    return folder


@pytest.mark.long
def test_a_colleague_loads_it_from_the_hub_and_gets_the_same_probabilities(hub, run, tmp_path):
    address = push_to_hub(run, "someone/feedback", merged=True)
    assert address == f"{hub.address}/someone/feedback" and len(hub.commits) == 1
    assert set(hub.files["someone/feedback"]) >= {"README.md", "config.json", "model.safetensors", "modeling_pooled.py"}
    card = tmp_path / "README.md"
    card.write_bytes(hub.files["someone/feedback"]["README.md"])
    assert '"someone/feedback"' in card_code(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_US + card_code(tmp_path) + PROBABILITIES, json.dumps(TEXTS)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.partition("RESULT ")[2])
    ours = [list(answer["probabilities"].values()) for answer in predict(run, TEXTS)]
    assert max(abs(a - b) for x, y in zip(theirs, ours, strict=True) for a, b in zip(x, y, strict=True)) <= 1e-5


def test_what_is_pushed_is_private_unless_public_is_asked_for(hub, run, capsys):
    for extra, private in (([], True), (["--public"], False)):
        name = f"someone/{'own' if private else 'open'}"
        with pytest.raises(SystemExit) as done:
            main(["export", str(run), "--to", f"hub:{name}", "--base", "someone/encoder", *extra])
        assert done.value.code == 0 and hub.private[name] is private
        assert ("for you alone" in capsys.readouterr().out) is private
    assert {"adapter/adapter_model.safetensors", "head.safetensors"} <= set(hub.files["someone/own"])
    with pytest.raises(ConfigError, match="hub:someone/open is there and public; give --public"):
        push_to_hub(run, "someone/open", merged=True)
    push_to_hub(run, "someone/own", merged=True)
    assert "model.safetensors" in hub.files["someone/own"]


def test_a_base_model_that_nobody_else_has_is_refused_before_anything_is_sent(hub, run):
    with pytest.raises(ConfigError, match="which nobody on the hub has; name theirs with --base"):
        push_to_hub(run, "someone/feedback")
    assert hub.files == {}


@pytest.mark.parametrize(
    ("name", "said"), [("feedback", "names no owner"), ("a/b/c", "hub:a/b/c"), ("a/b c", "hub:a/b c")]
)
def test_a_name_that_cannot_be_is_refused(hub, run, name, said):
    with pytest.raises(ConfigError, match=said):
        push_to_hub(run, name, merged=True)


def test_who_may_not_write_there_is_told_how_to_log_in(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(ConfigError, match=r"does not let you write there \(401\); log in with `hf auth login`"):
        push_to_hub(run, "someone/feedback", merged=True)


def test_a_hub_that_does_not_answer_is_named(run, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConfigError, match="hub:someone/feedback: the hub cannot be asked"):
        push_to_hub(run, "someone/feedback", merged=True)


def test_public_is_for_the_hub(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(run), "--to", str(tmp_path / "folder"), "--public"])
    assert "--public is for the hub" in capsys.readouterr().err
