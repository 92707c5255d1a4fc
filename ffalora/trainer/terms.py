"""What a private training with the Trainer promises, what it refuses, and which per-sample loss a model has."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn
from transformers import Trainer

from ..config.messages import near_keys
from ..config.names import PRIVACY_NAMES, takes_names
from ..data.tasks import Losses, causal_losses, classification_losses, regression_losses
from ..privacy.clipping import positive_norm

PUSHES = (
    "the folder that would go to the hub holds the ledger with a hash of the data, by which who knows all other "
    "samples can tell whether one was there; push the adapter alone, model.push_to_hub(…)"
)


@takes_names(PRIVACY_NAMES)
@dataclass(frozen=True)
class PrivacyArguments:
    """What is promised, in Opacus's words; ``epsilon`` and ``target_delta`` are other names of their fields.

    Attributes:
        target_epsilon: ε that the whole run may spend; or give ``noise_multiplier``.
        noise_multiplier: σ.
        delta: δ; at most one over the number of samples makes sense.
        max_grad_norm: clipping norm C of a sample's gradient (``TrainingArguments.max_grad_norm`` is not used).
        accountant: 'pld', 'prv' or 'rdp'.
        noise: 'secure' comes from the operating system, for a model that may leave this machine; 'seeded', for
            simulations, can be reproduced, and subtracted by whoever knows the seed (transformers' default is 42).
        prior: what earlier runs spent on the same data: ledgers' files, ``privacy.json`` of runs, or their folders.
        ledger: name or folder of the data set's ledger; None takes 'trainer', which finds by their records the runs
            that shared some. Only secure runs are charged there.
        check_gradients: compare the first gradients of samples with ordinary autograd's, each sample alone.
        cuda_graphs: on a GPU, record passes and replay them, where the model drops nothing out.
    """

    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float = 1e-5
    max_grad_norm: float = 1.0
    accountant: Literal["pld", "prv", "rdp"] = "pld"
    noise: Literal["seeded", "secure"] = "secure"
    prior: str | Path | Sequence[str | Path] = ()
    ledger: str | None = None
    check_gradients: bool = True
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                f"give exactly one of target_epsilon ({self.target_epsilon}) and noise_multiplier "
                f"({self.noise_multiplier})"
            )
        positive_norm(self.max_grad_norm)

    @property
    def earlier(self) -> Sequence[str | Path]:
        """``prior`` as a list."""
        return [self.prior] if isinstance(self.prior, str | Path) else self.prior


def promised(privacy: PrivacyArguments | None, others: dict[str, Any], trainer: type[Trainer]) -> PrivacyArguments:
    """What is promised: ``privacy``, or the arguments of its fields, which are taken out of ``others``.

    Raises:
        ValueError: both are given, or neither.
        TypeError: neither ``trainer`` nor a trainer that it is made of has an argument of such a name.
    """
    names = [*(field.name for field in fields(PrivacyArguments)), *PRIVACY_NAMES]
    own = (inspect.signature(each).parameters for each in trainer.__mro__ if issubclass(each, Trainer))
    known = [*names, *(name for parameters in own for name in parameters)]
    unknown = [name for name in others if name not in known]
    if unknown:
        raise TypeError(f"{trainer.__name__}({unknown[0]}=…): " + _no_such_argument(unknown[0], known))
    terms = {name: others.pop(name) for name in names if name in others}
    if privacy is not None and terms:
        name, value = next(iter(terms.items()))
        raise ValueError(
            f"{name}={value!r} and privacy are both given; put {name} into PrivacyArguments, or leave it out"
        )
    if privacy is None and not terms:
        raise ValueError(
            "PrivateTrainer is not told what it promises; give privacy=PrivacyArguments(…), or target_epsilon=…"
        )
    return privacy or PrivacyArguments(**terms)


def _no_such_argument(name: str, known: Sequence[str]) -> str:
    near = near_keys(name, known)
    return "there is no such argument" + (f"; did you mean {' or '.join(near)}?" if near else "")


def default_losses(model: nn.Module) -> Losses:
    """Per-sample losses by the kind of task that the model's class names.

    Raises:
        ValueError: a class whose loss is not known; pass ``losses``.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name, config = type(inner).__name__, getattr(inner, "config", None)
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return causal_losses
    if name.endswith(("ForSequenceClassification", "ForImageClassification")):
        kind = getattr(config, "problem_type", None)
        if kind in (None, "single_label_classification") and getattr(config, "num_labels", 2) > 1:
            return classification_losses
        if kind in (None, "regression"):
            return regression_losses
    raise ValueError(f"no per-sample loss is known for a {name}; pass losses=(outputs, labels) -> [S]")


def check_arguments(args: Any, others: dict[str, Any]) -> None:
    """ValueError names every argument that would break the promise."""
    problems = []
    if args.n_gpu > 1:
        problems.append(
            f"{args.n_gpu} devices in one process (DataParallel): start a process for each, by torchrun or accelerate "
            "launch, or show it one (CUDA_VISIBLE_DEVICES)"
        )
    if args.fp16 or getattr(args, "mixed_precision", None) == "fp16":  # by accelerate launch, which fp16 does not show
        problems.append(
            "fp16 (fp16=True, accelerate launch --mixed_precision fp16) scales losses, and with them per-sample "
            "gradients: use bf16"
        )
    for name in ("fp16_full_eval", "bf16_full_eval"):
        if getattr(args, name):
            problems.append(
                f"{name}=True: an evaluation would leave the trained tensors rounded, which are float32: leave it out; "
                "bf16=True computes evaluations in bf16"
            )
    if args.neftune_noise_alpha is not None:
        problems.append(
            f"neftune_noise_alpha={args.neftune_noise_alpha}: its noise belongs to positions in the batch, and is "
            "drawn anew for everybody where one sample is missing: leave it out"
        )
    if args.label_smoothing_factor:
        problems.append(
            f"label_smoothing_factor={args.label_smoothing_factor}: pass a per-sample loss (losses=) instead"
        )
    if args.auto_find_batch_size:
        problems.append(
            "auto_find_batch_size=True takes steps again with the samples that were drawn for them: leave it out and "
            "lower per_device_train_batch_size, with more gradient_accumulation_steps"
        )
    if args.push_to_hub:
        problems.append(f"push_to_hub=True: {PUSHES}")
    if others.get("compute_loss_func") is not None:
        problems.append("compute_loss_func sees the whole batch: pass a per-sample loss (losses=) instead")
    dataset = others.get("train_dataset")
    if dataset is not None and not hasattr(dataset, "__len__"):
        problems.append("train_dataset has no length: Poisson sampling needs one")
    if problems:
        raise ValueError("PrivateTrainer cannot keep its promise with " + "; ".join(problems))


def check_distribution(accelerator: Any) -> None:
    """Processes may share a step where each holds the whole model.

    Raises:
        ValueError: the model is to be cut, by a plugin of accelerate that it names.
    """
    kind = accelerator.distributed_type.value
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise ValueError(
            f"PrivateTrainer cannot keep its promise with {kind}: a sample's gradient is clipped where it is whole, so "
            "each process must hold the whole model; use plain data parallelism (accelerate launch --multi_gpu)"
        )


def feature_digests(dataset: Any, labels: Sequence[str]) -> list[bytes]:
    """SHA-256 of what each sample of a data set holds besides its labels: the record is known again by it.

    Of a ``datasets.Dataset`` the stored rows count, whatever is computed of them where they are read. Where items of
    another data set differ from one reading to the next (random augmentation), one digest stands for all such items of
    all data sets, so that runs on them compose.
    """
    is_stored = hasattr(dataset, "with_format")
    rows = dataset.with_format(None) if is_stored else dataset
    found = [_digest(rows[i], labels) for i in range(len(rows))]
    if is_stored or found == [_digest(rows[i], labels) for i in range(len(rows))]:
        return found
    return [hashlib.sha256(b"items that differ between readings").digest()]


def _digest(item: Any, labels: Sequence[str]) -> bytes:
    features = {name: value for name, value in dict(item).items() if name not in labels}
    content = repr(sorted((name, _content(value)) for name, value in features.items()))
    return hashlib.sha256(content.encode()).digest()


def _content(value: Any) -> Any:
    """What a value holds, of which ``repr`` says the same in every process; of an object that keeps it to itself (a
    decoder of sound), the kind alone, so that records that differ in it alone count as one.
    """
    if isinstance(value, Mapping):
        return {name: _content(part) for name, part in value.items()}
    if isinstance(value, list | tuple) and not all(map(np.isscalar, value)):
        return [_content(part) for part in value]
    held = np.asarray(value).tolist()
    return held if " at 0x" not in repr(held) or isinstance(held, str | list) else type(held).__qualname__
