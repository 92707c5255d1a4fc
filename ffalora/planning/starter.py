"""A first configuration for a person's own table: what was found in it, in YAML with the reasons beside it."""

from __future__ import annotations

import json
import math

from ..config import Config
from ..data.proposal import Proposal
from ..federated.batch import MOST_SAMPLES
from ..privacy.batch import sensible_batch
from .plan import LOCAL_STEPS, ROUNDS

MODEL, TOP_LAYER = "all-MiniLM-L6-v2", 5
LANGUAGE_MODEL, UPPER_LAYERS = "SmolLM2-135M-Instruct", range(22, 30)
_HELD_OUT = 0.3
_PROMPTS = 2_000  # that a first run of a language model computes, all clients and steps together


def starter_yaml(found: Proposal, target_epsilon: float) -> str:
    """The configuration, ready to run: a private one, with the batch that suits the budget and the sizes.

    Raises:
        ValueError: an ε that no noise meets.
    """
    drawn = found.sizes[0] if found.user is None else found.users
    largest, what = max(1, math.floor((1 - _HELD_OUT) * drawn)), "samples" if found.user is None else "users"
    rows_each = found.sizes[0] / max(1, drawn)
    delta = min(1e-5, 10.0 ** -math.ceil(math.log10(10 * found.sizes[0])))
    computed, least = (_PROMPTS, 1) if found.label is None else (MOST_SAMPLES, Config().optimizer.batch)
    most = max(least, int(computed // (ROUNDS * LOCAL_STEPS * len(found.sizes)) / rows_each))
    batch = sensible_batch(largest, target_epsilon, delta, ROUNDS * LOCAL_STEPS, most)
    lines = [
        f"# A private run on {found.source}, as `ffalora init` proposed it. Every key: ffalora simulate --help-all",
        "seed: 0",
        *(_language_model(found) if found.label is None else _classifier(found)),
        *_clients(found),
        "federation:",
        f"  rounds: {ROUNDS}",
        f"  local_steps: {LOCAL_STEPS}",
        "  evaluate_every: 5",
        "optimizer:",
        f"  batch_size: {batch}  # of {largest} {what} of the largest client; others, and their time: ffalora plan",
        "  lr: auto  # from noise and steps, never from the data",
        "  schedule: cosine",
        "privacy:",
        _unit(found),
        f"  target_epsilon: {target_epsilon:g}  # for all rounds together; smaller protects more and learns less",
        *_clipping(found),
        f"  delta: {delta:.1e}  # well below one over the rows of a client",
        "  noise: secure  # charged to the data's ledger, run by run; seeded: to try things out, protects nothing",
    ]
    return "\n".join(map(_printable, lines)) + "\n"


def _classifier(found: Proposal) -> list[str]:
    """Model, data and adapter for texts with labels."""
    return [
        "model:",
        f"  name: {MODEL}  # an English sentence encoder; any encoder of the hub or a folder will do",
        "data:",
        f"  name: {_value(found.source)}",
        f"  task: {found.task}  # {_task_reason(found)}",
        f"  text: {_value(list(found.text))}",
        f"  label: {_value(found.label)}  # {found.column(str(found.label))}",
        *_label_range(found),
        *_users(found),
        *_cells(found),
        *_class_texts(found),
        "adapter:",
        "  rank: 8",
        "  target_modules: all-linear",
        f"  layers_to_transform: [{TOP_LAYER}]  # the upper one of six: those below are computed once",
        "  head: auto  # trained",
    ]


def _language_model(found: Proposal) -> list[str]:
    """Model, data and adapter for conversations, or prompts with answers."""
    what = "what assistants say in it is learned" if len(found.text) == 1 else "the second is learned"
    return [
        "model:",
        f"  name: {LANGUAGE_MODEL}  # a small chat model, needs ffalora[gguf]; any of the hub or a folder will do",
        "data:",
        f"  name: {_value(found.source)}",
        "  task: causal-lm  # for classes, name their column: ffalora init --label COLUMN",
        f"  text: {_value(list(found.text))}  # {what}",
        "  max_length: 256  # tokens; what does not fit is said when the run begins",
        *_users(found),
        *_cells(found),
        "adapter:",
        "  rank: 8",
        "  target_modules: auto  # queries and values",
        f"  layers_to_transform: {_value(list(UPPER_LAYERS))}  # the upper ones: backward stops there",
    ]


def _users(found: Proposal) -> list[str]:
    return [] if found.user is None else [f"  user: {_value(found.user)}  # whose a row is; {found.column(found.user)}"]


def _clipping(found: Proposal) -> list[str]:
    every_row = "  clipping: automatic  # every row counts alike, however small its gradient"
    return [every_row] if found.label is None else []


def _unit(found: Proposal) -> str:
    if found.apart is not None:
        return f"  unit: sample  # each row is protected, and not the {found.apart}, who has rows at several clients"
    if found.user is None:
        return "  unit: sample  # each row is protected; users: name the column in data.user, and set unit: user"
    return f"  unit: user  # all rows of one {found.user} are protected together; sample: each row by itself"


def _task_reason(found: Proposal) -> str:
    if found.task == "regression":
        return "its label is a number; classification treats each value as a class"
    return "each value of its label is a class; regression predicts numbers"


def _cells(found: Proposal) -> list[str]:
    forms = {part.form for part in found.parts if part.form is not None}
    lines = [f"  # {form}" for form in forms]
    if len(forms) == 1:
        form = forms.pop()
        lines = [f"  encoding: {form.encoding}", f"  delimiter: {_value(form.delimiter)}"]
    if found.dropped:
        rows = found.dropped + sum(found.sizes)
        lines.append(f"  drop_empty: true  # {found.dropped} of {rows} rows lack a text, the label or the client")
    return lines


def _label_range(found: Proposal) -> list[str]:
    if found.task != "regression":
        return []
    return [
        "  # The least and the greatest number that a label can be, which a model learns as -1 and 1; never taken from "
        "the rows:",
        "  # label_range: [LOW, HIGH]",
    ]


def _class_texts(found: Proposal) -> list[str]:
    label = found.column(str(found.label))
    if found.task != "classification" or label.distinct > len(label.examples) or len(found.text) > 1:
        return []
    return [
        "  # What a text of each class could say helps most where data are few; never taken from the rows:",
        "  # label_texts: {" + ", ".join(f"{_value(name)}: [{_value(name)}]" for name in label.examples) + "}",
    ]


def _clients(found: Proposal) -> list[str]:
    if found.client is None:
        return [
            "clients:",
            "  count: 1  # one site; where a column says whose a row is: partition: column, column: its name",
        ]
    return [
        "clients:",
        "  partition: column  # each keeps its rows, and its own ledger",
        f"  column: {_value(found.client)}  # {len(found.sizes)} clients of {found.rows_each} rows",
    ]


def _value(value: object) -> str:
    """A value in YAML, on one line: JSON is YAML, where what YAML takes for the end of a line is escaped."""
    written = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in written)


def _printable(line: str) -> str:
    """A line whose comment may quote what ends a line, or what YAML refuses."""
    return "".join(c if c.isprintable() else " " for c in line)
