"""What a language model answers to prompts, and how that is scored."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import ConfigError, DataConfig
from ..data.conversations import Form, Message, encode_question
from ..data.generation import beside_answer, ends_in_number, exact_match, generate_answers, put, rouge_l
from ..data.load import LoadedData
from ..data.validate import column_values
from ..models import LoadedModel, max_positions

logger = logging.getLogger(__name__)

_ANSWERS = 32
Prompt = str | Sequence[Message]


def answer(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    form: Form,
    *,
    max_length: int | None,
    system: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Answers to prompts that are put to a model as data of ``form`` was in training, and are cut as they were there.

    Args:
        loaded: model and tokenizer; prompts, form, system: as for :func:`ffalora.data.generation.put`.
        max_length: of the samples in training (``data.max_length``).
        others: as for :func:`ffalora.data.generation.generate_answers`.

    Raises:
        DataError: what these two refuse.
    """
    asked, template = put(prompts, form, loaded.tokenizer, system)
    return generate_answers(
        loaded.model,
        loaded.tokenizer,
        asked,
        template=template,
        max_length=max_length if form == "prompts" else None,
        positions=max_positions(loaded.model),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
    )


def within_positions(loaded: LoadedModel, messages: Sequence[Message], max_new_tokens: int) -> list[Message]:
    """A conversation that an answer of so many tokens has room beside (half of the positions at most): without its
    oldest turns where that needs it, but with what the system says and the last that the user said.
    """
    kept, positions = list(messages), max_positions(loaded.model)
    if positions is None:
        return kept
    first = int(bool(kept) and kept[0]["role"] == "system")
    room = beside_answer(positions, max_new_tokens)
    while len(kept) - first > 2 and len(encode_question(kept, loaded.tokenizer)) > room:
        del kept[first : first + 2]
    if len(kept) < len(messages):
        logger.warning("the conversation's oldest %d turns no longer fit, and are left out", len(messages) - len(kept))
    return kept


@dataclass(frozen=True)
class Answered:
    """What a language model answered to the prompts of a split, and what the data answers to them."""

    prompts: Sequence[str]
    answers: Sequence[str]
    references: Sequence[str]

    def metrics(self) -> dict[str, float]:
        """``rouge_l`` of answers with those of the data, and ``exact_match`` where any of the data's ends in a number,
        or where they are a choice of few.
        """
        return self._metrics_of(self.answers)

    def metrics_of_commonest(self) -> dict[str, float] | None:
        """What answering every prompt with the commonest of the data's answers would reach; None where the data's are
        not a choice of few.
        """
        if not self._are_few:
            return None
        ((commonest, _),) = Counter(self.references).most_common(1)
        return self._metrics_of([commonest] * len(self.references))

    @property
    def _are_few(self) -> bool:
        return 2 * len(set(self.references)) <= len(self.references)

    def _metrics_of(self, answers: Sequence[str]) -> dict[str, float]:
        numbers = any(map(ends_in_number, self.references))
        exact = {"exact_match": exact_match(answers, self.references)} if numbers or self._are_few else {}
        return {"rouge_l": rouge_l(answers, self.references)} | exact

    def rows(self) -> list[dict[str, str]]:
        """One mapping an answer: ``prompt``, ``answer`` and ``reference``."""
        together = zip(self.prompts, self.answers, self.references, strict=True)
        return [{"prompt": prompt, "answer": answer, "reference": reference} for prompt, answer, reference in together]


def answer_split(loaded: LoadedModel, data: LoadedData, config: DataConfig, split: str) -> Answered | None:
    """What the model answers to the prompts of ``split``; None where the configuration asks for no answers."""
    tokens = config.answer_tokens
    if tokens is None:
        return None
    rows = data.splits[split]
    if config.max_evaluation_samples is not None:
        rows = rows.select(range(min(config.max_evaluation_samples, len(rows))))
    if data.form == "texts":
        raise ConfigError(
            f"data.answer_tokens={tokens} is given, but {data.name} holds plain texts without answers; "
            "set it to null, or give columns of prompts and answers"
        )
    prompts, *answered = (column_values(rows, column) for column in data.input_columns)
    references = answered[0] if answered else [messages[-1]["content"] for messages in prompts]
    asked = prompts if answered else [messages[:-1] for messages in prompts]
    form = data.form or "prompts"
    answers = answer(loaded, asked, form, max_length=config.max_length, max_new_tokens=tokens, batch_size=_ANSWERS)
    shown = prompts if answered else [messages[-1]["content"] for messages in asked]
    return Answered(shown, answers, references)
