"""Predictions for whole tables: every row keeps its place, and the answers are those that single texts get."""

import json

import pandas
import pytest
from small_runs import save_texts

from ffalora.config import ConfigError
from ffalora.data import DataError
from ffalora.federated.simulate import simulate
from ffalora.runs.bundle import evaluate, predict
from ffalora.runs.tables import predict_file

TEXTS = ["word1 word2", "", "word30, word31", "word5"]


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    simulate(small(federation__rounds=1), folder / "run", progress=False)
    return folder / "run"


def written(path, table):
    if path.suffix == ".csv":
        table.to_csv(path, index=False, sep=";", encoding="utf-8-sig")
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    return path


def read_again(path):
    if path.suffix == ".csv":
        return pandas.read_csv(path, sep=";", encoding="utf-8-sig")
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    return pandas.read_json(path, lines=path.suffix == ".jsonl")


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_row_of_a_table_gets_the_answer_of_its_text(run, tmp_path, suffix):
    file = written(tmp_path / f"new{suffix}", pandas.DataFrame({"id": [7, 8, 9, 10], "text": TEXTS}))
    found = predict_file(run, file, tmp_path / f"out{suffix}")
    table = read_again(found.file)
    assert (found.rows, found.skipped, sum(found.counts.values())) == (3, 1, 3)
    assert list(table.columns) == ["id", "text", "predicted", "probability", "p(0)", "p(1)"]
    assert table["id"].tolist() == [7, 8, 9, 10] and table["predicted"].isna().tolist() == [False, True, False, False]
    answers = predict(run, [text for text in TEXTS if text])
    for (_, row), answer in zip(table.dropna(subset=["predicted"]).iterrows(), answers, strict=True):
        assert str(int(row["predicted"])) == answer["label"]
        assert [row["p(0)"], row["p(1)"]] == pytest.approx(list(answer["probabilities"].values()), abs=1e-6)
        assert row["probability"] == pytest.approx(max(answer["probabilities"].values()))


def test_a_table_may_be_written_in_another_format(run, tmp_path):
    file = written(tmp_path / "new.csv", pandas.DataFrame({"text": TEXTS}))
    rows = [json.loads(line) for line in predict_file(run, file, tmp_path / "o.jsonl").file.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["word1 word2", None, "word30, word31", "word5"]


def test_the_cells_of_a_table_come_back_as_they_were(run, tmp_path):
    file, cells = tmp_path / "new.csv", ["9007199254740993,007,1.50,word1", ",008,2,word2", '3,"",x,"word3, ""4"""']
    file.write_text("\n".join(["id,code,price,text", *cells]) + "\n")
    lines = predict_file(run, file, tmp_path / "o.csv").file.read_text().splitlines()[1:]
    expected = [*cells[:2], "3,,x,"]
    assert all(line.startswith(cell) for line, cell in zip(lines, expected, strict=True)) and len(lines) == 3
    table = pandas.DataFrame({"id": pandas.array([2**53 + 1, None], dtype="Int64"), "text": ["word1", "word2"]})
    table.to_parquet(tmp_path / "new.parquet")
    found = pandas.read_parquet(
        predict_file(run, tmp_path / "new.parquet", tmp_path / "o.parquet").file, dtype_backend="numpy_nullable"
    )
    assert found["id"].dtype == "Int64" and found["id"][0] == 2**53 + 1
    lines = predict_file(run, tmp_path / "new.parquet", tmp_path / "o.jsonl").file.read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [2**53 + 1, None]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_numbers_and_dates_are_not_rounded_on_their_way_to_json(run, tmp_path, suffix):
    numbers = [0.1234567890123456, 1e-12, None]
    dates = pandas.to_datetime(["2026-01-31 23:59:59.123456", None, "2026-02-01"], format="ISO8601")
    lists = [[1 / 3, 2e-11], [], None]
    table = pandas.DataFrame({"text": ["word1", "", "word3"], "number": numbers, "list": lists, "date": dates})
    table.to_parquet(tmp_path / "new.parquet")
    text = predict_file(run, tmp_path / "new.parquet", tmp_path / f"o{suffix}").file.read_text()
    rows = json.loads(text) if suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    assert [row["number"] for row in rows] == numbers and [row["list"] for row in rows] == lists
    assert [row["date"] for row in rows] == ["2026-01-31 23:59:59.123456", None, "2026-02-01 00:00:00"]
    assert rows[1]["predicted"] is None and isinstance(rows[0]["probability"], float)


@pytest.mark.parametrize(
    ("columns", "output", "said"),
    [
        ({"words": TEXTS, "number": [1, 2, 3, 4], "more": TEXTS}, "o.csv", "cannot be guessed"),
        ({"text": TEXTS, "predicted": TEXTS}, "o.csv", "has a column 'predicted' already"),
        ({"text": ["", " ", "", ""]}, "o.csv", "no row has a text in text"),
        ({"text": TEXTS}, "o.xlsx", "its suffix must be one of"),
        ({"text": TEXTS}, "new.csv", "is the file that is read"),
    ],
)
def test_a_table_that_cannot_be_answered_is_refused_and_nothing_is_written(run, tmp_path, columns, output, said):
    file = written(tmp_path / "new.csv", pandas.DataFrame(columns))
    before = file.read_bytes()
    with pytest.raises(DataError, match=said):
        predict_file(run, file, tmp_path / output)
    assert file.read_bytes() == before and {path.name for path in tmp_path.iterdir()} == {"new.csv"}


def test_a_column_that_the_run_names_and_the_table_lacks_is_named(run, tmp_path):
    file = written(tmp_path / "new.csv", pandas.DataFrame({"text": TEXTS}))
    with pytest.raises(DataError, match="has no column 'message', which the run was trained on; its columns are text"):
        predict_file(run, file, tmp_path / "o.csv", {"data.text": ["message"]})


def test_one_text_is_not_taken_for_a_list_of_letters(run):
    with pytest.raises(ConfigError, match="is one text; give a list of them, or a file to predict_file"):
        predict(run, "word1")


def test_an_adapter_of_natural_clients_is_scored_on_a_file_without_them(small, tmp_path):
    own = pandas.read_csv(save_texts(tmp_path / "texts.csv"))
    own["site"] = [f"ward {row % 3}" for row in range(len(own))]
    file = written(tmp_path / "own.csv", own)
    natural = {"clients__count": None, "clients__partition": "column", "clients__column": "site"}
    encoded = {"data__name": str(file), "data__encoding": "utf-8-sig", "data__delimiter": ";"}
    simulate(small(federation__rounds=1, **natural, **encoded), tmp_path / "run", progress=False)
    own[["text", "label"]][:30].to_csv(tmp_path / "new.csv", index=False)
    assert evaluate(tmp_path / "run", {"data.name": str(tmp_path / "new.csv")}).samples == 30


def test_single_texts_are_refused_by_an_adapter_of_pairs(small, tmp_path):
    own = pandas.read_csv(save_texts(tmp_path / "texts.csv"))
    own["more"] = own["text"].iloc[::-1].to_numpy()
    own.to_csv(tmp_path / "texts.csv", index=False)
    pairs = {"data__name": str(tmp_path / "texts.csv"), "data__text": ["text", "more"]}
    simulate(small(federation__rounds=1, **pairs), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match=r"trained on pairs \(text and more\); give tuples of two texts"):
        predict(tmp_path / "run", ["word1"])
    assert len(predict(tmp_path / "run", [("word1", "word2")])) == 1
