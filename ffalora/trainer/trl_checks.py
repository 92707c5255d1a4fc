"""What private trainers made of TRL's refuse alike: settings that mix samples, and collators that do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Samples that a collator is given together and one by one.
_COMPARED = 8


def with_adapters(model: Any, peft_config: Any) -> Any:
    """The model, or PEFT's of it where there is a ``peft_config``.

    Raises:
        ValueError: the model is a name.
    """
    if isinstance(model, str):
        raise ValueError(f"model={model!r} is a name; load it first, AutoModelForCausalLM.from_pretrained({model!r})")
    if peft_config is None:
        return model
    from peft import get_peft_model

    return get_peft_model(model, peft_config)


def problems_of(args: Any, others: Mapping[str, Any]) -> list[str]:
    """Every setting of any of TRL's trainers that would break the promise, and what to set instead."""
    problems = []
    if args.padding_free:
        problems.append("padding_free=True lays several samples into one row: set it to False")
    if args.router_aux_loss_coef:
        problems.append(f"router_aux_loss_coef={args.router_aux_loss_coef} is a loss of the whole batch: set it to 0")
    if args.activation_offloading:
        problems.append("activation_offloading=True is not taken by private steps: set it to False")
    if args.use_liger_kernel:
        problems.append("use_liger_kernel=True replaces the layers that adapters read: set it to False")
    if others.get("quantization_config") is not None:
        problems.append("quantization_config is for models that TRL loads: load the model with it")
    first = others.get("train_dataset")
    if first is not None and {"image", "images"} & set(getattr(first, "column_names", None) or ()):
        problems.append("train_dataset has images: only texts are supported")
    return problems


def check_lengths(lengths: Sequence[int], max_length: int, name: str, what: str) -> None:
    """ValueError where ``max_length`` would cut answers of a dataset.

    Args:
        lengths: tokens of each row, or of a pair's prompt with its longer answer.
        name: of the dataset; what: its samples are called, such as 'rows'.
    """
    long = [length for length in lengths if length > max_length]
    if long:
        raise ValueError(
            f"max_length={max_length} would cut answers in {len(long)} of {len(lengths)} {what} of the {name} dataset; "
            f"raise it to {max(long)}, the length of the longest, or shorten or leave out such {what}"
        )


def check_collator(collate: Callable[[list[Any]], Mapping[str, Any]], dataset: Any) -> None:
    """ValueError where a collator makes something else of a sample when others are beside it, padding apart."""
    rows = [dict(dataset[place]) for place in range(min(_COMPARED, len(dataset)))]
    together = collate([dict(row) for row in rows])
    for place, row in enumerate(rows):
        alone = collate([dict(row)])
        for name, whole in together.items():
            if not isinstance(whole, Tensor) or whole.dim() == 0 or len(whole) != len(rows):
                raise ValueError(
                    f"data_collator makes {name!r} of {len(rows)} samples into {_shape(whole)}: every tensor needs one "
                    "row a sample, that one sample's gradient is its own"
                )
            if not _same_but_padding(alone[name][0], whole[place]):
                raise ValueError(
                    f"data_collator makes another {name!r} of sample {place} when others are beside it: a sample's row "
                    "must be a function of that sample alone; use TRL's own collator, or one that only pads"
                )


def _same_but_padding(alone: Tensor, row: Tensor) -> bool:
    """Whether one row is the other, longer by one repeated value at one of its ends."""
    if alone.shape[1:] != row.shape[1:] or alone.dim() == 0:
        return torch.equal(alone, row)
    extra = len(row) - len(alone)
    if extra < 0:
        return False
    for body, padding in ((row[: len(alone)], row[len(alone) :]), (row[extra:], row[:extra])):
        if torch.equal(body, alone) and bool((padding == padding[:1]).all()):
            return True
    return False


def _shape(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
