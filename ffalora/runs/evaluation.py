"""Metrics and predictions of a model on examples, batched by length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config import ConfigError, DataConfig
from ..data.errors import DataError
from ..data.examples import Examples
from ..data.generation import ends_in_number, exact_match, generate_answers, rouge_l
from ..data.load import LoadedData
from ..data.spelling import one_spelling
from ..data.tasks import Gathered, Task, causal_losses
from ..data.validate import column_values, is_missing
from ..models import LoadedModel
from ..models.frozen_head import can_leave_head_out, head_left_out
from ..training.batches import physical_batches

_TOKENS = 8192
_ANSWERS = 32


@torch.inference_mode()
def predict_examples(model: nn.Module, examples: Examples, device: torch.device) -> Tensor:
    """Logits ``[n, labels]`` float32 of all examples, in their order, on the CPU."""
    outputs: list[Tensor] = [torch.empty(0)] * len(examples)
    for batch, output, _ in _passes(model, examples, device, len(examples)):
        for index, logits in zip(batch, output.logits.float().cpu(), strict=True):
            outputs[index] = logits
    return torch.stack(outputs)


@torch.inference_mode()
def gather_examples(
    model: nn.Module, examples: Examples, task: Task, device: torch.device, samples: int | None = None
) -> Gathered:
    """What the task's metrics need of the first ``samples`` examples (all by default), in their order.

    Raises:
        DataError: there are none.
    """
    count = len(examples) if samples is None else min(samples, len(examples))
    if not count:
        raise DataError("there is nothing to compute metrics of: no row was evaluated")
    order, found = [], []
    first = {name: value.to(device) for name, value in examples.collate([0])[0].items()}
    is_apart = task.losses is causal_losses and can_leave_head_out(model, first)  # losses do without logits
    with head_left_out(model) if is_apart else nullcontext():
        for batch, *results in _passes(model, examples, device, count):
            order.append(batch)
            found.append(task.gather(*results))
    places = np.argsort(np.concatenate(order))
    return {name: torch.cat([batch[name] for batch in found]).cpu().double().numpy()[places] for name in found[0]}


def metrics_of_groups(gathered: Gathered, task: Task, groups: Sequence[Any]) -> dict[str, dict[str, float]]:
    """The number of rows and the task's metrics of each group alone; ``groups`` names each sample's, or none."""
    spelling = one_spelling(groups)
    called = [spelling[group] if isinstance(group, str) else str(group) for group in groups]
    names = np.asarray(["(none)" if is_missing(group) else name for group, name in zip(groups, called, strict=True)])
    of_group = {name: names == name for name in sorted(set(names))}
    return {
        str(name): {"rows": int(held.sum())} | task.metrics({key: values[held] for key, values in gathered.items()})
        for name, held in of_group.items()
    }


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
    answers = generate_answers(loaded.model, loaded.tokenizer, asked, max_new_tokens=tokens, batch_size=_ANSWERS)
    shown = prompts if answered else [messages[-1]["content"] for messages in asked]
    return Answered(shown, answers, references)


def _passes(
    model: nn.Module, examples: Examples, device: torch.device, count: int
) -> Iterator[tuple[np.ndarray, Any, Tensor]]:
    """Indices, output and targets of one batch after another: the first ``count`` examples, sorted by length."""
    for batch in physical_batches(examples.lengths[:count], _TOKENS, overhead=256).batches:
        inputs, targets = examples.collate(batch)
        yield batch, model(**{name: value.to(device) for name, value in inputs.items()}), targets.to(device)
