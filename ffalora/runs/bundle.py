"""A finished adapter on disk with all that is needed to use it again: PEFT's files, the task head, and how it was
made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..adapters import Adapters, CheckpointError, load_adapters
from ..adapters.peft import head_tensors
from ..config import Config, ConfigError, from_mapping, merge
from ..data.conversations import Form
from ..data.embedded import EMBEDDED
from ..data.errors import DataError
from ..data.examples import Ragged, TokenizedDataset
from ..data.load import LoadedData
from ..data.tasks import find_task, in_units
from ..data.tokenize import pad_token_of
from ..data.validate import column_values
from ..files.atomic import write_atomically
from ..models import LoadedModel, MeanPooledClassifier, choose_device, load_model, max_positions
from .answers import Prompt, answer, answer_split
from .data import evaluation_split, is_same_data, load_run_data, place_of, prepare_split
from .evaluation import gather_examples, metrics_of_groups, predict_examples
from .folder import BUNDLE_FILE, adapter_folder
from .intervals import SHARES, share_interval

_ANSWER_TOKENS = 128
HEAD_FILE = "head.safetensors"
#: Keys that a run sets for its own data and that say nothing of other data.
_OF_OWN_DATA = ("data.splits", "data.max_evaluation_samples", "data.encoding", "data.delimiter", "clients.column")


@dataclass
class Bundle:
    """A model with its adapter, ready to answer.

    Attributes:
        config: of the run that made it.
        loaded: model and tokenizer.
        label_names: of the classes; None for other tasks.
        trained_on: name of the data that it was trained on.
        place: the absolute path of the file or folder that this was then; None for data that have none.
        form: what a language model learned of a row; None for other tasks.
        adapters: the handle.
        held_out: rows of each split that nothing was trained on; empty where their number is unknown.
    """

    config: Config
    loaded: LoadedModel
    label_names: list[str] | None
    device: torch.device
    trained_on: str
    form: Form | None
    adapters: Adapters
    held_out: Mapping[str, int]
    place: str | None = None


class Scores(dict[str, float]):
    """Metrics by name, with what they are of.

    Attributes:
        samples: the number of rows that were scored.
        rows: which rows these are, in words.
        by_group: metrics on the rows of each client alone, or of each value of another column.
    """

    def __init__(
        self,
        metrics: Mapping[str, float],
        samples: int,
        rows: str,
        by_group: Mapping[str, Mapping[str, float]] | None = None,
    ):
        super().__init__(metrics)
        self.samples, self.rows, self.by_group = samples, rows, dict(by_group or {})

    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 95% interval (Wilson 1927) of each metric that is a share of the rows: what other rows of the same kind
        would give. Metrics that are no shares have none.
        """
        return {name: share_interval(self[name], self.samples) for name in SHARES if name in self}


def save_bundle(folder: Path, adapters: Adapters, loaded: LoadedModel, config: Config, data: LoadedData) -> None:
    """Writes the adapter in PEFT's format, and beside it the task head (where PEFT's files do not hold it) and this
    run's terms.
    """
    adapters.save(folder, loaded.root)
    if loaded.root:
        head = {n: t.detach().float().contiguous().cpu() for n, t in _head(loaded.model).items()}
        write_atomically(folder / HEAD_FILE, save(head))
    terms: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "label_names": data.label_names,
        "form": data.form,
        "place": place_of(config.data.name),  # whose name may be relative to the folder of today
    }
    if not config.privacy.hides_sizes:
        terms["held_out"] = {split: len(rows) for split, rows in data.splits.items() if split != "train"}
    write_atomically(folder / BUNDLE_FILE, json.dumps(terms, indent=2, ensure_ascii=False).encode())


def load_bundle(folder: str | Path, overrides: Mapping[str, Any] | None = None) -> Bundle:
    """Loads the base model, attaches the adapter and fills in the head.

    Args:
        folder: written by :func:`save_bundle` (a run's ``adapter`` folder), or the run's folder itself.
        overrides: dotted configuration keys to change, such as ``{"device": "cuda"}``.

    Raises:
        CheckpointError: something is missing, damaged, or does not fit.
    """
    folder = adapter_folder(folder)
    try:
        terms = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
        config = from_mapping(merge(terms["config"], overrides or {}))
        names, trained_on = terms["label_names"], str(terms["config"]["data"]["name"])
        form, held_out = terms.get("form"), dict(terms.get("held_out") or {})
        place = terms.get("place")
        if names is not None and not all(isinstance(name, str) for name in names):
            raise ValueError(f"label_names={names!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError) and overrides:
            raise
        raise CheckpointError(
            f"{folder} holds no adapter that this version can use ({error}); give a run's adapter folder"
        ) from None
    device = choose_device(config.device)
    loaded = load_model(config.model, config.data.task, len(names) if names else 1, config.seed, device)
    adapters = load_adapters(loaded.model, folder, loaded.root)
    if loaded.root:
        _load_head(loaded.model, folder / HEAD_FILE)
    loaded.model.eval().to(device)
    return Bundle(config, loaded, names, device, trained_on, form, adapters, held_out, place)


def evaluate(folder: str | Path, overrides: Mapping[str, Any] | None = None, by: str | None = None) -> Scores:
    """The task's metrics of a finished adapter: on the evaluation split of its own data, or on other data
    (``data.name``), of which all rows are taken that are not named another split. Classes are matched by name. With
    ``by``, the name of a column (by default the one that says whose a row is), metrics of the rows of each of its
    values are there too.

    Raises:
        DataError: the data holds classes that the adapter was not trained for, or no rows to evaluate on; or its own
            data is cut otherwise than it was, so that rows that it was trained on would be scored.
    """
    bundle = load_bundle(folder, overrides)
    config, split, asked = bundle.config, bundle.config.data.evaluate_on, overrides or {}
    held_out = {"test": config.data.test_fraction, "validation": config.data.validation_fraction}[split]
    if "data.name" not in asked and bundle.place is not None and Path(bundle.place).exists():
        config = config.model_copy(update={"data": config.data.model_copy(update={"name": bundle.place})})
    if is_same_data(config.data.name, bundle.trained_on, bundle.place) and held_out < 1:
        data = load_run_data(config, class_names=bundle.label_names)
        evaluation_split(config, data)
        if "data.splits" not in asked:
            _check_held_out(bundle, split, len(data.splits[split]))
        rows = f"the {split} split of {bundle.trained_on}"
    else:
        kept: dict[str, Any] = {key: None for key in _OF_OWN_DATA if key not in asked}
        if config.clients.partition == "column":
            kept["clients.partition"] = "iid"
        config = from_mapping(merge(config.model_dump(mode="json"), kept))
        data = load_run_data(config, only=split, class_names=bundle.label_names)
        is_file = Path(config.data.name).expanduser().is_file()
        rows = f"all of {data.name}" if is_file else f"all of {data.name} that is {split} data"
    examples = prepare_split(config, data, split, bundle.loaded)
    limit, task = config.data.max_evaluation_samples, find_task(config.data.task, config.data.label_range)
    count = len(examples) if limit is None else min(limit, len(examples))
    gathered = gather_examples(bundle.loaded.model, examples, task, bundle.device, limit)
    metrics = task.metrics(gathered)
    answered = answer_split(bundle.loaded, data, config.data, split)
    metrics |= answered.metrics() if answered else {}
    by = by or data.client_column
    scored = data.splits[split]
    if by is not None and by not in scored.column_names:
        raise DataError(f"by={by!r}: {rows} has no such column; its columns are {', '.join(scored.column_names)}")
    groups = [] if by is None else column_values(scored, by)[:count]
    return Scores(metrics, count, rows, metrics_of_groups(gathered, task, groups))


def _check_held_out(bundle: Bundle, split: str, rows: int) -> None:
    """Refuses a split of a run's own data that is not of as many rows as the run held out."""
    if bundle.held_out and bundle.held_out.get(split) != rows:
        raise DataError(
            f"the {split} split of {bundle.trained_on} has {rows} rows, and the run held out "
            f"{bundle.held_out.get(split, 'none')}: the data or how it is cut has changed, and rows that the adapter "
            "was trained on may be among them. Leave fractions as they were, and give new rows as a file of their own"
        )


def predict(
    folder: str | Path, texts: Sequence[str] | Sequence[tuple[str, str]], overrides: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Labels and probabilities (or numbers, for regression) of texts or pairs of texts; a language model's answers to
    prompts.

    Raises:
        ConfigError: the adapter's task does not take texts, there are none, a text is empty, or single texts and pairs
            are mixed. CheckpointError: its outputs are not finite.
    """
    if isinstance(texts, str):
        raise ConfigError(f"texts={texts[:40]!r} is one text; give a list of them, or a file to predict_file")
    return predict_with(load_bundle(folder, overrides), texts)


def predict_with(bundle: Bundle, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """As :func:`predict`, of an adapter that is loaded; a tuple of one text is a text."""
    task = bundle.config.data.task
    if task == "image-classification":
        raise ConfigError(f"predict takes adapters for texts; this one was trained for {task}")
    columns = _columns(texts)
    if task == "causal-lm":
        if len(columns) != 1:
            raise ConfigError("this adapter is of a language model, which answers single prompts; leave --pairs out")
        return [{"answer": text} for text in answers_of(bundle, columns[0])]
    if len(columns) == 1 and len(trained_columns(bundle)) == 2:
        raise ConfigError(
            f"this adapter was trained on pairs ({' and '.join(trained_columns(bundle))}); give tuples of two texts "
            "(--pairs on the command line)"
        )
    limits = (bundle.config.data.max_length, max_positions(bundle.loaded.model))
    longest = min((limit for limit in limits if limit is not None), default=None)
    encoded = bundle.loaded.tokenizer(*columns, truncation=True, max_length=longest)
    types = encoded.get("token_type_ids")
    examples = TokenizedDataset(
        Ragged(encoded["input_ids"]),
        torch.zeros(len(texts)).numpy(),
        pad_token_of(bundle.loaded.tokenizer),
        Ragged(types) if types is not None else None,
    )
    logits = predict_examples(bundle.loaded.model, examples, bundle.device)
    if not logits.isfinite().all():
        raise CheckpointError("the adapter's outputs are not finite: it diverged in training; lower optimizer.lr there")
    if bundle.label_names is None:
        return [{"value": in_units(float(row[0]), bundle.config.data.label_range)} for row in logits]
    names = bundle.label_names
    return [
        {"label": names[int(row.argmax())], "probabilities": dict(zip(names, row.softmax(0).tolist(), strict=True))}
        for row in logits
    ]


def answers_of(bundle: Bundle, prompts: Sequence[Prompt]) -> list[str]:
    """The likeliest answers of a language model, asked as it was trained, of as many tokens as its run evaluated."""
    data = bundle.config.data
    tokens = data.answer_tokens or _ANSWER_TOKENS
    return answer(bundle.loaded, prompts, bundle.form or "prompts", max_length=data.max_length, max_new_tokens=tokens)


def trained_columns(bundle: Bundle) -> tuple[str, ...]:
    """Text columns that an adapter was trained on; empty where its configuration left them to be guessed, which only
    single ones are.
    """
    own = EMBEDDED.get(bundle.trained_on)
    return tuple(bundle.config.data.text or (own.input_columns if own else ()))


def _columns(texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[list[str]]:
    """First texts, and second ones where there are pairs; all with something in them."""
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if not rows:
        raise ConfigError("texts is empty; give one text or pair a prediction")
    for position, row in enumerate(rows):
        if len(row) != len(rows[0]) or len(row) not in (1, 2):
            raise ConfigError(
                f"text {position} has {len(row)} parts, text 0 has {len(rows[0])}; give all texts or all pairs"
            )
        for part, text in enumerate(row):
            if not str(text).strip():
                which = "" if len(row) == 1 else f" (the {('first', 'second')[part]} of the pair)"
                raise ConfigError(f"text {position}{which} is empty; give one text or pair a prediction")
    return [list(column) for column in zip(*rows, strict=True)]


@torch.no_grad()
def _load_head(model: nn.Module, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    head = _head(model)
    if {n: t.shape for n, t in tensors.items()} != {n: p.shape for n, p in head.items()}:
        raise CheckpointError(f"{path} does not fit this model's head")
    for name, parameter in head.items():
        parameter.copy_(tensors[name])


def _head(model: nn.Module) -> dict[str, Tensor]:
    """The task head's tensors, and what is taken off the states that it reads."""
    center = {"center": model.center} if isinstance(model, MeanPooledClassifier) else {}
    return head_tensors(model) | center
