"""Finished adapters: what they say of other data, and which questions they refuse."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import save_texts

from ffalora.adapters import CheckpointError
from ffalora.config import ConfigError
from ffalora.data import DataError
from ffalora.federated.simulate import simulate
from ffalora.runs.bundle import HEAD_FILE, evaluate, load_bundle, predict
from ffalora.runs.generate import generate


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    texts = save_texts(folder / "texts.csv")
    lines = texts.read_text().splitlines()
    texts.write_text("\n".join([lines[0], *(_named(line, "bad", "good") for line in lines[1:])]) + "\n")
    result = simulate(small(federation__rounds=1, data__name=str(texts)), folder / "run", progress=False)
    return folder / "run", lines, result.rounds[-1]["metrics"]


def _named(line: str, zero: str, one: str) -> str:
    text, label = line.rsplit(",", 1)
    return f"{text},{(zero, one)[int(label)]}"


def test_classes_that_the_adapter_does_not_know_are_refused(run, tmp_path):
    folder, lines, _ = run
    other = tmp_path / "texts.csv"
    other.write_text("\n".join([lines[0], *(_named(line, "awful", "good") for line in lines[1:])]) + "\n")
    with pytest.raises(DataError, match=r"holds the classes awful, but the classes of the model are bad, good"):
        evaluate(folder, {"data.name": str(other)})


def test_classes_are_matched_by_name_whatever_their_order(run, tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict

    folder, lines, _ = run
    columns = [line.rsplit(",", 1) for line in lines[1:]]
    texts, labels = [text for text, _ in columns], [int(label) for _, label in columns]

    def saved(names, numbers):
        rows = Dataset.from_dict({"text": texts, "label": numbers}).cast_column("label", ClassLabel(names=names))
        DatasetDict({"test": rows}).save_to_disk(str(tmp_path / names[0]))
        return evaluate(folder, {"data.name": str(tmp_path / names[0])})

    scores = saved(["bad", "good"], labels)
    assert scores == pytest.approx(saved(["good", "bad"], [1 - label for label in labels]))
    assert scores.samples == len(labels)


def right_share(folder, rows):
    answers = predict(folder, [text for text, _ in rows])
    return sum(answer["label"] == label for answer, (_, label) in zip(answers, rows, strict=True)) / len(rows)


@pytest.mark.parametrize("form", ["file", "test.csv alone", "splits", "fraction"])
def test_every_row_of_a_new_file_is_scored_and_counted(run, tmp_path, form):
    folder, lines, _ = run
    rows = [_named(line, "bad", "good").rsplit(",", 1) for line in lines[1:26]]
    file = tmp_path / ("test.csv" if form == "test.csv alone" else "new.csv")
    file.write_text("\n".join(["text,label", *(",".join(row) for row in rows)]) + "\n")
    asked = {
        "file": {"data.name": str(file)},
        "test.csv alone": {"data.name": str(tmp_path)},
        "splits": {"data.name": str(file), "data.splits": {"test": "all"}},
        "fraction": {"data.name": str(file), "data.test_fraction": 1.0},
    }
    scores = evaluate(folder, asked[form])
    assert scores.samples == 25 and scores["accuracy"] == pytest.approx(right_share(folder, rows))
    low, high = scores.intervals()["accuracy"]
    assert 0 <= low < scores["accuracy"] < high <= 1


def test_other_data_need_no_users_and_no_splits_but_the_one_that_is_scored(run, tmp_path):
    from datasets import Dataset, DatasetDict

    folder, lines, _ = run
    rows = [_named(line, "bad", "good").rsplit(",", 1) for line in lines[1:26]]
    (tmp_path / "new.csv").write_text("\n".join(["text,label", *(",".join(row) for row in rows)]) + "\n")
    own = {"data.user": "PatientId", "data.name": str(tmp_path / "new.csv")}
    for split in ("test", "validation"):
        scores = evaluate(folder, own | {"data.evaluate_on": split})
        assert scores["accuracy"] == pytest.approx(right_share(folder, rows))
    exam = Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
    DatasetDict({"exam": exam, "draft": exam.select(range(3))}).save_to_disk(str(tmp_path / "saved"))
    named = {"data.name": str(tmp_path / "saved"), "data.splits": {"train": "tr", "test": "exam"}}
    assert evaluate(folder, named).samples == 25


def test_rows_of_one_class_are_scored(run, tmp_path):
    folder, lines, _ = run
    rows = [(line.rsplit(",", 1)[0], "good") for line in lines[1:4]]
    (tmp_path / "one.csv").write_text("\n".join(["text,label", *(",".join(row) for row in rows)]) + "\n")
    scores = evaluate(folder, {"data.name": str(tmp_path / "one.csv")})
    assert scores.samples == 3 and scores["accuracy"] == pytest.approx(right_share(folder, rows))


def test_a_run_s_own_data_is_scored_on_what_it_held_out(run):
    folder, lines, metrics = run
    scores = evaluate(folder)
    assert scores == pytest.approx(metrics) and scores.samples < len(lines) / 2


def test_a_run_s_own_data_that_is_cut_anew_is_not_scored_as_held_out(run):
    folder, lines, _ = run
    with pytest.raises(DataError, match=r"the test split of .* rows, and the run held out .*trained on may be among"):
        evaluate(folder, {"data.test_fraction": 0.5})
    texts = folder.parent / "texts.csv"
    before = texts.read_text()
    try:
        texts.write_text(before + "".join(f"more of it {row},good\n" for row in range(len(lines))))
        with pytest.raises(DataError, match="the data or how it is cut has changed"):
            evaluate(folder)
    finally:
        texts.write_text(before)


@pytest.mark.parametrize("names", [5, [5, "good"], [[], "good"]])
def test_classes_without_names_are_a_damaged_adapter(names, run, tmp_path):
    shutil.copytree(run[0] / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "ffalora_bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_names": names}))
    with pytest.raises(CheckpointError, match="holds no adapter that this version can use"):
        predict(tmp_path, ["word1"])


def test_a_classifier_is_not_asked_for_answers(run):
    with pytest.raises(ConfigError, match="was trained for classification: use `ffalora predict`"):
        generate(run[0], ["what is it?"])


@pytest.mark.parametrize(
    "texts,said",
    [
        ([], "texts is empty"),
        (["word1", " "], "text 1 is empty"),
        ([("word1", "word2"), ("word3", "")], r"text 1 \(the second of the pair\) is empty"),
        ([("word1", "word2"), "word3"], "text 1 has 1 parts, text 0 has 2"),
        ([("word1", "word2", "word3")], "all texts or all pairs"),
    ],
)
def test_a_question_without_words_is_refused_with_its_reason(run, texts, said):
    with pytest.raises(ConfigError, match=said):
        predict(run[0], texts)


def test_texts_and_pairs_are_answered(run):
    for texts in (["word1", "word2 word3"], [("word1", "word2")]):
        answers = predict(run[0], texts)
        assert len(answers) == len(texts) and all(answer["label"] in ("bad", "good") for answer in answers)


def test_a_text_longer_than_the_model_has_positions_is_cut_whatever_length_the_run_allows(run):
    long = "word1 " * 2000
    allowed = load_bundle(run[0]).loaded.model.config.max_position_embeddings
    (found,), (cut,) = (predict(run[0], [long], {"data.max_length": length}) for length in (4000, allowed))
    assert found == cut


def test_an_adapter_that_diverged_gives_no_labels(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    head = {name: torch.full_like(value, math.nan) for name, value in load_file(folder / "adapter" / HEAD_FILE).items()}
    save_file(head, folder / "adapter" / HEAD_FILE)
    with pytest.raises(CheckpointError, match="the adapter's outputs are not finite: it diverged in training"):
        predict(folder, ["word1"])
