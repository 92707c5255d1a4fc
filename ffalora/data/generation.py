"""Answers of a causal language model to prompts, and how near they are to what should be answered."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import groupby
from typing import Any

import torch
from torch import nn

from .conversations import Form, Message, check_template, encode_question, problem_of_messages
from .errors import DataError
from .tokenize import DEFAULT_TEMPLATE, encode_prompts, pad_token_of, without_front

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
#: A last word that is a number, with a sign of money before it or punctuation, quotes and percent behind it.
_LAST = re.compile(rf"[^\w\s-]*{_NUMBER.pattern}[^\w\s]*")


@torch.inference_mode()
def generate_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[Message]],
    *,
    template: str = DEFAULT_TEMPLATE,
    max_length: int | None = None,
    positions: int | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Continuations of ``prompts``, each cut where the tokenizer or the model's own settings end a sequence or a turn:
    the likeliest ones, or, at a temperature above 0, draws that ``seed`` and the batches decide. What else a
    checkpoint's settings would do to the probabilities (penalties of repetition, shortlists of tokens) is left out.

    Texts are put into the template, conversations into the tokenizer's chat template, both tokenised as in training;
    then sorted by length and padded on the left. Keys and values of earlier tokens are kept, not computed again.

    Args:
        max_length: tokens of a text in its template and of its answer together in training; longer texts lose their
            front, as there, so that an answer has room (half of it at most).
        positions: the same of what the model can read. Beside a conversation, which is never cut, an answer is as long
            as there is room for.

    Raises:
        DataError: a conversation leaves no room for an answer in ``positions``.
    """
    rows = _encoded(prompts, tokenizer, template, max_length, positions, max_new_tokens)
    pad, device = pad_token_of(tokenizer), next(model.parameters()).device
    answers = [""] * len(rows)
    rooms = [max_new_tokens if positions is None else min(max_new_tokens, positions - len(row)) for row in rows]
    with torch.random.fork_rng(), _plain_settings(model, tokenizer, pad, temperature):
        torch.manual_seed(seed)
        for chosen in _batches(rows, rooms, batch_size):
            width = len(rows[chosen[-1]])
            ids = torch.full((len(chosen), width), pad)
            mask = torch.zeros_like(ids)
            for position, row in enumerate(chosen):
                ids[position, width - len(rows[row]) :] = torch.tensor(rows[row])
                mask[position, width - len(rows[row]) :] = 1
            made = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=rooms[chosen[0]],
                synced_gpus=False,
            )
            texts = tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
            for row, text in zip(chosen, texts, strict=True):
                answers[row] = text
    return answers


def beside_answer(limit: int, max_new_tokens: int) -> int:
    """Tokens that a prompt may have where ``limit`` holds it and its answer, which gets half of them at most."""
    return limit - min(max_new_tokens, limit // 2)


def _batches(rows: Sequence[Sequence[int]], rooms: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Rows of one room for an answer and of near lengths, so that no likeliest answer depends on those beside it."""
    order = sorted(range(len(rows)), key=lambda row: (-rooms[row], len(rows[row])))
    for _, group in groupby(order, key=rooms.__getitem__):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _encoded(
    prompts: Sequence[str | Sequence[Message]],
    tokenizer: Any,
    template: str,
    max_length: int | None,
    positions: int | None,
    max_new_tokens: int,
) -> list[list[int]]:
    """Token numbers of every prompt, of lengths that leave room for an answer."""
    limits = [beside_answer(limit, max_new_tokens) for limit in (max_length, positions) if limit is not None]
    rows, cut = [], 0
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            (whole,) = encode_prompts([prompt], tokenizer, template)
            rows.append(without_front(whole, min(limits, default=len(whole)), tokenizer))
            cut += len(rows[-1]) < len(whole)
            continue
        rows.append(encode_question(prompt, tokenizer))
        if positions is not None and len(rows[-1]) >= positions:
            raise DataError(
                f"prompt {place}: a conversation of {len(rows[-1])} tokens leaves no room for an answer in the "
                f"{positions} positions of the model; shorten it"
            )
    if cut:
        warnings.warn(f"{cut} of {len(rows)} prompts have more than {min(limits)} tokens and lose their front, as in "
                      "training", stacklevel=3)  # fmt: skip
    return rows


@contextmanager
def _plain_settings(model: Any, tokenizer: Any, pad_token: int, temperature: float) -> Iterator[None]:
    """The model generates from its own probabilities alone; the tokens that end a sequence stay those of its settings.

    Its settings are taken away meanwhile: what a call leaves open is filled in from them.
    """
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    ends = getattr(own, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    model.generation_config = GenerationConfig(
        pad_token_id=pad_token, eos_token_id=sorted(ends), use_cache=True, **(drawn if temperature else {})
    )
    try:
        yield
    finally:
        model.generation_config = own


def put(
    prompts: Sequence[str | Sequence[Message]], form: Form, tokenizer: Any, system: str | None = None
) -> tuple[list[str | Sequence[Message]], str]:
    """Prompts as a model that learned data of this form is asked, and the template for those that are texts.

    Args:
        form: 'prompts' (in the template of training), 'conversations' (as what a user says) or 'texts' (to be continued
            as they are).
        system: what the system says first, in conversations that do not begin so themselves.

    Raises:
        DataError: a conversation is none, or there are some and the tokenizer has no chat template that tells roles
            apart.
    """
    asked: list[str | Sequence[Message]] = list(prompts)
    conversations = {place: prompt for place, prompt in enumerate(prompts) if not isinstance(prompt, str)}
    for place, prompt in conversations.items():
        if problem := problem_of_messages(prompt) or (None if prompt else "it has no message"):
            raise DataError(f"prompt {place}: {problem}")
    if conversations or form == "conversations":
        check_template(tokenizer)
    if form == "conversations":
        before: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        turns: list[Sequence[Message]] = [
            [{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts
        ]
        asked = [t if t and t[0]["role"] == "system" else [*before, *t] for t in turns]
    return asked, "{prompt}" if form == "texts" else DEFAULT_TEMPLATE


def without_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """A conversation up to where the assistant is to speak last."""
    while messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    return messages


def final_number(text: str) -> Fraction | None:
    """The number an answer ends in: the first after the last ``####``, else the last of the text; None without one."""
    _, marker, tail = text.rpartition("####")
    found = _NUMBER.findall(tail)
    if not found:
        return None
    return Fraction((found[0] if marker else found[-1]).replace(",", ""))


def ends_in_number(reference: str) -> bool:
    """Whether a reference asks for a number: one follows its last ``####``, or is its last word. One elsewhere
    (type 2 diabetes) is no answer.
    """
    _, marker, tail = reference.rpartition("####")
    words = tail.split() or [""]
    return final_number(reference) is not None if marker else bool(_LAST.fullmatch(words[-1]))


def exact_match(answers: Sequence[str], references: Sequence[str]) -> float:
    """Share of ``answers`` that are right: they end in the number that their reference ends in (:func:`ends_in_number`)
    or, where it does not, consist of its words (letters and digits in lower case).
    """
    if len(answers) != len(references) or not answers:
        raise ValueError(f"exact match of {len(answers)} answers with {len(references)} references: give equally many")
    return sum(map(_is_right, answers, references)) / len(answers)


def _is_right(answer: str, reference: str) -> bool:
    if not ends_in_number(reference):
        return _words(answer) == _words(reference)
    return final_number(answer) == final_number(reference)


def rouge_l(answers: Sequence[str], references: Sequence[str]) -> float:
    """Mean F1 of the longest common subsequence of words (ROUGE-L: Lin 2004), letters and digits in lower case."""
    if len(answers) != len(references) or not answers:
        raise ValueError(f"ROUGE-L of {len(answers)} answers with {len(references)} references: give equally many")
    total = 0.0
    for pair in zip(answers, references, strict=True):
        given, wanted = map(_words, pair)
        common = _common(given, wanted)
        total += 2.0 * common / (len(given) + len(wanted)) if common else 0.0
    return total / len(answers)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    best = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, there in enumerate(other, start=1):
            before, best[place] = best[place], before + 1 if word == there else max(best[place], best[place - 1])
    return best[-1]
