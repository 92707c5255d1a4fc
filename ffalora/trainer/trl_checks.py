"""What private trainers made of TRL's refuse alike: settings that mix samples, and lengths that cut answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_adapters(model: Any, peft_config: Any, seed: int) -> Any:
    """The model, or PEFT's of it where there is a ``peft_config``: with the random factors of ``seed``, as TRL makes
    them.

    Raises:
        ValueError: the model is a name.
    """
    if isinstance(model, str):
        raise ValueError(f"model={model!r} is a name; load it first, AutoModelForCausalLM.from_pretrained({model!r})")
    if peft_config is None:
        return model
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)
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
