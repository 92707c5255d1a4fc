"""What is proposed for a person's own table: texts, label, clients and task, and what is said where nothing fits."""

import json

import pandas
import pytest
import yaml

from ffalora.cli.init import found_text
from ffalora.data import DataError
from ffalora.data.load import load_data
from ffalora.data.proposal import propose
from ffalora.planning.starter import starter_yaml

ROWS = 60


def table(tmp_path, **columns):
    path = tmp_path / "own.csv"
    pandas.DataFrame({name: list(values) for name, values in columns.items()}).to_csv(path, index=False, sep=";")
    return path


def texts(words, seed=0):
    return [" ".join(f"w{(seed + row * word) % 91}" for word in range(1, words + 1)) for row in range(ROWS)]


def classes(*names):
    return [names[row % len(names)] for row in range(ROWS)]


def test_texts_label_and_clients_are_told_apart(tmp_path):
    found = propose(
        table(
            tmp_path, Nr=range(ROWS), Subject=texts(4), Message=texts(9, 3), Verdict=classes("no", "yes"),
            Hospital=classes("A", "B", "C"), Day=[f"2024-01-{1 + row % 28:02}" for row in range(ROWS)],
        )
    )  # fmt: skip
    assert (found.text, found.label, found.client) == (("Subject", "Message"), "Verdict", "Hospital")
    assert found.task == "classification" and found.sizes == (20, 20, 20) and found.dropped == 0
    assert str(found.column("Verdict")) == "2 different values: no, yes"
    assert str(found.column("Message")) == "texts of 9 words on average"


def test_spellings_of_a_name_count_once_and_columns_that_could_be_clients_are_named(tmp_path):
    found = propose(
        table(
            tmp_path, text=texts(5), verdict=classes("No", "yes", "no ", "YES"), team=classes("A1", "b2", "a1"),
            day=[f"0{1 + row % 3}/03/2026" for row in range(ROWS)],
        )
    )  # fmt: skip
    assert str(found.column("verdict")) == "2 different values in 4 spellings: no, yes"
    assert (found.client, found.groups) == (None, ("team",))
    assert propose(tmp_path / "own.csv", client="team").sizes == (40, 20)


def test_a_label_of_few_fractions_is_a_number_and_the_proposal_loads(tmp_path):
    path = table(tmp_path, text=texts(5), score=classes(0.5, 1.0, 2.5))
    found = propose(path)
    assert (found.label, found.task) == ("score", "regression")
    assert load_data(str(path), task=found.task, input_columns=found.text, label_column=found.label).label_names is None
    assert propose(table(tmp_path, text=texts(5), score=classes(1.0, 2.0, None))).task == "classification"


def test_rows_that_lack_something_are_counted_and_belong_to_nobody(tmp_path):
    verdict, message = classes("no", "yes"), texts(5)
    verdict[4], message[7] = None, "  "
    found = propose(table(tmp_path, message=message, verdict=verdict, site=classes("A", "B")))
    assert found.dropped == 2 and found.sizes == (29, 29)


def test_a_folder_without_a_complete_row_is_refused_by_its_columns(tmp_path):
    for name in ("train", "test"):
        columns = {"text": texts(5), "label": classes("no", "yes"), "site": [None] * ROWS}
        (tmp_path / "own").mkdir(exist_ok=True)
        table(tmp_path, **columns).rename(tmp_path / "own" / f"{name}.csv")
    for client in (None, "site"):
        columns = {"client": client} if client else {"user": "site"}
        with pytest.raises(DataError, match=r"no row has all of text, label, site; fill their empty cells, or name"):
            propose(tmp_path / "own", ["text"], "label", **columns)


def test_texts_are_no_label_whatever_their_column_is_called(tmp_path):
    found = propose(table(tmp_path, Bewertung=texts(9), Größe=classes("no", "yes"), Straße=classes("A", "B")))
    assert (found.text, found.label) == (("Bewertung",), "Größe")


def test_a_table_without_a_line_of_names_is_noticed(tmp_path):
    assert propose(table(tmp_path, **{"w1 w2 w3": texts(5), "no": classes("no", "yes")})).unnamed == ("no",)
    assert propose(table(tmp_path, text=texts(5), label=classes("no", "yes"))).unnamed == ()


def test_a_number_of_many_values_is_learned_as_a_number(tmp_path):
    found = propose(table(tmp_path, text=texts(5), rating=[row / 7 for row in range(ROWS)]))
    assert (found.task, found.label, found.client) == ("regression", "rating", None) and found.sizes == (ROWS,)
    written = starter_yaml(found, 6.0)
    assert "# label_range: [LOW, HIGH]" in written and "label_range" not in yaml.safe_load(written)["data"]


def test_without_a_telling_name_the_label_is_the_column_of_fewest_values(tmp_path):
    found = propose(table(tmp_path, a=texts(5), b=classes(*"abcdef"), c=classes("u", "v")))
    assert (found.text, found.label, found.client, found.rivals) == (("a",), "c", None, ("b",))


@pytest.mark.parametrize(
    ("label", "client"), [("Ressort", "Redaktion"), ("Catégorie", "Hôpital"), ("Etiqueta", "Centro")]
)
def test_names_of_other_languages_tell_label_from_clients(label, client, tmp_path):
    found = propose(table(tmp_path, a=texts(5), **{client: classes("A", "B"), label: classes("x", "y", "z")}))
    assert (found.label, found.client, found.rivals) == (label, client, ())


def test_what_is_given_is_taken(tmp_path):
    path = table(tmp_path, a=texts(5), b=texts(6, 2), c=classes("u", "v"), d=classes("k", "l", "m"))
    found = propose(path, ["a"], "d", "c")
    assert (found.text, found.label, found.client) == (("a",), "d", "c")


def test_a_column_of_people_says_whose_the_rows_are(tmp_path):
    people = [f"p{row // 4}" for row in range(ROWS)]
    columns = {"text": texts(5), "verdict": classes("no", "yes"), "PatientId": people}
    found = propose(table(tmp_path, **columns))
    assert (found.user, found.client, found.users, found.sizes) == ("PatientId", None, 15, (ROWS,))
    sites = ["AB"[row // 40] for row in range(ROWS)]
    found = propose(table(tmp_path, **columns, site=sites))
    assert (found.user, found.client, found.users) == ("PatientId", "site", 10)


def test_people_at_several_clients_are_not_proposed_but_taken_where_they_are_named(tmp_path):
    path = table(
        tmp_path, text=texts(5), verdict=classes("no", "yes"), author=[f"p{row // 4}" for row in range(ROWS)],
        site=classes("A", "B"),
    )  # fmt: skip
    found = propose(path)
    assert (found.user, found.client, found.users, found.dropped) == (None, "site", 30, 0)
    assert found.apart == "author" and "'author' says whose a row is, but somebody has rows at" in found_text(found)
    assert "each row is protected, and not the author, who has rows at several clients" in starter_yaml(found, 6.0)
    named = propose(path, user="author")
    assert (named.user, named.apart) == ("author", None) and "says whose a row is, but" not in found_text(named)


def test_clients_are_counted_as_the_run_tells_them_apart(tmp_path):
    sites = classes("01", "1", "x")
    assert propose(table(tmp_path, text=texts(5), label=classes("u", "v"), site=sites)).sizes == (40, 20)


def test_a_column_that_names_nobody_twice_is_not_people(tmp_path):
    found = propose(table(tmp_path, text=texts(5), verdict=classes("no", "yes"), user=[f"u{i}" for i in range(ROWS)]))
    assert found.user is None


def test_what_somebody_says_is_a_label_and_nobody(tmp_path):
    found = propose(table(tmp_path, review=texts(5), user_rating=classes(1, 2, 3)))
    assert (found.label, found.user, found.client) == ("user_rating", None, None)
    columns = {"customer_sentiment": classes("good", "bad"), "topic": [f"t{row % 7}" for row in range(ROWS)]}
    found = propose(table(tmp_path, review=texts(5), store_verdict=classes("no", "yes"), **columns))
    assert (found.label, found.user, found.client) == ("store_verdict", None, None)
    rows = [
        {"text": text, "label": "no yes".split()[i % 2], "author": {"id": i // 4}} for i, text in enumerate(texts(5))
    ]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    assert propose(tmp_path / "own.json").user is None


@pytest.mark.parametrize("cell", [[0.1, 0.2], ["payroll roles", "b"], [["role"]]])
def test_lists_of_anything_but_messages_are_no_conversations(tmp_path, cell):
    rows = {"text": texts(5), "label": classes("no", "yes"), "extra": [cell] * ROWS}
    pandas.DataFrame(rows).to_parquet(tmp_path / "own.parquet")
    found = propose(tmp_path / "own.parquet")
    assert (found.label, found.task, found.column("extra").kind) == ("label", "classification", "other")


def test_files_of_a_folder_are_clients(tmp_path):
    for name in ("north", "south"):
        pandas.DataFrame({"text": texts(5), "label": classes("no", "yes")}).to_csv(tmp_path / f"{name}.csv")
    found = propose(tmp_path)
    assert found.client == "file" and found.sizes == (ROWS, ROWS) and len(found.parts) == 2


@pytest.mark.parametrize(
    ("columns", "given", "said"),
    [
        ({"text": texts(5), "id": range(ROWS)}, {}, r"none of its columns looks like a label; name one of text, id"),
        ({"text": texts(5)}, {}, r"looks like a label; a classifier needs one; a language model needs conversations"),
        (
            {"text": texts(5), "label": ["yes"] * ROWS},
            {},
            r"looks like a label: 'label' holds one value: yes; name one",
        ),
        ({"a": classes("u", "v"), "b": range(ROWS)}, {}, r"none of its columns looks like text; name one or two"),
        ({"text": texts(5), "label": classes("u", "v")}, {"client": "sight"}, r"has no column 'sight'; its columns"),
        (
            {"text": texts(5), "stars": ["nan", "three", *(f"{row / 7:.2f}" for row in range(2, ROWS))]},
            {},
            r"'stars' has \d+ different values in 60 rows, no classes; 2 are no finite numbers .* 'three' in row 1",
        ),
        ({"text": texts(5), "id": [f"n{row}" for row in range(ROWS)]}, {"label": "id"}, r"no classes; name another"),
        (
            {"text": texts(5)[:12], "label": classes("u", "v")[:12]},
            {},
            r"12 rows can be used, too few.*give 20 or more",
        ),
        ({"text": texts(5), "label": classes("u", "v")}, {"user": "she"}, r"has no column 'she'; its columns"),
    ],
)
def test_a_table_in_which_nothing_fits_says_what_to_name(tmp_path, columns, given, said):
    with pytest.raises(DataError, match=said):
        propose(table(tmp_path, **columns), **given)


def lines(tmp_path, rows):
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_numbers_written_as_texts_are_no_classes_and_none_of_them_is_odd(tmp_path):
    rows = [{"text": text, "score": f"{row / 7:.3f}"} for row, text in enumerate(texts(5))]
    with pytest.raises(DataError, match="'score' has 60 different values in 60 rows, no classes; name another column"):
        propose(lines(tmp_path, rows))


def test_conversations_and_prompts_with_answers_are_for_a_language_model(tmp_path):
    said = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "because"}]
    found = propose(lines(tmp_path, [{"chat": said, "site": "AB"[row % 2]} for row in range(ROWS)]))
    assert (found.task, found.text, found.label, found.client) == ("causal-lm", ("chat",), None, "site")
    assert str(found.column("chat")) == "conversations, each a list of messages" and found.sizes == (30, 30)
    found = propose(table(tmp_path, question=texts(5), answer=texts(7, 3), site=classes("A", "B")))
    assert (found.task, found.text, found.client) == ("causal-lm", ("question", "answer"), "site")


def test_answers_may_be_numbers(tmp_path):
    path = table(tmp_path, prompt=texts(5), answer=[*range(ROWS - 1), None])
    found = propose(path)
    assert (found.task, found.text) == ("causal-lm", ("prompt", "answer"))
    data = load_data(str(path), task="causal-lm", input_columns=found.text, drop_empty=True, fractions=(1, 0, 0))
    assert sorted(data.train["answer"]) == sorted(map(str, range(ROWS - 1)))


def test_answers_that_are_classes_are_a_label_and_so_is_one_that_is_named(tmp_path):
    found = propose(table(tmp_path, question=texts(5), answer=classes("yes", "no")))
    assert (found.task, found.text, found.label) == ("classification", ("question",), "answer")
    found = propose(table(tmp_path, prompt=texts(5), answer=texts(7, 3), good=classes("u", "v")), label="good")
    assert (found.task, found.text, found.label) == ("classification", ("prompt", "answer"), "good")


@pytest.mark.parametrize("mark", ["\n", "\x85", "\u2028", "\x7f"])
def test_a_configuration_is_yaml_whatever_stands_in_the_table_s_names(tmp_path, mark):
    people, label, text = f"Customer{mark}ID", f"the{mark}label", f"own{mark}text"
    people_of = [f"p{row // 4}" for row in range(ROWS)]
    path = table(tmp_path, **{text: texts(5), label: classes(f"no{mark}no", "yes"), people: people_of})
    found = propose(path)
    assert found.user == people
    data = yaml.safe_load(starter_yaml(found, 6.0))["data"]
    assert (data["text"], data["label"], data["user"]) == ([text], label, people)
