"""Local data: every format reads alike, and every kind of bad input is one error that says what to do."""

import json
import unicodedata
from datetime import date
from decimal import Decimal

import pandas
import pytest

from ffalora.data import DataError, load_data
from ffalora.data.files import read_file
from ffalora.data.proposal import propose

ROWS = [{"id": n, "text": f"sentence number {n}", "label": "yes" if n % 3 else "no"} for n in range(60)]


def write(path, rows):
    table = pandas.DataFrame(rows)
    if path.suffix in (".csv", ".tsv"):
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def texts(data):
    return {role: list(rows["text"]) for role, rows in data.splits.items()}


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_column_is_found_by_its_name_in_whichever_unicode_form_a_file_writes_it(tmp_path, suffix):
    rows = [{unicodedata.normalize("NFD", "Überschrift"): row["text"], "label": row["label"]} for row in ROWS]
    data = load_data(write(tmp_path / f"any{suffix}", rows), input_columns=["Überschrift"])
    assert data.input_columns == ("Überschrift",) and data.train["Überschrift"][0].startswith("sentence")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_splits(tmp_path, suffix):
    data = load_data(write(tmp_path / f"any{suffix}", ROWS))
    assert {role: len(rows) for role, rows in data.splits.items()} == {"train": 48, "validation": 6, "test": 6}
    assert data.label_names == ["no", "yes"] and data.input_columns == ("text",)
    reference = load_data(write(tmp_path / "reference.csv", ROWS))
    assert texts(data) == texts(reference)
    assert all(
        label == int(number % 3 > 0) for label, number in zip(data.train["label"], data.train["id"], strict=True)
    )


def test_reading_leaves_no_copy_of_private_rows_in_a_cache(tmp_path, monkeypatch):
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    data = load_data(write(tmp_path / "any.csv", ROWS))
    assert not cache.exists()
    assert all(rows.cache_files == [] for rows in data.splits.values())


def test_folder_of_named_files_keeps_its_splits_and_cuts_the_missing_one(tmp_path):
    write(tmp_path / "train-00000-of-00001.parquet", ROWS[:40])
    write(tmp_path / "test.csv", ROWS[40:])
    data = load_data(str(tmp_path))
    assert {role: len(rows) for role, rows in data.splits.items()} == {"train": 36, "validation": 4, "test": 20}
    assert set(data.test["id"]) == set(range(40, 60))


@pytest.mark.parametrize(
    "names", [("train1", "train2", "test1"), ("train", "Train 2", "test data"), ("train-a", "train.b", "test_2024")]
)
def test_files_called_train_and_test_are_those_splits_whatever_stands_behind(names, tmp_path):
    for name, rows in zip(names, (ROWS[:20], ROWS[20:40], ROWS[40:]), strict=True):
        write(tmp_path / f"{name}.csv", rows)
    data = load_data(str(tmp_path))
    assert data.client_column is None and set(data.test["id"]) == set(range(40, 60))


def test_folder_of_other_files_is_one_client_a_file(tmp_path):
    write(tmp_path / "ward_a.csv", ROWS[:30])
    write(tmp_path / "ward_b.jsonl", ROWS[30:])
    data = load_data(str(tmp_path))
    assert data.client_column == "file"
    assert set(data.train["file"]) == {"ward_a", "ward_b"}


def test_a_column_called_file_is_no_client_of_its_own(tmp_path):
    rows = [{**row, "file": None if row["id"] % 2 else f"scan {row['id']}"} for row in ROWS]
    data = load_data(write(tmp_path / "any.csv", rows), input_columns=["text"])
    assert data.client_column is None and sum(map(len, data.splits.values())) == 60
    for ask in (load_data, propose):
        with pytest.raises(DataError, match=r"any.csv has a column 'file', .* rename it"):
            ask(str(tmp_path))


def test_a_column_that_is_empty_or_whole_at_one_client_is_read_as_the_others(tmp_path):
    notes = {"north": (None, 1, None), "south": ("seen", 0.5, True), "west": ("left", 2, None)}
    for site, (note, dose, flag) in notes.items():
        write(tmp_path / f"{site}.csv", [{**row, "note": note, "dose": dose, "flag": flag} for row in ROWS])
    data = load_data(str(tmp_path), input_columns=["text"], fractions=(1, 0, 0))
    found = zip(*(data.train[name] for name in ("file", "note", "dose", "flag")), strict=True)
    assert set(found) == {(site, *cells) for site, cells in notes.items()}
    assert data.train.features["dose"].dtype == "float64"
    write(tmp_path / "east.csv", [{**row, "note": row["text"], "dose": "much", "flag": False} for row in ROWS])
    with pytest.raises(DataError, match=r"the files' columns do not agree: .*dose"):
        load_data(str(tmp_path), input_columns=["text"])


def test_codes_are_the_same_where_those_of_one_file_have_no_zeros(tmp_path):
    def codes(first):
        return [{**row, "label": f"{first + row['id'] % 2 * 10:02}", "person": f"{first:02}"} for row in ROWS]

    for site, first in (("north", 7), ("south", 17)):
        write(tmp_path / f"{site}.csv", codes(first))
    data = load_data(str(tmp_path), user_column="person", fractions=(1, 0, 0))
    assert data.label_names == ["07", "17", "27"] and set(data.train["person"]) == {"07", "17"}
    (tmp_path / "north.csv").rename(tmp_path / "train.csv")
    write(tmp_path / "south.csv", [{**row, "label": "17"} for row in ROWS])
    (tmp_path / "south.csv").rename(tmp_path / "test.csv")
    data = load_data(str(tmp_path), input_columns=["text"])
    assert data.label_names == ["07", "17"] and set(data.test["label"]) == {1}


def test_folder_saved_by_datasets_is_read(tmp_path):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    splits = {"train": Dataset.from_list(ROWS[:50]), "validation": Dataset.from_list(ROWS[50:])}
    DatasetDict(splits).save_to_disk(tmp_path / "many")
    assert len(load_data(str(tmp_path / "one")).train) == 48
    assert set(load_data(str(tmp_path / "many")).validation["id"]) == set(range(50, 60))


def test_named_configuration_of_a_data_set_repository_is_loaded_by_hub_syntax(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    write(tmp_path / "glue" / "sst2" / "train.parquet", [{**row, "label": row["id"] % 2} for row in ROWS])
    card = {"configs": [{"config_name": "sst2", "data_files": [{"split": "train", "path": "sst2/train.parquet"}]}]}
    (tmp_path / "glue" / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    data = load_data(f"{tmp_path / 'glue'}:sst2")
    assert len(data.train) == 48 and data.label_names == ["0", "1"]


def test_short_hub_name_falls_back_from_owner_to_configuration(monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, config):
        asked.append((path, config))
        if config is None:
            raise FileNotFoundError("no such repository")
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_data("glue/sst2").train) == 48
    assert asked == [("glue/sst2", None), ("glue", "sst2")]


def test_name_that_is_nowhere_lists_what_there_is(monkeypatch):
    import datasets

    def load_dataset(path, config):
        raise ConnectionError("hub not reachable\nwith a second line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"(?s)'films' is no embedded name.*hub not reachable\nEmb.*movie-reviews"):
        load_data("films")


def test_unlabelled_benchmark_split_is_not_used(tmp_path):
    numbered = [{**row, "label": row["id"] % 2} for row in ROWS]
    write(tmp_path / "train.csv", numbered)
    write(tmp_path / "test.csv", [{"id": n, "text": f"hidden {n}", "label": -1} for n in range(10)])
    data = load_data(str(tmp_path))
    assert not any(text.startswith("hidden") for text in data.test["text"])
    assert "test" in data.notes[0]


def test_split_names_choose_roles(tmp_path):
    write(tmp_path / "train.csv", ROWS[:40])
    write(tmp_path / "validation.csv", ROWS[40:])
    data = load_data(str(tmp_path), split_names={"train": "train", "test": "validation"})
    assert set(data.test["id"]) == set(range(40, 60)) and len(data.validation) == 4


def test_rows_of_every_split_are_known_by_their_lines(tmp_path):
    lines = [f"text {number},{number % 2}" if number != 7 else ",1" for number in range(2, 32)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines))
    data = load_data(str(tmp_path / "a.csv"), drop_empty=True, max_samples=9)
    assert {role: len(rows) for role, rows in data.splits.items()} == {"train": 9, "validation": 3, "test": 3}
    for role, rows in data.splits.items():
        for row, text in enumerate(rows["text"]):
            assert data.places[role]([row]) == f"line {text.split()[1]} of a.csv"


def test_groups_are_never_cut(tmp_path):
    rows = [{**row, "patient": f"p{row['id'] // 5}"} for row in ROWS]
    data = load_data(write(tmp_path / "any.csv", rows), group_column="patient", input_columns=["text"])
    parts = [set(part["patient"]) for part in data.splits.values()]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_nobody_is_in_two_splits_beside_groups_of_rows_or_as_one_of_several_owners(tmp_path):
    rows = [{**row, "document": f"d{row['id'] // 3}", "author": f"a{row['id'] // 3 % 10}"} for row in ROWS]
    grouped = load_data(write(tmp_path / "groups.csv", rows), user_column="author", group_column="document")
    owned = [{**row, "author": [f"a{n // 2 % 10}", f"A{n // 2 % 10 // 2 * 2} "]} for n, row in enumerate(ROWS)]
    several = load_data(write(tmp_path / "owners.json", owned), user_column="author")
    for data in (grouped, several):
        names = [{str(cell).lower() for cell in part["author"]} for part in data.splits.values()]
        if data is several:
            names = [
                {name.strip().lower() for cell in part["author"] for name in cell} for part in data.splits.values()
            ]
        assert sum(map(len, names)) == len(set().union(*names)) == 10


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_long_numbers_beside_an_empty_cell_stay_whole(tmp_path, suffix):
    people = [2**53 + 1 + n // 3 for n in range(60)]
    table = pandas.DataFrame(ROWS).assign(person=pandas.array([None, *people[1:]], dtype="Int64"))
    path = tmp_path / f"people{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix in (".json", ".jsonl"):
        held = [{**row, "person": people[n] if n else None} for n, row in enumerate(ROWS)]
        write(path, held)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    data = load_data(str(path), user_column="person", input_columns=["text"], drop_empty=True)
    assert {person for part in data.splits.values() for person in part["person"]} == set(people)


def test_decimals_of_a_data_base_are_numbers_and_days_are_none(tmp_path):
    path, n = tmp_path / "any.parquet", range(60)
    paid, person = [Decimal(row) / 4 for row in n], [Decimal(2**53 + 1 + row // 3) for row in n]
    columns = {
        "paid": paid,
        "person": person,
        "label": [Decimal(row % 2) for row in n],
        "long": [None, *[Decimal(10**30)] * 59],
    }
    person[0] = None
    pandas.DataFrame(ROWS).assign(**columns, day=date(2026, 1, 1)).to_parquet(path)
    data = load_data(str(path), user_column="person", fractions=(1, 0, 0), drop_empty=True)
    assert data.label_names == ["0", "1"] and set(data.train["long"]) == {str(10**30)}
    assert set(data.train["person"]) == {int(value) for value in person[1:]}
    found = propose(path, label="paid")
    assert found.task == "regression"
    data = load_data(str(path), task="regression", label_column="paid", input_columns=["text"])
    assert {value for part in data.splits.values() for value in part["paid"]} == {row / 4 for row in n}
    with pytest.raises(DataError, match=r"must hold finite numbers for regression; it holds e.g. datetime.date"):
        load_data(str(path), task="regression", label_column="day", input_columns=["text"])


def test_a_json_column_of_several_kinds_is_text_also_beside_what_is_used(tmp_path):
    odd = [{"a": 1}, 7, "seven", None, 10**20, [1]]
    rows = [{**row, "label": [1, "yes"][n % 2], "note": odd[n % 6]} for n, row in enumerate(ROWS)]
    data = load_data(write(tmp_path / "any.jsonl", rows))
    assert data.label_names == ["1", "yes"]
    assert set(data.train["note"]) == {'{"a": 1}', "7", "seven", None, "100000000000000000000", "[1]"}


def test_only_line_feeds_end_the_lines_of_a_jsonl_file(tmp_path):
    rows = [{**row, "text": f"one\u2028two\x85three\x0c {row['id']}"} for row in ROWS]
    path = tmp_path / "any.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    data = load_data(str(path))
    assert sorted(text for part in texts(data).values() for text in part) == sorted(row["text"] for row in rows)
    assert data.places["train"]([0]) == f"line {data.train['id'][0] + 1} of any.jsonl"


def test_class_numbers_follow_sorted_values_where_they_do_not_count_from_zero(tmp_path):
    data = load_data(write(tmp_path / "any.csv", [{**row, "label": 1 if row["id"] % 2 else -1} for row in ROWS]))
    assert data.label_names == ["-1", "1"]
    assert all(label == number % 2 for label, number in zip(data.train["label"], data.train["id"], strict=True))


def test_spellings_of_a_class_or_a_client_are_one(tmp_path, caplog):
    spelt = ["Größe", unicodedata.normalize("NFD", "Größe"), "GRÖSSE", " größe ", "Farbe", "farbe"]
    rows = [{**row, "label": spelt[n % 6], "site": ["Köln", "köln "][n % 2]} for n, row in enumerate(ROWS)]
    path = write(tmp_path / "spelt.csv", rows)
    data = load_data(path, client_column="site")
    assert data.label_names == ["farbe", "größe"] and set(data.train["site"]) == {"köln"}
    assert "6 spellings are 2 classes" in caplog.text
    known = load_data(path, only="test", class_names=["Größe", "FARBE"])
    assert [list(known.test["label"]).count(number) for number in (0, 1)] == [40, 20]


def test_single_characters_are_classes_of_their_own(tmp_path):
    rows = [{**row, "label": "aA"[n % 2]} for n, row in enumerate(ROWS)]
    assert load_data(write(tmp_path / "characters.csv", rows)).label_names == ["A", "a"]


def test_a_text_that_reads_na_is_a_text(tmp_path):
    data = load_data(write(tmp_path / "any.csv", [{**row, "text": f"NA{row['id']}"[: 2 + row["id"]]} for row in ROWS]))
    assert sum(len(part) for part in data.splits.values()) == 60


def replaced(rows, values):
    return [{**row, **values.get(row["id"], {})} for row in rows]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, {"label_column": "lable"}, r"label_column='lable': .* the columns are id, text, label"),
        (ROWS, {"input_columns": ["txt"]}, r"input_columns='txt': .* the columns are id, text, label"),
        (ROWS, {"input_columns": ["id"]}, r"input_columns='id' must hold text, .* it holds int in lines 1, 2"),
        (ROWS, {"client_column": "site"}, r"client_column='site'"),
        (ROWS, {"group_column": "site"}, r"group_column='site'"),
        (ROWS, {"task": "classify"}, r"task='classify': choose one of classification"),
        (ROWS, {"fractions": [0.5, 0.1, 0.1]}, r"fractions=\[0.5, 0.1, 0.1\]"),
        (ROWS, {"fractions": [0.998, 0.001, 0.001]}, r"split validation .* has 0 rows.* or fraction 0"),
        (ROWS, {"max_samples": 0}, r"max_samples=0"),
        (ROWS, {"split_names": {"train": "trian"}}, r"split_names.train='trian'"),
        (ROWS, {"split_names": {"exam": "train"}}, r"role 'exam'"),
        (ROWS, {"label_column": "text"}, r"'text' has 60 different values in 60 rows, which are no classes"),
        (
            ROWS,
            {"task": "regression"},
            r"'label' must hold finite numbers for regression; it holds e.g. 'no' in lines 1, 2",
        ),
        (
            ROWS,
            {"task": "causal-lm", "input_columns": ["text"] * 3},
            r"takes one column .* or two \(prompt and answer\)",
        ),
        (ROWS, {"input_columns": ["text", "text", "text"]}, r"takes one text column or two"),
        (
            replaced(ROWS, {7: {"text": None}, 9: {"text": "  "}}),
            {},
            r"(?s)'text' is empty in 2 of 60 rows: lines 8, 10 of any.jsonl.*drop_empty=true",
        ),
        (
            replaced(ROWS, {4: {"label": None}}),
            {},
            r"label_column='label' is empty in 1 of 60 rows: line 5 of any.jsonl",
        ),
        (
            [{**row, "label": row["id"] / 7} for row in ROWS],
            {},
            r"must hold classes .*task: regression; it holds e.g. 0.142",
        ),
        ([{**row, "label": "same"} for row in ROWS], {}, r"holds one class only \('same'\)"),
        ([{"a": f"x{n}", "b": f"y{n}", "label": n % 2} for n in range(60)], {}, r"cannot be guessed .* a, b, label"),
    ],
)
def test_bad_input_is_one_clear_error(tmp_path, rows, options, message):
    with pytest.raises(DataError, match=message):
        load_data(write(tmp_path / "any.jsonl", rows), **options)


def test_empty_rows_are_left_out_only_when_asked(tmp_path):
    path = write(tmp_path / "any.csv", replaced(ROWS, {7: {"text": None}, 9: {"text": ""}}))
    data = load_data(path, drop_empty=True)
    assert sum(len(part) for part in data.splits.values()) == 58


def test_class_unknown_to_the_training_split_is_named(tmp_path):
    write(tmp_path / "train.csv", ROWS[:40])
    write(tmp_path / "test.csv", replaced(ROWS[40:], {50: {"label": "perhaps"}}))
    with pytest.raises(DataError, match=r"\(test\) holds classes that .* \(train\) does not: perhaps"):
        load_data(str(tmp_path))


def test_a_json_line_holds_what_else_ends_a_line_in_python(tmp_path):
    file = tmp_path / "a.jsonl"
    said = ["a\u2028b", "c\x85d", "e\u2029f"]
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in said), encoding="utf-8")
    data, part = read_file(file)
    assert data["text"] == said and part.lines() == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"not parquet at all", "cannot be read as parquet"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', "line 2"),
        ("a.json", b"[1, 2]", "every row must be an object"),
        ("a.csv", b'text,label\n"never, closed,1\n', "cannot be read as csv.*line 2 is not closed"),
        ("a.csv", b"", "it is empty"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"text,label\n\x81\x8d\xfa,1\n", "neither UTF-8 nor Windows-1252"),
        ("a.xlsx", b"", "suffix '.xlsx' is not one of"),
    ],
)
def test_unreadable_file_is_named_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path / name))


def test_missing_path_empty_folder_and_broken_saved_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load_data(str(tmp_path / "gone.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds neither"):
        load_data(str(tmp_path / "empty"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a data set saved"):
        load_data(str(tmp_path / "broken"))


def test_file_that_fits_no_split_among_named_ones_is_refused(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "extra.csv", ROWS)
    with pytest.raises(DataError, match=r"\['extra.csv'\] are not named after a split"):
        load_data(str(tmp_path))
