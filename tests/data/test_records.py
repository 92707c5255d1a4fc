"""A record is known again by what it says, in every process, on every machine and in every way of writing it."""

import json

import numpy as np
import pytest
from datasets import Dataset

from ffalora.data.load import load_data
from ffalora.data.records import record_digests


def _chats(path, conversations):
    rows = [{"messages": [dict(zip(("role", "content"), m, strict=False)) for m in said]} for said in conversations]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return load_data(str(path), task="causal-lm", fractions=(1, 0, 0))


def _chat(number, answer="Yes."):
    return [("user", f"Is it the Ärztin {number}?"), ("assistant", answer)]


def test_conversations_are_known_again_in_another_process(tmp_path):
    data = _chats(tmp_path / "chat.jsonl", [_chat(n) for n in range(40)])
    digests = record_digests(data, range(40))
    assert len(set(digests)) == 40
    assert digests[0].hex() == "99ebccf101ee2ba19704a0540d5f6d6695548a42df05ac6fc96f5a055eb4165d"


def test_conversations_are_compared_by_who_says_which_words(tmp_path):
    ways = [
        _chat(1),
        [("user", "is it the  ärztin 1?"), ("assistant", "YES.\n")],  # the same
        _chat(1, "No."),
        [("user", "Is it the Ärztin 1?Yes."), ("assistant", "")],
        [("assistant", "Is it the Ärztin 1?"), ("assistant", "Yes.")],
        [("user", "Is it the Ärztin 1?"), ("user", ""), ("assistant", "Yes.")],
    ]
    known = _chats(tmp_path / "a.jsonl", [_chat(0), _chat(1)])
    known.splits["train"] = Dataset.from_list(
        [{"messages": [{"role": r, "content": c, "sent": "today"} for r, c in said]} for said in ways]
    )
    first, same, *others = record_digests(known, range(len(ways)))
    assert first == same and len({first, *others}) == len(ways) - 1


def test_texts_are_known_again_in_another_process(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "\n".join(f"it is number {n},{n % 2}" for n in range(8)), encoding="utf-8")
    assert (
        record_digests(load_data(str(path), fractions=(1, 0, 0)), [1])[0].hex()
        == "38b93a639d0587f6fa79b59a3cb25c12b4b57fd4c50403c88f61bb5e8a4a8140"
    )


def test_what_has_no_bytes_of_its_own_is_refused(tmp_path):
    data = _chats(tmp_path / "a.jsonl", [_chat(0), _chat(1)])
    data.splits["train"] = Dataset.from_list([{"messages": {"role": "user"}}])
    with pytest.raises(TypeError, match="a record holds a dict, by which it cannot be known again"):
        record_digests(data, np.array([0]))
