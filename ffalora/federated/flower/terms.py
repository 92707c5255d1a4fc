"""What server and sites must agree on before anything is trained: model and head, frozen factors, classes, data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ...config import ConfigError
from ..experiment import Experiment

_WORDS = {
    "frozen": ("its frozen factors differ", "give both the same adapter.seed, adapter.init, ranks and model"),
    "model": ("its model or head differs", "put the same files where model.name says, and give both the same seed"),
    "labels": (
        "its classes differ",
        "say which is which in the site's policy (labels: {HERE: THERE})",
    ),
    "task": ("its task differs", "give both the same data.task"),
    "label_range": ("its range of labels differs", "give both the same data.label_range, in the same units"),
    "inputs": ("its number of text columns differs", "name as many columns in data.text as the federation has"),
}


@dataclass(frozen=True)
class Terms:
    """What is the same at all participants.

    Attributes:
        model: digest of the base weights and the head, rounded to bfloat16, so that sites may differ in number format.
        frozen: digest of the frozen factors.
        labels: names of the classes, in the order of the head's rows; None for other tasks.
        task: ``data.task``.
        inputs: number of text columns of a sample.
        label_range: ``data.label_range``.
    """

    model: str
    frozen: str
    labels: tuple[str, ...] | None
    task: str
    inputs: int
    label_range: tuple[float, ...] | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> Terms:
        """The terms of an experiment that has not begun."""
        names, label_range = experiment.data.label_names, experiment.config.data.label_range
        return cls(
            model=model_digest(experiment.loaded.model),
            frozen=experiment.strategy.wire.fingerprint(),
            labels=None if names is None else tuple(names),
            task=experiment.data.task,
            inputs=len(experiment.data.input_columns),
            label_range=None if label_range is None else tuple(label_range),
        )

    @classmethod
    def from_text(cls, text: str) -> Terms:
        """What :meth:`to_text` wrote.

        Raises:
            ConfigError: something else; server and site are of different versions.
        """
        try:
            values = json.loads(text)
            for name in ("labels", "label_range"):
                values[name] = None if values[name] is None else tuple(values[name])
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"the server's terms cannot be read ({error}); install the same version on both"
            ) from None

    def to_text(self) -> str:
        """As JSON, for a message."""
        return json.dumps(asdict(self))

    def check(self, own: Terms, client: int) -> None:
        """Refuses a site whose own terms are not these.

        Raises:
            ConfigError: says what differs, and the remedy.
        """
        for name, (said, remedy) in _WORDS.items():
            theirs, here = getattr(self, name), getattr(own, name)
            if theirs != here:
                shown = "" if name in ("frozen", "model") else f" (here {_shown(here)}, there {_shown(theirs)})"
                raise ConfigError(
                    f"client {client}: {said} from the server's{shown}, so averages would mean nothing; {remedy}"
                )


def model_digest(model: nn.Module) -> str:
    """SHA-256 of every number of the model that is not an adapter's: floating ones rounded to bfloat16."""
    digest = hashlib.sha256()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in sorted(tensors, key=lambda named: named[0]):
        if "lora_" not in name:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor.detach()))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    whole = tensor.dequantize() if type(tensor) not in (Tensor, nn.Parameter) else tensor
    rounded = whole.to(torch.bfloat16) if whole.is_floating_point() else whole
    return rounded.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
