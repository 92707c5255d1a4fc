"""What a page says of a language model: before and after, and answers side by side."""

import json

import pytest
from fabricated import write_run

from ffalora.config import from_mapping
from ffalora.report import read_runs, what_was_learned
from ffalora.report.answers import answers_table, before_and_after

PRIVATE = {"privacy": {"unit": "sample", "target_epsilon": 8}, "data": {"task": "causal-lm"}}


def answers(word: str, count: int = 12) -> str:
    return json.dumps([{"prompt": f"question {i}", "answer": f"{word} {i}", "reference": f"{i}"} for i in range(count)])


@pytest.fixture
def top(tmp_path):
    """Two methods whose perplexities are 3 and 5, beside an untrained model of 4."""
    for method, perplexity in (("ffa", 3.0), ("lora", 5.0)):
        folder = tmp_path / method
        write_run(from_mapping(PRIVATE | {"federation": {"strategy": method, "rounds": 1}}), folder)
        row = json.loads((folder / "metrics.jsonl").read_text())
        row["metrics"] = {"perplexity": perplexity, "exact_match": 0.25}
        (folder / "metrics.jsonl").write_text(json.dumps(row))
        before = {"name": "untrained", "metrics": {"perplexity": 4.0, "exact_match": 0.0}, "epsilon": None}
        commonest = {"name": "commonest answer", "metrics": {"exact_match": 0.2}, "epsilon": None}
        rows = [row | {"about": "as it is", "is_bound": False} for row in (before, commonest)]
        (folder / "baselines.json").write_text(json.dumps(rows))
        (folder / "answers.json").write_text(answers(method))
        (folder / "answers-untrained.json").write_text(answers("who knows"))
    return tmp_path


def test_the_untrained_model_stands_beside_every_method(top):
    table = before_and_after(read_runs([top]))
    assert table.head == ("model", "exact match", "perplexity", "\u03b5")
    assert table.rows == (
        ("untrained", "0.000", "4.000", "0"),
        ("commonest answer", "0.200", "–", "0"),
        ("ffa", "0.250", "3.000", "6.00"),
        ("lora", "0.250", "5.000", "6.00"),
    )


def test_a_sentence_says_which_method_learned_and_which_did_not(top):
    learned, not_learned = what_was_learned(read_runs([top]))
    right = "; right answers 0.250, above the commonest one's 0.200."
    assert learned == "ffa: perplexity 3.000, below the untrained model's 4.000" + right
    assert not_learned == "lora: perplexity 5.000, NOT below the untrained model's 4.000" + right


def test_each_model_is_held_against_itself_before_training(top):
    """LoRA's run began with another model: it got no better, and FFA-LoRA's did."""
    path = top / "lora/baselines.json"
    rows = json.loads(path.read_text())
    rows[0]["metrics"]["perplexity"] = 6.0
    path.write_text(json.dumps(rows))
    (top / "lora/answers-untrained.json").write_text(answers("something else"))
    runs = read_runs([top])
    learned = [sentence.split(";")[0] for sentence in what_was_learned(runs)]
    assert learned == [
        "ffa: perplexity 3.000, below the untrained model's 4.000",
        "lora: perplexity 5.000, below the untrained model's 6.000",
    ]
    table = [row[:3] for row in before_and_after(runs).rows]
    assert table[0] == ("untrained (of ffa)", "0.000", "4.000") and table[2][::2] == ("untrained (of lora)", "6.000")
    assert table[1][0] == "commonest answer", "which both share"
    assert answers_table(runs).head[1:3] == ("untrained (of ffa)", "untrained (of lora)")


def test_answers_to_one_question_stand_in_one_row(top):
    table = answers_table(read_runs([top]))
    assert table.head == ("question", "untrained", "FFA-LoRA", "LoRA", "answer of the data")
    assert len(table.rows) == 6
    for row in table.rows:
        number = row[0].split()[1]
        assert row[1:] == (f"who knows {number}", f"ffa {number}", f"lora {number}", number)


def test_an_answer_to_another_question_is_not_shown(top):
    rows = json.loads((top / "lora/answers.json").read_text())
    rows[0]["prompt"] = "another"
    (top / "lora/answers.json").write_text(json.dumps(rows[:3]))
    table = answers_table(read_runs([top]))
    assert [row[3] for row in table.rows] == ["\u2013", "lora 2", *["\u2013"] * 4]


def test_runs_without_answers_have_no_such_tables(tmp_path):
    write_run(from_mapping({"federation": {"rounds": 1}}), tmp_path)
    runs = read_runs([tmp_path])
    assert answers_table(runs) is None and before_and_after(runs) is None and what_was_learned(runs) == []


def test_numbers_stand_beside_the_best_constant(tmp_path):
    write_run(from_mapping({"data": {"task": "regression"}, "federation": {"rounds": 1}}), tmp_path)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    row["metrics"] = {"mse": 25.0, "pearson": 0.1}
    constant = {"name": "best constant", "metrics": {"mse": 16.0, "pearson": 0.0}, "epsilon": None, "about": "always 7"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row))
    (tmp_path / "baselines.json").write_text(json.dumps([constant | {"is_bound": False}]))
    runs = read_runs([tmp_path])
    table = before_and_after(runs)
    assert table.head[:3] == ("model", "mse", "pearson") and table.rows[0] == ("best constant", "16.000", "0.000", "0")
    assert [sentence.split(": ")[1] for sentence in what_was_learned(runs)] == [
        "mse 25.000, NOT below the best constant's 16.000."
    ]
