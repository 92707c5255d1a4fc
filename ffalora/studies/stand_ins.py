"""Stand-ins for models and data that are not at hand: small models of the same kind with random weights, and data with
the columns, classes and splits of the real one, so that a configuration can be tried without a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config, ConfigError
from ..data.embedded import EMBEDDED
from .architectures import build_published, find_architecture

_WORDS = [f"word{number}" for number in range(40)]
_ROWS, _HELD_OUT = 160, 40
_CLASSES_OF_FOOD, _ROWS_OF_A_FOOD, _PIXELS = 101, 6, 40
#: Opening, padding, closing and unknown token, in the order in which the real tokenizers number them.
_SPECIAL = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>"),
    "llama": ("<unk>", "<s>", "</s>"),
}


@dataclass(frozen=True)
class _Texts:
    """Text columns and classes of a data set of the hub, its labelled splits, and those whose labels are all -1."""

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    labelled: tuple[str, ...] = ("train", "validation")
    hidden: tuple[str, ...] = ("test",)


_GLUE = {
    "sst2": _Texts(("sentence",), ("negative", "positive")),
    "qnli": _Texts(("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": _Texts(("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": _Texts(
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("train", "validation_matched", "validation_mismatched"),
        ("test_matched", "test_mismatched"),
    ),
}


def write_model(name: str, folder: Path) -> Path:
    """A small model of random weights, of the kind of the model ``name``, and its tokenizer.

    Raises:
        ConfigError: nothing is known of a model of this name.
    """
    architecture = find_architecture(name)
    place = folder / "models" / name.replace("/", "--")
    if place.exists():
        return place
    changes: dict[str, Any] = {}
    if architecture.kind in _SPECIAL:
        tokenizer = _tokenizer(architecture.kind)
        changes["vocab_size"] = len(tokenizer)
        tokenizer.save_pretrained(place)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build_published(name, **changes).save_pretrained(place)
    return place


def _tokenizer(kind: str) -> Any:
    """Whole words and single digits, between the special tokens that the kind of model puts there."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate([*_SPECIAL[kind], *_WORDS, *"0123456789#"])}
    unknown = next(token for token in _SPECIAL[kind] if "unk" in token.lower())
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit()])
    around = {
        "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        "llama": ("<s> $A", "<s> $A $B"),
    }[kind]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around[0],
        pair=around[1],
        special_tokens=[(token, vocabulary[token]) for token in _SPECIAL[kind] if token in around[1].split(" ")]
        + ([("[SEP]", vocabulary["[SEP]"])] if kind == "bert" else []),
    )
    named = {"unk_token": unknown}
    if kind == "bert":
        named |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        named |= {"bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if kind == "roberta" else {})
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    inputs = ["input_ids", "attention_mask"]
    fast.model_input_names = [*inputs, "token_type_ids"] if kind == "bert" else inputs
    return fast


def write_data(config: Config, folder: Path) -> str:
    """Data with the columns, classes and splits of ``config.data.name``; what to put into its place.

    Raises:
        ConfigError: nothing is known of data of this name.
    """
    name = config.data.name
    repository, _, part = name.partition(":")
    place = folder / "data" / name.replace("/", "--").replace(":", "--")
    spec = f"{place}:{part or 'default'}"
    if place.exists():
        return str(place) if name in EMBEDDED else spec
    if repository == "nyu-mll/glue" and part in _GLUE:
        _write_repository(place, part, _glue(_GLUE[part]))
    elif name == "openai/gsm8k:main":
        _write_repository(place, part, _maths())
    elif name == "ethz/food101":
        _write_repository(place, "default", _food())
    elif name in EMBEDDED and EMBEDDED[name].task == "classification":
        _embedded(name).save_to_disk(str(place))
        return str(place)
    else:
        raise ConfigError(
            f"data.name={name!r}: a dry run has no stand-in for it, but for nyu-mll/glue:{{{','.join(_GLUE)}}}, "
            "openai/gsm8k:main, ethz/food101 and embedded data for classification, or give a local file"
        )
    return spec


def _write_repository(folder: Path, part: str, splits: Mapping[str, Any]) -> None:
    """Parquet files and a card, as a data set lies on the hub."""
    (folder / part).mkdir(parents=True)
    files = []
    for split, data in splits.items():
        data.to_parquet(str(folder / part / f"{split}.parquet"))
        files.append({"split": split, "path": f"{part}/{split}.parquet"})
    card = json.dumps({"configs": [{"config_name": part, "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}\n---\n", encoding="utf-8")


def _glue(texts: _Texts) -> dict[str, Any]:
    from datasets import ClassLabel, Dataset, Features, Value

    random = np.random.default_rng(0)
    names = list(texts.classes)
    columns = {column: Value("string") for column in texts.columns}
    features = Features({**columns, "label": ClassLabel(names=names), "idx": Value("int32")})
    found = {}
    for split in (*texts.labelled, *texts.hidden):
        rows = _ROWS if split == "train" else _HELD_OUT
        classes = np.arange(rows) % len(names)
        made: dict[str, Any] = {
            column: [_sentence(random, int(number), len(names)) for number in classes] for column in texts.columns
        }
        labels = classes.tolist() if split in texts.labelled else [-1] * rows
        found[split] = Dataset.from_dict(made | {"label": labels, "idx": list(range(rows))}, features=features)
    return found


def _maths() -> dict[str, Any]:
    from datasets import Dataset

    random = np.random.default_rng(0)
    found = {}
    for split, rows in (("train", _ROWS), ("test", _HELD_OUT)):
        numbers = random.integers(1, 10, (rows, 2))
        found[split] = Dataset.from_dict(
            {
                "question": [f"{_sentence(random, 0, 1)} {a} {b}" for a, b in numbers],
                "answer": [f"{_sentence(random, 0, 1)} {a + b}\n#### {a + b}" for a, b in numbers],
            }
        )
    return found


def _food() -> dict[str, Any]:
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture

    random = np.random.default_rng(0)
    features = Features({"image": Image(), "label": ClassLabel(num_classes=_CLASSES_OF_FOOD)})
    found = {}
    for split, rows_of_a_class in (("train", _ROWS_OF_A_FOOD), ("validation", 1)):
        labels = np.repeat(np.arange(_CLASSES_OF_FOOD), rows_of_a_class)
        pixels = random.integers(0, 128, (len(labels), _PIXELS, _PIXELS, 3)) + labels[:, None, None, None]
        pictures = [Picture.fromarray(one[: _PIXELS - i % 3].astype(np.uint8)) for i, one in enumerate(pixels)]
        found[split] = Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)
    return found


def _embedded(name: str) -> Any:
    from datasets import ClassLabel, Dataset, Features, Value

    data, random = EMBEDDED[name], np.random.default_rng(0)
    names = list(data.label_names or ("0", "1"))
    classes = (np.arange(_ROWS + 2 * _HELD_OUT) % len(names)).tolist()
    columns: dict[str, Any] = {
        column: [_sentence(random, number, len(names)) for number in classes] for column in data.input_columns
    }
    features: dict[str, Any] = {column: Value("string") for column in columns}
    if data.client_column is not None:
        columns[data.client_column] = [f"client-{row // len(names) % 3}" for row in range(len(classes))]
        features[data.client_column] = Value("string")
    label = data.label_column or "label"
    features[label] = ClassLabel(names=names)
    return Dataset.from_dict(columns | {label: classes}, features=Features(features))


def _sentence(random: np.random.Generator, number: int, classes: int) -> str:
    """Words of which most belong to the class."""
    share = len(_WORDS) // classes
    own = random.integers(number * share, (number + 1) * share, 4)
    return " ".join(_WORDS[i] for i in [*own, *random.integers(0, len(_WORDS), int(random.integers(1, 5)))])
