"""Tables as people save them: encodings and delimiters are found, and problems are named by the lines of the file."""

import pytest
from pandas import NA, DataFrame

from ffalora.data import DataError, load_data
from ffalora.data.delimited import TextFormat, find_format, read_delimited, record_lines
from ffalora.data.records import user_digests
from ffalora.data.users import Owners
from ffalora.data.validate import column_values

HEADER = ("subject", "message", "verdict", "site")
COLUMNS = {"input_columns": ["subject", "message"], "label_column": "verdict", "client_column": "site"}


def rows(count=60):
    """Texts with commas, accents and a line break in one of five messages."""
    return [
        (
            f"Café, no. {n}",
            f"first{' ' if n % 5 else chr(10)}second; half {n}",
            "good" if n % 3 else "bad",
            f"ward {n % 2}",
        )
        for n in range(count)
    ]


def table(found, delimiter=","):
    def cell(text):
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in (delimiter, "\n", '"')) else text

    return "\n".join(delimiter.join(map(cell, row)) for row in (HEADER, *found)) + "\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encoding_and_delimiter_are_found_and_the_texts_are_whole(tmp_path, delimiter, encoding):
    file = tmp_path / "any.csv"
    file.write_bytes(table(rows(), delimiter).encode(encoding))
    form = find_format(file)
    assert form == TextFormat(encoding, delimiter)
    assert list(read_delimited(file, form).itertuples(index=False, name=None)) == rows()


def test_a_single_column_and_a_tsv_file_keep_their_usual_delimiter(tmp_path):
    (tmp_path / "a.csv").write_text("text\none; two\nthree\n")
    (tmp_path / "b.csv").write_text("text\none, two\nthree\nfour\n")
    (tmp_path / "a.tsv").write_text("text\tlabel\none, two, three\tyes\nfour, five\tno\n")
    assert find_format(tmp_path / "a.csv").delimiter == ","
    assert find_format(tmp_path / "a.tsv").delimiter == "\t"
    assert list(read_delimited(tmp_path / "b.csv", find_format(tmp_path / "b.csv"))["text"]) == [
        "one, two",
        "three",
        "four",
    ]


def test_what_is_given_is_not_guessed(tmp_path):
    file = tmp_path / "any.csv"
    file.write_bytes(table(rows(), ";").encode("cp1252"))
    assert find_format(file, "latin-1", ",") == TextFormat("latin-1", ",")
    with pytest.raises(ValueError, match="encoding 'klingon' is not known"):
        find_format(file, "klingon")


def test_lines_of_rows_are_those_of_the_file_with_breaks_and_blank_lines_counted(tmp_path):
    file = tmp_path / "any.csv"
    file.write_text('text,label\n\na,1\n"b\nb",2\n   \nc,3\n')
    form = find_format(file)
    assert record_lines(file, form) == [3, 4, 7] and len(read_delimited(file, form)) == 3


def test_quotes_that_do_not_close_at_the_end_of_a_cell_swallow_no_rows(tmp_path):
    file = tmp_path / "any.tsv"
    lines = [f'"so he said, {n}\t{n % 2}' if n in (5, 9) else f'text "{n}"\t{n % 2}' for n in range(20)]
    file.write_text("\n".join(["text\tlabel", *lines]) + "\n")
    form = find_format(file)
    assert str(form).endswith("tabs between cells, quotes as they are")
    assert list(read_delimited(file, form)["text"]) == [line.split("\t")[0] for line in lines]
    assert record_lines(file, form) == list(range(2, 22))


def test_rows_that_quotes_would_swallow_are_refused_where_lines_are_no_rows_either(tmp_path):
    file = tmp_path / "any.csv"
    file.write_text('text,label\n"a, b",1\n"c,1\nd,2\n"e" f,2\n')
    with pytest.raises(DataError, match="double quote that opens a cell in line 3 is not closed at the end"):
        load_data(str(file))
    file.write_text('text,label\n"a, b",1\n"e" f,2\n')
    assert list(read_delimited(file, find_format(file))["text"]) == ["a, b", "e f"]


def test_rows_with_surplus_cells_are_named_by_their_lines(tmp_path):
    file = tmp_path / "any.csv"
    file.write_text("text,label\na,1\nb, really,2\nc,3\n")
    with pytest.raises(DataError, match=r"header has 2 cells, line 3 has 3, read as UTF-8, commas"):
        load_data(str(file))
    file.write_text("text,label\na,1,x\nb,2,y\n")
    with pytest.raises(DataError, match="line 2 has 3, line 3 has 3"):
        load_data(str(file))


def holed(column, places, value=""):
    found = [list(row) for row in rows()]
    for place in places:
        found[place][HEADER.index(column)] = value
    return found


def test_all_problems_of_a_file_come_in_one_report_with_its_lines(tmp_path):
    file = tmp_path / "any.csv"
    found = holed("message", [1])
    found[3][2], found[6][3] = "", "  "
    file.write_text(table(found, ";"))
    with pytest.raises(DataError) as refused:
        load_data(str(file), **COLUMNS)
    said = str(refused.value)
    assert "input_columns='message' is empty in 1 of 60 rows: line 4 of any.csv" in said
    assert "label_column='verdict' is empty in 1 of 60 rows: line 6 of any.csv" in said
    assert "client_column='site' is empty in 1 of 60 rows: line 10 of any.csv" in said
    assert said.count("drop_empty=true") == 1


def test_wrong_columns_and_empty_cells_are_told_together(tmp_path):
    file = tmp_path / "any.csv"
    file.write_text(table(holed("message", [1]), ";"))
    with pytest.raises(
        DataError, match=r"(?s)'message' is empty.*|label_column='lable': there is no such column"
    ) as told:
        load_data(str(file), input_columns=["subject", "message"], label_column="lable")
    assert "'message' is empty" in str(told.value) and "'lable': there is no such column" in str(told.value)


def test_one_switch_leaves_out_rows_without_text_label_or_client(tmp_path):
    file = tmp_path / "any.csv"
    found = holed("message", [1, 2])
    found[2][2], found[3][2], found[6][3] = "", "", ""
    file.write_text(table(found))
    data = load_data(str(file), drop_empty=True, **COLUMNS)
    assert sum(map(len, data.splits.values())) == 56 and data.label_names == ["bad", "good"]
    assert {site for part in data.splits.values() for site in part["site"]} == {"ward 0", "ward 1"}
    assert data.notes == [f"{file}: 4 rows with an empty cell are left out"]


def test_nothing_that_can_be_used_is_said_also_where_rows_may_be_left_out(tmp_path):
    file = tmp_path / "any.csv"
    file.write_text(table(holed("message", range(60))))
    with pytest.raises(DataError, match="no row has something in each of input_columns='message'"):
        load_data(str(file), drop_empty=True, **COLUMNS)


def test_lines_are_told_apart_by_the_files_of_a_folder(tmp_path):
    first, second = rows()[:30], [list(row) for row in rows()[30:]]
    second[0][2] = second[2][2] = ""
    (tmp_path / "a.csv").write_text(table(first))
    (tmp_path / "b.csv").write_text(table(second, ";"))
    with pytest.raises(DataError, match=r"is empty in 2 of 60 rows: lines 2, 5 of b.csv"):
        load_data(str(tmp_path), input_columns=["subject", "message"], label_column="verdict")


@pytest.mark.parametrize("names", [{"test": "all"}, {"test": "train"}, {"train": "trian"}])
def test_a_single_table_is_told_how_its_rows_are_named(tmp_path, names):
    file = tmp_path / "any.csv"
    file.write_text(table(rows()))
    with pytest.raises(DataError, match=r"all its rows are one table: leave split_names out .* or name them train"):
        load_data(str(file), split_names=names, **COLUMNS)


def test_a_name_that_is_all_but_an_embedded_one_is_answered_without_asking_the_hub(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(DataError, match="'movie-review': there is no such data; did you mean movie-reviews"):
        load_data("movie-review")


def test_without_network_the_hub_is_not_asked_again_and_again(monkeypatch):
    import socket

    import datasets
    from huggingface_hub import constants

    def unknown(*_):
        raise OSError("no address")

    asked = []

    def load_dataset(*_):
        asked.append((constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE))
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="not in the cache"):
        load_data("someone/something")
    assert asked == [(True, True)] * 2 and not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("cells", "decimal"),
    [
        (["3,5", "-2", "0,25"], ","),
        (["3.5", "2", "1"], "."),
        (["3,5", "a"], "."),
        (["12,500", "900", "1,200"], "."),
        (["0,125"], ","),
        (["1,25", "12,500"], ","),
    ],
)
def test_numbers_with_decimal_commas_are_numbers(tmp_path, cells, decimal):
    file = tmp_path / "any.csv"
    file.write_text("text;score\n" + "".join(f'"one, two";{cell}\n' for cell in cells))
    form = find_format(file)
    assert form == TextFormat("utf-8", ";", decimal) and ("decimal commas" in str(form)) == (decimal == ",")
    if decimal == ",":
        assert list(read_delimited(file, form)["score"]) == [float(cell.replace(",", ".")) for cell in cells]


def test_numbers_with_thousands_are_refused_for_regression_and_codes_taken(tmp_path):
    file = tmp_path / "any.tsv"
    file.write_text("text\tsalary\n" + "".join(f"text {n}\t{n % 9 + 1},{n:02}0\n" for n in range(60)))
    with pytest.raises(DataError, match=r"for regression \(no marks between thousands.* it holds e.g. '1,000'"):
        load_data(str(file), task="regression", label_column="salary")
    file.write_text("text\tsalary\n" + "".join(f"text {n}\t{n:02}\n" for n in range(60)))
    data = load_data(str(file), task="regression", label_column="salary")
    assert sorted(value for part in data.splits.values() for value in part["salary"]) == list(range(60))


def test_codes_keep_their_zeros_and_other_whole_numbers_are_numbers(tmp_path):
    file = tmp_path / "any.csv"
    found = [(f"text {n}", f"0{1 + n % 2}", n % 3 - 1, f"{n:03}" if n else "") for n in range(60)]
    file.write_text("text,label,score,code\n" + "".join(f"{a},{b},{c:+},{d}\n" for a, b, c, d in found))
    table = read_delimited(file, find_format(file))
    assert [tuple("" if cell is NA else cell for cell in row) for row in table.itertuples(index=False)] == found
    assert load_data(str(file), input_columns=["text"]).label_names == ["01", "02"]


@pytest.mark.parametrize("names", ["text,text,label", "text,label, text", "gro\u00df,gr\u00f6\u00dfe,gro\u0308\u00dfe"])
def test_columns_of_one_name_are_refused_by_their_places(tmp_path, names):
    file = tmp_path / "any.csv"
    file.write_text(f"{names}\nw1 w2,w3 w4,1\n")
    with pytest.raises(DataError, match=r"columns \d \('.*'\) and \d \('.*'\) have one name, .*; rename all but one"):
        load_data(str(file))
    table = DataFrame([["w1", 1, "w3"]], columns=["text", "label", "text "])
    table.to_parquet(tmp_path / "any.parquet")
    with pytest.raises(DataError, match=r"columns 1 \('text'\) and 3 \('text '\) have one name"):
        load_data(str(tmp_path / "any.parquet"))


def test_columns_without_a_name_are_not_of_one_name(tmp_path):
    file = tmp_path / "any.csv"
    file.write_text("text,label,,\n" + "".join(f"w{n},{n % 2},,\n" for n in range(60)))
    assert sum(map(len, load_data(str(file)).splits.values())) == 60


@pytest.mark.parametrize("codes", [("1E10", "2E65"), ("1E2", "100"), ("01", "2.5"), ("1E400", "7e1")])
def test_classes_that_could_be_numbers_keep_the_names_that_the_file_writes(tmp_path, codes):
    file = tmp_path / "any.csv"
    file.write_text("text,label,weight\n" + "".join(f"a text {n},{codes[n % 2]},{n / 4}e+1\n" for n in range(60)))
    assert load_data(str(file), input_columns=["text"]).label_names == sorted(codes)
    table = read_delimited(file, find_format(file))
    assert table["weight"].tolist() == [2.5 * n for n in range(60)], "with a sign it is a number"
    if "2.5" not in codes and "1E400" not in codes:
        data = load_data(str(file), task="regression", label_column="label", input_columns=["text"])
        assert set(data.train["label"]) == set(map(float, codes))


def test_users_are_known_again_whether_or_not_all_names_of_a_table_are_digits(tmp_path):
    def digests(name, people):
        file = tmp_path / name
        file.write_text("text,label,PatientId\n" + "".join(f"text {n},{n % 2},{p}\n" for n, p in enumerate(people)))
        data = load_data(str(file), user_column="PatientId", fractions=(1, 0, 0))
        return set(user_digests(Owners.of(column_values(data.train, "PatientId")), range(len(people))))

    codes = [f"{n // 2:05}" for n in range(80)]
    known = digests("codes.csv", codes)
    assert len(known) == 40 and len(known & digests("mixed.csv", [*codes[:-2], "A0001", "A0001"])) == 39
    assert known == digests("numbers.csv", [n // 2 for n in range(80)])
