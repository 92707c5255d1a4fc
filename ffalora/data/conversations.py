"""Conversations: lists of messages with a role each, written out by the tokenizer's chat template.

A message is ``{"role": "system" | "user" | "assistant", "content": text}``. What an assistant says is learned; all else
is what it answers to.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import DataError
from .examples import CausalDataset, Ragged
from .places import Places
from .validate import RowCheck, column_values, is_missing

if TYPE_CHECKING:
    from datasets import Dataset

ROLES = ("system", "user", "assistant")
Message = Mapping[str, Any]
Form = Literal["prompts", "conversations", "texts"]
_LOOKED_AT = 100  # rows that tell what a column holds


def form_of(data: Dataset, columns: Sequence[str]) -> Form:
    """What the columns hold for a language model: prompts and answers (two columns), conversations or plain texts."""
    if len(columns) == 2:
        return "prompts"
    values = column_values(data, columns[0])[:_LOOKED_AT] if columns[0] in data.column_names else []
    return "conversations" if any(isinstance(value, list) for value in values) else "texts"


def check_language(check: RowCheck, parameter: str, columns: Sequence[str]) -> None:
    """Every value is what a language model learns of such columns (:func:`form_of`): a text, or a list of messages of
    known roles. Where the last of these is no answer with something in it, the cell counts as empty.
    """
    form = form_of(check.data, columns)
    for column in columns:
        if form == "conversations":
            _check_messages(check, parameter, column)
        else:
            check.text(parameter, column)
    if form == "texts":
        _check_no_messages(check, parameter, columns[0])


def _check_messages(check: RowCheck, parameter: str, column: str) -> None:
    found: dict[str, list[int]] = {}
    for row, messages in check.present(parameter, column):
        if problem := _problem_of(messages):
            found.setdefault(problem, []).append(row)
    if empty := found.pop(_EMPTY, []):
        check.empty.setdefault(f"{parameter}={column!r} ({_EMPTY})", []).extend(empty)
    for problem, rows in found.items():
        check.refuse(parameter, column, rows, f"must hold conversations: {problem} in")


def _check_no_messages(check: RowCheck, parameter: str, column: str) -> None:
    """A problem where half of the texts or more are conversations, which would be learned letter by letter: a table
    holds them as text, or a JSON file of whose column one value is something else.
    """
    if column not in check.data.column_names:
        return
    texts = {row: value for row, value in enumerate(column_values(check.data, column)) if isinstance(value, str)}
    problems = {row: _problem_of_text(text) for row, text in texts.items() if text.strip()}
    others = {row: problem for row, problem in problems.items() if problem}
    if not problems or 2 * len(others) > len(problems):
        return
    if others:
        said = f"holds conversations, but not everywhere: {next(iter(others.values()))}; mend or remove"
        check.refuse(parameter, column, list(others), said)
    else:
        said = "holds conversations written as text; store them as lists of messages, in JSON lines or Parquet: so in"
        check.refuse(parameter, column, list(problems), said)


def _problem_of_text(text: str) -> str | None:
    """What keeps a text from being messages, as JSON or as Python (and so pandas) writes them, in words; None where
    nothing does.
    """
    value: Any = None
    if text.lstrip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = read(text.strip())
                break
    if isinstance(value, dict):
        value = value.get("messages")
    return problem_of_messages(value) if isinstance(value, list) and value else _NO_MESSAGES


_NO_MESSAGES = "there is a text that is no list of messages"
_EMPTY = "the last message is no answer of an assistant, or an empty one"


def _problem_of(messages: Any) -> str | None:
    """What is wrong with a conversation to learn from, in words; None where nothing is."""
    if is_missing(messages) or messages == []:
        return _EMPTY
    if problem := problem_of_messages(messages):
        return problem
    last = messages[-1]
    return None if last["role"] == "assistant" and last["content"].strip() else _EMPTY


def problem_of_messages(messages: Any) -> str | None:
    """What keeps a value from being messages of known roles, in words; None where nothing does."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return f"a conversation is a list of messages, but there is {type(messages).__name__}"
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            return f"the role {role!r} is none of {', '.join(ROLES)}: rename or remove such messages"
        if not isinstance(content, str):
            return f"the content of a message must be text, but is {type(content).__name__}"
    return None


def tokenize_conversations(
    rows: Dataset, column: str, tokenizer: Any, pad_token: int, max_length: int | None, places: Places
) -> CausalDataset:
    """Every conversation as one sequence, whose loss counts what assistants say and the tokens that end it.

    Nothing is cut: a conversation that does not fit ``max_length`` raises ``DataError``, as does a template that cannot
    be used.
    """
    check_template(tokenizer)
    sequences, counted, starts, long = [], [], [], []
    for row, messages in enumerate(column_values(rows, column)):
        try:
            ids, own = encode_conversation(messages, tokenizer)
        except DataError as error:
            raise DataError(f"column {column!r}, {places([row])}: {error}") from error
        if max_length is not None and len(ids) > max_length:
            long.append((row, len(ids)))
        sequences.append(ids)
        counted.append(own)
        starts.append(own.index(1))
    if long:
        longest = max(length for _, length in long)
        raise DataError(
            f"column {column!r}: {len(long)} of {len(rows)} conversations have more than max_length={max_length} tokens"
            f", the longest {longest}: {places([row for row, _ in long])}. Cutting them would drop answers: raise "
            f"max_length to {longest}, or shorten or remove them"
        )
    starts_of = np.asarray(starts, dtype=np.int64)
    return CausalDataset(Ragged(sequences), starts_of, pad_token, Ragged(counted, np.int8))


def check_template(tokenizer: Any) -> None:
    """The tokenizer has a chat template, and it tells roles apart; else ``DataError``."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the tokenizer has no chat template, which conversations need; use an instruction-tuned model, set "
            "tokenizer.chat_template, or give columns of prompts and answers"
        )
    said = []
    for role in ("user", "assistant"):
        try:
            said.append(_written([{"role": role, "content": "x"}], tokenizer, False))
        except DataError:  # a template that insists on who begins tells them apart
            return
    if said[0] == said[1]:
        raise DataError(
            "the tokenizer's chat template writes users and assistants alike, so that no answer can be told from its "
            "question; set another tokenizer.chat_template, or give columns of prompts and answers"
        )


def encode_conversation(messages: Sequence[Message], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token numbers of a conversation, and of each 1 where an assistant says it and 0 elsewhere.

    What comes before an answer and the answer are tokenised apart, so that the border is the same at generation.
    """
    ids: list[int] = []
    own: list[int] = []
    before = ""
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        question = _written(messages[:turn], tokenizer, True)
        answered = _written(messages[: turn + 1], tokenizer, False)
        if not (question.startswith(before) and answered.startswith(question)):
            raise DataError(
                f"the tokenizer's chat template rewrites what was said before message {turn}, so that answers cannot "
                "be learned one by one; keep one answer in a conversation, or give columns of prompts and answers"
            )
        for text, learned in ((question[len(before) :], 0), (answered[len(question) :], 1)):
            piece = tokenizer(text, add_special_tokens=False, return_attention_mask=False)["input_ids"]
            ids += piece
            own += [learned] * (_end_of(piece, tokenizer) if learned else len(piece))
            own += [0] * (len(ids) - len(own))
        before = answered
    return ids, own


def encode_question(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Token numbers of a conversation up to where the assistant is to speak.

    Where the template rewrites earlier answers (takes reasoning out of them, say) all of it is written anew, as it was
    before the one answer of a conversation that such a template can be trained on.
    """
    text, before = _written(messages, tokenizer, True), ""
    ids: list[int] = []
    answered = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    if answered:
        said = _written(messages[: answered[-1] + 1], tokenizer, False)
        if text.startswith(said):
            (ids, _), before = encode_conversation(messages, tokenizer), said
    return ids + tokenizer(text[len(before) :], add_special_tokens=False, return_attention_mask=False)["input_ids"]


def _end_of(answer: list[int], tokenizer: Any) -> int:
    """How many tokens of an answer are learned: up to the last one that ends a sequence, else all."""
    ends = [place for place, token in enumerate(answer) if token == tokenizer.eos_token_id]
    return ends[-1] + 1 if ends else len(answer)


def _written(messages: Sequence[Message], tokenizer: Any, asks: bool) -> str:
    from jinja2.exceptions import TemplateError

    given = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=asks))
    except TemplateError as error:
        raise DataError(f"the tokenizer's chat template does not take this conversation: {error}") from error
