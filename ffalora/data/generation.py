"""Answers of a causal language model to prompts, and how near they are to what should be answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from .conversations import Form, Message, check_template, encode_question
from .tokenize import DEFAULT_TEMPLATE, encode_prompts, pad_token_of

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
    max_new_tokens: int = 128,
    batch_size: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Continuations of ``prompts``, each cut where the tokenizer or the model's own settings end a sequence or a turn:
    the likeliest ones, or, at a temperature above 0, draws that ``seed`` decides.

    Texts are put into the template, conversations into the tokenizer's chat template, both tokenised as in training;
    then sorted by length and padded on the left. Keys and values of earlier tokens are kept, not computed again.
    """
    rows = [
        encode_prompts([prompt], tokenizer, template)[0]
        if isinstance(prompt, str)
        else encode_question(prompt, tokenizer)
        for prompt in prompts
    ]
    pad, device = pad_token_of(tokenizer), next(model.parameters()).device
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    choice: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    answers = [""] * len(rows)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = len(rows[chosen[-1]])
            ids = torch.full((len(chosen), width), pad)
            mask = torch.zeros_like(ids)
            for position, row in enumerate(chosen):
                ids[position, width - len(rows[row]) :] = torch.tensor(rows[row])
                mask[position, width - len(rows[row]) :] = 1
            made = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                eos_token_id=sorted(ends),
                use_cache=True,
                synced_gpus=False,
                **choice,
            )
            texts = tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
            for row, text in zip(chosen, texts, strict=True):
                answers[row] = text
    return answers


def put(
    prompts: Sequence[str | Sequence[Message]], form: Form, tokenizer: Any, system: str | None = None
) -> tuple[list[str | Sequence[Message]], str]:
    """Prompts as a model that learned data of this form is asked, and the template for those that are texts.

    Args:
        form: 'prompts' (in the template of training), 'conversations' (as what a user says) or 'texts' (to be continued
            as they are).
        system: what the system says first, in conversations that do not begin so themselves.

    Raises:
        DataError: conversations, and the tokenizer has no chat template that tells roles apart.
    """
    asked: list[str | Sequence[Message]] = list(prompts)
    if form == "conversations":
        check_template(tokenizer)
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
