"""From a split with named columns to examples in memory: tokenise once, keep the token numbers, pad later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .conversations import form_of, tokenize_conversations
from .errors import DataError
from .examples import CausalDataset, Examples, ImageDataset, Ragged, TokenizedDataset
from .load import LoadedData
from .places import Places
from .validate import column_values

if TYPE_CHECKING:
    from datasets import Dataset

_NO_LIMIT = 1_000_000  # tokenizers without a limit say a very large number
DEFAULT_TEMPLATE = "{prompt}\n"  # what the model sees before the answer it is trained on


def prepare(
    data: LoadedData,
    split: str,
    tokenizer: Any = None,
    *,
    max_length: int | None = None,
    image_size: int | None = None,
    patch_size: int = 4,
    channels: int = 1,
) -> Examples:
    """Examples of one split of ``data``, of the kind its task needs.

    ``tokenizer`` is a transformers tokenizer (not needed for images); ``max_length`` truncates to that many tokens,
    special ones included. Raises ``DataError`` when the split is missing or the tokenizer does not fit.
    """
    if split not in data.splits:
        raise DataError(f"split={split!r}: {data.name} has the splits {', '.join(data.splits)}")
    rows = data.splits[split]
    if data.task == "image-classification":
        return images(
            rows,
            data.input_columns[0],
            str(data.label_column),
            image_size=image_size,
            patch_size=patch_size,
            channels=channels,
        )
    if tokenizer is None:
        raise DataError(f"tokenizer is missing; task {data.task} needs one")
    if data.task == "causal-lm":
        return _language(rows, data.input_columns, tokenizer, max_length, data.places.get(split) or Places())
    return tokenize(
        rows,
        data.input_columns,
        str(data.label_column),
        tokenizer,
        max_length=max_length,
        regression=data.task == "regression",
    )


def tokenize(
    rows: Dataset,
    input_columns: Sequence[str],
    label_column: str,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    regression: bool = False,
) -> TokenizedDataset:
    """Tokenise one text column or a pair of them. Pairs are truncated from their longer member first.

    ``max_length`` left out means the tokenizer's own limit, where it has one.
    """
    if max_length is None and tokenizer.model_max_length < _NO_LIMIT:
        max_length = tokenizer.model_max_length
    encoded = tokenizer(
        *(column_values(rows, column) for column in input_columns),
        truncation=max_length is not None,
        max_length=max_length,
        return_attention_mask=False,
    )
    ids = encoded["input_ids"]
    empty = [row for row, tokens in enumerate(ids) if not len(tokens)]
    if empty:
        raise DataError(f"columns {list(input_columns)}: row {empty[0]} has no tokens under this tokenizer; remove it")
    types = encoded["token_type_ids"] if "token_type_ids" in tokenizer.model_input_names else None
    return TokenizedDataset(
        Ragged(ids),
        np.asarray(column_values(rows, label_column), dtype=np.float32 if regression else np.int64),
        pad_token_of(tokenizer),
        Ragged(types, np.int8) if types is not None else None,
    )


def _language(
    rows: Dataset, columns: Sequence[str], tokenizer: Any, max_length: int | None, places: Places
) -> CausalDataset:
    """Prompts and answers, conversations or plain texts, whichever the columns hold."""
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token, which every sample ends in; choose another model, or save its "
            "tokenizer with eos_token set and the model in a folder, and give that"
        )
    form = form_of(rows, columns)
    if form == "prompts":
        return tokenize_causal(rows, columns, tokenizer, max_length, places)
    if form == "conversations":
        return tokenize_conversations(rows, columns[0], tokenizer, pad_token_of(tokenizer), max_length, places)
    return tokenize_texts(rows, columns[0], tokenizer, max_length)


def tokenize_texts(rows: Dataset, column: str, tokenizer: Any, max_length: int | None) -> CausalDataset:
    """Plain texts, every token but the first of which is learned; what does not fit ``max_length`` is cut from the end.

    A text that fits ends in the end-of-sequence token.
    """
    end, sequences = tokenizer.eos_token_id, []
    for ids in encode_prompts(column_values(rows, column), tokenizer, "{prompt}"):
        sequences.append([*ids, end][:max_length])
    return CausalDataset(Ragged(sequences), np.zeros(len(sequences), dtype=np.int64), pad_token_of(tokenizer))


def tokenize_causal(
    rows: Dataset, input_columns: Sequence[str], tokenizer: Any, max_length: int | None, places: Places
) -> CausalDataset:
    """Prompt and answer as one sequence that ends in the end-of-sequence token.

    Prompt and answer are tokenised apart, so that their border is the same at generation. What does not fit
    ``max_length`` is cut from the front of the prompt, behind the token that begins every sequence of models that have
    one; an answer that does not fit by itself raises ``DataError``.
    """
    prompt_column, answer_column = input_columns
    end = tokenizer.eos_token_id
    prompts = encode_prompts(column_values(rows, prompt_column), tokenizer)
    answers = tokenizer(column_values(rows, answer_column), add_special_tokens=False, return_attention_mask=False)
    sequences, starts = [], []
    for row, (prompt, answer) in enumerate(zip(prompts, answers["input_ids"], strict=True)):
        answer = [*answer, end]
        room = len(prompt) if max_length is None else max_length - len(answer)
        if room < 1:
            raise DataError(
                f"column {answer_column!r}, {places([row])}: the answer alone has {len(answer)} tokens, which leaves "
                f"no room for a prompt in max_length={max_length}; raise max_length or shorten the answer"
            )
        prompt = without_front(prompt, room, tokenizer)
        sequences.append([*prompt, *answer])
        starts.append(len(prompt))
    return CausalDataset(Ragged(sequences), np.asarray(starts, dtype=np.int64), pad_token_of(tokenizer))


def encode_prompts(prompts: Iterable[str], tokenizer: Any, template: str = DEFAULT_TEMPLATE) -> list[list[int]]:
    """Token numbers of each prompt in the template, with the tokenizer's opening tokens and without a closing one."""
    if "{prompt}" not in template:
        raise DataError(f"prompt_template={template!r} must contain {{prompt}}")
    texts = [template.replace("{prompt}", text) for text in prompts]
    encoded = tokenizer(texts, return_attention_mask=False)["input_ids"]
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def without_front(prompt: list[int], room: int, tokenizer: Any) -> list[int]:
    """The last ``room`` token numbers of a prompt, of which one that begins every sequence stays the first."""
    opening = 1 if len(prompt) > room > 1 and prompt[0] == tokenizer.bos_token_id else 0
    return [*prompt[:opening], *prompt[opening - room :]]


def images(
    rows: Dataset,
    image_column: str,
    label_column: str,
    *,
    image_size: int | None = None,
    patch_size: int = 4,
    channels: int = 1,
) -> ImageDataset:
    """Images as uint8 arrays [channels, size, size], from arrays [H, W(, 3)] or PIL images.

    ``image_size`` resizes (bilinear); left out, all images must agree. ``channels`` is 1 (grey) or 3.
    """
    import datasets
    from PIL import Image

    mode = {1: "L", 3: "RGB"}.get(channels)
    if mode is None:
        raise DataError(f"channels={channels}: must be 1 (grey) or 3 (colour)")
    of_files = isinstance(rows.features[image_column], datasets.Image)
    pixels: np.ndarray = np.empty(0, dtype=np.uint8)
    for row, value in enumerate((rows if of_files else rows.with_format("numpy"))[image_column]):
        image = value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value, dtype=np.uint8))
        image = image.convert(mode)
        if image_size is not None and image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        array = np.asarray(image, dtype=np.uint8).reshape(*image.size[::-1], channels).transpose(2, 0, 1)
        if row == 0:
            pixels = np.empty((len(rows), *array.shape), dtype=np.uint8)
        if array.shape != pixels.shape[1:]:
            raise DataError(f"column {image_column!r} holds images of several sizes; give image_size")
        pixels[row] = array
    height, width = pixels.shape[2:]
    if height % patch_size or width % patch_size:
        raise DataError(
            f"patch_size={patch_size} does not divide images of {height} x {width}; choose another or image_size"
        )
    tokens = (height // patch_size) * (width // patch_size) + 1
    return ImageDataset(pixels, np.asarray(column_values(rows, label_column), dtype=np.int64), tokens)


def pad_token_of(tokenizer: Any) -> int:
    """The tokenizer's padding token, or its end-of-sequence token where it has none (masked out either way)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise DataError(
        "the tokenizer has neither a padding nor an end-of-sequence token; choose another model, or save its tokenizer "
        "with pad_token set and the model in a folder, and give that"
    )
