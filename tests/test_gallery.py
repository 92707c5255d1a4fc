"""The gallery: every example is short, its configuration is one, and it runs, here on tiny models and data."""

import runpy
from pathlib import Path

import numpy as np
import pandas
import pytest
from small_runs import WORDS
from test_tasks import images, numbers, pairs, prompts

import ffalora
from ffalora import load_config

GALLERY = Path(__file__).parents[1] / "examples" / "gallery"
EXAMPLES = sorted(file.stem for file in GALLERY.glob("*.py"))
#: Fewer rounds, and numbers for tiny models.
SMALL = {
    "federation.rounds": 1, "federation.local_steps": 1, "optimizer.batch_size": 16, "data.max_length": 16,
    "adapter.layers_to_transform": None, "baselines": False,
}  # fmt: skip


def example(name):
    return runpy.run_path(str(GALLERY / f"{name}.py"))


def dotted(changes):
    return {key.replace("__", "."): value for key, value in changes.items()}


def texts(folder, classes=2):
    """A table of random words with clients and as many classes as wanted."""
    drawn = np.random.default_rng(0).integers(0, 40, (150, 6))
    rows = {"text": [" ".join(WORDS[i] for i in row) for row in drawn]}
    rows |= {"subject": rows["text"], "message": rows["text"][::-1]}
    names = ["negative", "positive", "tech", "sport", "politics"][:classes]
    rows |= {"label": [names[int(row.sum()) % classes] for row in drawn], "hospital": ["a", "b", "c"] * 50}
    table = pandas.DataFrame(rows | {"verdict": rows["label"]})
    table.to_csv(folder / "texts.csv", index=False)
    return str(folder / "texts.csv")


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """Runs an example on a tiny model, with changes for it."""
    monkeypatch.chdir(tmp_path)

    def run(name, **changes):
        asked = SMALL | {"model.name": small().model.name} | dotted(changes)
        return example(name)["main"](str(tmp_path / "run"), **asked)

    return run


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_its_configuration_is_one(name):
    found = example(name)
    assert len((GALLERY / f"{name}.py").read_text().splitlines()) <= 40 and found["__doc__"]
    if "CONFIG" in found:
        load_config(None, found["CONFIG"]).runs()


def test_the_page_lists_every_example_by_its_first_line():
    lines = (GALLERY.parents[1] / "docs" / "gallery.md").read_text().splitlines()
    listed = [line for line in lines if line.startswith("| `")]
    assert listed == [f"| `{name}.py` | {example(name)['__doc__'].splitlines()[0]} |" for name in EXAMPLES]


def test_every_example_is_run_here():
    source = Path(__file__).read_text()
    assert [name for name in EXAMPLES if f'"{name}"' not in source] == []


def test_pairs(run, tmp_path):
    assert sum(run("pairs", **pairs(tmp_path))[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_topics(run, tmp_path):
    assert 0 <= run("topics", data__name=texts(tmp_path, 5), data__label_texts=None, clients__count=2)["accuracy"] <= 1


def test_ratings(run, tmp_path):
    assert len(run("ratings", **numbers(tmp_path))) == 2


@pytest.mark.long
def test_prompts(run, tmp_path):
    assert run("prompts", **prompts(tmp_path))["perplexity"] > 1


def test_images(run, tmp_path):
    assert 0 <= run("images", **images(tmp_path), clients__partition="iid")["accuracy"] <= 1


@pytest.mark.long
def test_many_clients_share_one_epsilon(run, tmp_path):
    summary = run("many_clients", data__name=texts(tmp_path), clients__count=10, privacy__delta=1e-2)
    assert 0 < summary["epsilon"] <= 8


def test_one_site_has_a_statement_without_a_seed(run, tmp_path):
    statement = run("one_site", data__name=texts(tmp_path), privacy__ledger="gallery")
    assert "secure: cryptographic generator" in statement and "nothing is protected" not in statement


@pytest.mark.long
def test_side_by_side(run, tmp_path, capsys):
    page = run("side_by_side", data__name=texts(tmp_path))
    assert page.is_file() and "half-the-rank" in capsys.readouterr().out


@pytest.mark.long
def test_own_table(run, tmp_path):
    pandas.read_csv(texts(tmp_path)).drop(columns="verdict").head(9).to_csv(tmp_path / "new.csv", index=False)
    assert sum(run("own_table", data__name=texts(tmp_path)).values()) == 9
    assert (tmp_path / "run" / "exported" / "README.md").is_file()


def test_unreliable_clients(run, tmp_path):
    rows = run("unreliable_clients", data__name=texts(tmp_path), clients__count=6, federation__rounds=2)
    assert len(rows) == 2 and all("dropped" in row for row in rows)


def test_own_loop(small, tmp_path, monkeypatch):
    made, attach = [], ffalora.attach
    monkeypatch.setattr(ffalora, "attach", lambda *given: made.append(attach(*given)) or made[0])
    spent = example("own_loop")["main"](small().model.name, texts(tmp_path), steps=2)
    assert 2.5 < spent <= 3.0 and made[0].state().any()


def test_budget(capsys):
    spent = example("budget")["main"](samples=200, batch=50, steps=10)
    assert len(spent) == 10 and sorted(spent) == spent and 2.9 < spent[-1] <= 3.0 and "σ = " in capsys.readouterr().out


@pytest.mark.slow
def test_quantised(small, tmp_path, monkeypatch):
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'ffalora[quantised]'")
    monkeypatch.chdir(tmp_path)
    trainer = example("quantised")["main"](small().model.name, texts(tmp_path), steps=2)
    assert 0 < trainer.ledger.epsilon() <= 6.0
    assert any(hasattr(parameter, "__tensor_flatten__") for parameter in trainer.model.parameters())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_secure_aggregation(run, tmp_path):
    pytest.importorskip("flwr", reason="Flower is not installed: pip install 'ffalora[flower]'")
    answers = run("secure_aggregation", data__name=texts(tmp_path))
    assert [sorted(answer["probabilities"]) for answer in answers] == [["negative", "positive"]] * 2
