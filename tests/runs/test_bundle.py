"""Finished adapters: what they say of other data, and which questions they refuse."""

import pytest
from small_runs import save_texts

from ffalora.config import ConfigError
from ffalora.federated.simulate import simulate
from ffalora.runs.bundle import evaluate, predict


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
    with pytest.raises(ConfigError, match=r"holds the classes awful, but the adapter was trained for bad, good"):
        evaluate(folder, {"data.name": str(other)})


def test_names_in_another_order_leave_the_classes_as_they_are(run, tmp_path, monkeypatch):
    from ffalora.runs import bundle

    folder, _, metrics = run
    real = bundle.load_run_data

    def swapped(config):
        data = real(config)
        data.label_names = data.label_names[::-1]
        column = data.label_column
        data.splits = {n: d.map(lambda row: {column: 1 - row[column]}) for n, d in data.splits.items()}
        return data

    monkeypatch.setattr(bundle, "load_run_data", swapped)
    assert evaluate(folder) == pytest.approx(metrics)


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
