"""Reading each embedded asset into plain columns: format only, no splitting and no checking of labels."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

Columns = dict[str, Any]

DOMAINS = {
    "movie-reviews": "movieReviewSnippets",
    "tweets": "tweets",
    "product-reviews": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}

#: Templates of GSM-Symbolic with short problems and short worked answers, by what the problems are about.
SHORT_PROBLEMS = {
    "things": (6, 20, 31, 39, 43, 50, 57, 72),
    "shares": (16, 18, 41, 55, 58, 69, 75, 82),
    "time": (10, 14, 24, 54, 59, 62, 78, 95),
}
TOLD = "Solve it in short steps. End with #### and the number."


def rated_sentences(folder: Path, domains: list[str], neutral: float = 0.5) -> Columns:
    """Lines ``id TAB mean rating TAB text``; rows rated less than ``neutral`` away from 0 are left out.

    The text is everything after the second tab (no quoting). ``document`` is the review or article a sentence is from.
    """
    columns: Columns = {name: [] for name in ("text", "label", "rating", "domain", "document")}
    for domain in domains:
        file = folder / f"{DOMAINS[domain]}_GroundTruth.txt"
        for line in file.read_text(encoding="utf-8-sig").splitlines():
            identity, rating, text = line.split("\t", 2)
            if abs(float(rating)) < neutral:
                continue
            columns["text"].append(text.strip())
            columns["label"].append(int(float(rating) > 0))
            columns["rating"].append(float(rating))
            columns["domain"].append(domain)
            columns["document"].append(f"{domain}/{identity.split('_')[0]}")
    return columns


def tab_files(folder: Path, stem: str) -> Columns:
    """``stem-train.tab`` and ``stem-test.tab``: three header lines, then ``class TAB text``."""
    columns: Columns = {"text": [], "label": [], "split": []}
    for split in ("train", "test"):
        with (folder / f"{stem}-{split}.tab").open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.reader(stream, delimiter="\t") if row]
            for label, text in rows[3:]:
                columns["text"].append(text.strip())
                columns["label"].append(label)
                columns["split"].append(split)
    return columns


def class_folders(folder: Path) -> Columns:
    """``CLASS/*.txt``: one document a file, its class the name of its folder."""
    columns: Columns = {"text": [], "label": []}
    for file in sorted(folder.glob("*/*.txt")):
        columns["text"].append(file.read_text(encoding="utf-8", errors="replace").strip())
        columns["label"].append(file.parent.name)
    return columns


def news_sections(folder: Path, words: int = 24) -> Columns:
    """The first words of each document of :func:`class_folders`, as conversations: ``messages``, in which the assistant
    names the section of the newspaper, and the ``section``.
    """
    documents = class_folders(folder)
    *sections, last = sorted(set(documents["label"]))
    asked = f"Which section is this from: {', '.join(sections)} or {last}?"
    messages = [
        [
            {"role": "system", "content": "Name the section of a newspaper."},
            {"role": "user", "content": f"{' '.join(text.split()[:words])} ...\n{asked}"},
            {"role": "assistant", "content": section},
        ]
        for text, section in zip(documents["text"], documents["label"], strict=True)
    ]
    return {"messages": messages, "section": documents["label"]}


def question_pairs(file: Path, context: str) -> Columns:
    """JSON lines with ``question``, a context and ``answer`` "True" or "False"."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {
        "question": [row["question"].strip() for row in rows],
        "context": [row[context].strip() for row in rows],
        "label": [{"False": 0, "True": 1}[str(row["answer"])] for row in rows],
    }


def rotten_tomatoes(folder: Path) -> Columns:
    """The rows of category fresh or rotten (the file also holds plots)."""
    import pandas

    table = pandas.read_csv(folder / "rotten_tomatoes_corpus_full.csv.bz2", keep_default_na=False)
    table = table[table["category"].isin(["fresh", "rotten"])]
    return {
        "text": table["text"].str.strip().tolist(),
        "label": (table["category"] == "fresh").astype(int).tolist(),
        "movie": table["movie_name"].tolist(),
    }


def maths_problems(folder: Path, size: int = 5000, seed: int = 0) -> Columns:
    """``size`` distinct problems generated from ``seed``: question, worked answer ending in ``#### N``, number."""
    columns: Columns = {"question": [], "answer": [], "number": []}
    seen = set()
    for row in _problems(folder, seed, 2 * size):
        question = row["question"].removesuffix(" Give the result as your final answer. Do not include units.").strip()
        if question in seen:
            continue
        seen.add(question)
        columns["question"].append(question)
        columns["answer"].append(row["metadata"]["answer_cot"].strip())
        columns["number"].append(str(row["answer"]))
        if len(seen) == size:
            break
    return columns


def short_problems(folder: Path, each: int = 200, seed: int = 0) -> Columns:
    """``each`` distinct problems of every template with a short answer, as conversations: ``messages``, ``number``, the
    ``template`` and the ``kind`` of problem. All are told to end in ``#### N``.
    """
    columns: Columns = {"messages": [], "number": [], "template": [], "kind": []}
    generators = _problems(folder, seed, 1).generators
    for kind, templates in SHORT_PROBLEMS.items():
        for template in templates:
            found: dict[str, dict[str, Any]] = {}
            random = Random(f"{seed}, {template}")
            while len(found) < each:
                row = generators[template](random, 1.0)
                found.setdefault(row["question"].strip(), row)
            for question, row in found.items():
                columns["messages"].append(
                    [
                        {"role": "system", "content": TOLD},
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": row["metadata"]["answer_cot"].strip()},
                    ]
                )
                columns["number"].append(str(row["answer"]))
                columns["template"].append(f"template {template}")
                columns["kind"].append(kind)
    return columns


def _problems(folder: Path, seed: int, size: int) -> Any:
    """The generator, read from ``folder`` as namespace packages: the modules it needs and no others are there."""
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic")
    finally:
        sys.path.remove(str(folder))
    return module.GSMSymbolicDataset(module.GSMSymbolicDatasetConfig(seed=seed, size=size))


def digits(folder: Path) -> Columns:
    """Rows of 784 grey values (0-255) and the digit: ``image`` uint8 [rows, 28, 28], ``label``."""
    import numpy as np
    import pandas

    table = pandas.read_csv(folder / "mnist_5k.csv.gz", header=None, dtype=np.uint8).to_numpy()
    return {"image": table[:, :-1].reshape(-1, 28, 28), "label": table[:, -1].astype(int).tolist()}
