"""Answers of a finished adapter of a language model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..data.conversations import Form, Message, problem_of_messages
from ..data.delimited import read_text
from ..data.errors import DataError
from ..data.files import lines_of
from ..data.generation import without_answer
from ..models import LoadedModel
from .answers import Prompt, answer, within_positions
from .bundle import load_bundle


def generate(
    folder: str | Path, prompts: Sequence[Prompt], overrides: Mapping[str, Any] | None = None, **options: Any
) -> list[str]:
    """What the model of a run says to prompts, in their order.

    Args:
        folder: a run's, or its ``adapter``.
        prompts: texts, or conversations that end before the answer.
        overrides: dotted configuration keys to change.
        options: as for :func:`load_speaker`.

    Raises:
        ConfigError: the run is of no language model, there are no prompts, or one is empty. DataError: a conversation
            that the tokenizer's template does not take.
    """
    if not prompts or any(not (prompt.strip() if isinstance(prompt, str) else prompt) for prompt in prompts):
        raise ConfigError("a prompt is empty, or there are none; give one text an answer")
    return load_speaker(folder, overrides, **options)(prompts)


@dataclass(frozen=True)
class Speaker:
    """The model of a run, and how it answers; the options of :func:`load_speaker`."""

    loaded: LoadedModel
    form: Form
    max_length: int | None
    system: str | None
    max_new_tokens: int
    batch_size: int
    temperature: float
    seed: int

    def __call__(self, prompts: Sequence[Prompt]) -> list[str]:
        """Answers to prompts, in their order."""
        options = vars(self).copy()
        return answer(options.pop("loaded"), prompts, **options)


def load_speaker(
    folder: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    form: Form | None = None,
    system: str | None = None,
    merge: bool = False,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
) -> Speaker:
    """Loads the model of a run, and returns what answers prompts with it.

    Args:
        folder, overrides: as for :func:`generate`.
        form: how texts are put to the model: 'prompts' (in the template of training), 'conversations' (as what a user
            says) or 'texts' (to be continued as they are); None for the form of the data that it was trained on.
        system: what the system says first, in conversations.
        merge: add the adapter to the base weights first, which generates faster and rounds the sum to the base's number
            format.
        max_new_tokens: of an answer; batch_size: prompts at a time.
        temperature: 0 takes the likeliest tokens, more draws them; seed: of the draws.

    Raises:
        ConfigError: the run is of no language model, or an option is out of range or of another form.
    """
    if temperature < 0 or max_new_tokens < 1 or batch_size < 1:
        raise ConfigError(
            f"temperature={temperature} must be 0 or more, max_new_tokens={max_new_tokens} and batch_size={batch_size} "
            "at least 1"
        )
    bundle = load_bundle(folder, overrides)
    if bundle.config.data.task != "causal-lm":
        raise ConfigError(
            f"generate takes adapters of language models (data.task=causal-lm); this one was trained for "
            f"{bundle.config.data.task}: use `ffalora predict`"
        )
    form = form or bundle.form or "prompts"
    if system is not None and form != "conversations":
        raise ConfigError(f"system is given, but this run's prompts are {form}; leave it out, or ask for conversations")
    if merge:
        bundle.adapters.merge()

    length = bundle.config.data.max_length
    return Speaker(bundle.loaded, form, length, system, max_new_tokens, batch_size, temperature, seed)


def chat(folder: str | Path, overrides: Mapping[str, Any] | None = None, **options: Any) -> Callable[[str], str]:
    """A conversation with the model of a run: what is returned takes what the user says next, and answers with all that
    was said before in view, as far as the model's positions go: its oldest turns are left out beyond, with a warning.

    Args:
        folder, overrides: as for :func:`generate`; options: as for :func:`load_speaker`, but in conversations whatever
            the run was trained on.

    Raises:
        ConfigError: as for :func:`load_speaker`. DataError: the tokenizer has no chat template that tells roles apart;
            or, of what is returned, a text that leaves no room for an answer, which then has not been said.
    """
    system = options.pop("system", None)
    speaker = load_speaker(folder, overrides, **{**options, "form": "conversations"})
    said: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def reply(text: str) -> str:
        asked = [*said, {"role": "user", "content": text}]
        asked = within_positions(speaker.loaded, asked, speaker.max_new_tokens)
        (answered,) = speaker([asked])
        said[:] = [*asked, {"role": "assistant", "content": answered}]
        return answered

    return reply


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: a line each, or of a ``.jsonl`` file what each object has as ``prompt`` or ``messages``
    (without the answers that conversations end in).

    Raises:
        DataError: bytes in no encoding that tables are read in, a line that holds neither, or messages of other roles.
    """
    try:
        lines = list(lines_of(read_text(path)))
    except ValueError as error:
        raise DataError(f"{path} cannot be read as text: {error}") from None
    if path.suffix.lower() != ".jsonl":
        return [line for _, line in lines]
    found: list[Prompt] = []
    for number, line in lines:
        try:
            row = json.loads(line)
            prompt = row["messages"] if "messages" in row else row["prompt"]
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{path}, line {number}: no JSON object with prompt or messages") from None
        if not isinstance(prompt, str) and (problem := problem_of_messages(prompt)):
            raise DataError(f"{path}, line {number}: a prompt is a text or a conversation; {problem}")
        found.append(prompt if isinstance(prompt, str) else without_answer(prompt))
    return found
