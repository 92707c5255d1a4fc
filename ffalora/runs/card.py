"""The model card of an exported adapter: how to use it, what is promised, what it reached, what it is for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ..adapters import CheckpointError
from ..files.atomic import write_atomically
from ..privacy.sealed import DIGEST, SALT
from .bundle import Bundle, trained_columns
from .files import PARTITION, PROMISE, STATEMENT, RunFiles
from .folder import ENVIRONMENT, LEDGERS, SUMMARY
from .intervals import SHARES, share_interval

_PIPELINES = {
    "classification": "text-classification",
    "regression": "text-classification",
    "causal-lm": "text-generation",
    "image-classification": "image-classification",
}
_CLASSES = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "causal-lm": "ForCausalLM",
    "image-classification": "ForImageClassification",
}


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, what code calls it, whether merged, where others find the base model, and the names
    of the inputs of its ONNX file.
    """

    folder: Path
    name: str
    is_merged: bool
    base: str
    is_base_local: bool
    onnx_inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """What a run's folder says of it, as its files hold it; each is empty where there is none.

    Attributes:
        digests: by client, of the ledger that the run left, where random bits keep it from telling of the data.
    """

    summary: dict[str, Any]
    promise: dict[str, Any]
    statement: str
    environment: dict[str, Any]
    clients: list[dict[str, Any]]
    digests: dict[str, str]

    @classmethod
    def of(cls, run: Path) -> Told:
        """Reads the folder.

        Raises:
            CheckpointError: a file is damaged, so that a card would say less than the truth, or something else.
        """
        files = RunFiles(run)
        told = cls(
            files.json(SUMMARY, {}),
            files.json(PROMISE, {}),
            files.text(STATEMENT).strip(),
            files.json(ENVIRONMENT, {}),
            files.json(PARTITION, []),
            _digests(run / LEDGERS),
        )
        if files.unreadable:
            raise CheckpointError(
                f"{run} has damaged files, of which a card would tell: {', '.join(files.unreadable)}; put copies in "
                "their place, or export the adapter's folder alone, moved elsewhere"
            )
        return told


def write_card(told: Told, made: Exported, bundle: Bundle, with_metrics: bool) -> None:
    """Writes ``README.md`` into the exported folder, from what the run's folder says."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ffalora", "runs"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = as_text
    summary, config = told.summary, bundle.config
    rows = (summary.get("evaluated") or {}).get("rows") if with_metrics else None
    kind = "A model" if made.is_merged else "An adapter"
    text = environment.get_template("card.md").render(
        library="transformers" if made.is_merged else "peft",
        base=json.dumps(made.base, ensure_ascii=False),
        relation="finetune" if made.is_merged else "adapter",
        pipeline=_PIPELINES[config.data.task],
        tags=["ffalora", "lora", "differential-privacy", "federated-learning"],
        title=_title(bundle),
        about=f"{kind} of {made.base}, fine-tuned with [ffalora]: {_answers(bundle)}.".replace("[ffalora]", "ffalora"),
        code=_code(made, bundle),
        note=_note(made, bundle),
        promise=_promise(told.promise),
        statement=told.statement or "no statement came with this adapter",
        digests=told.digests or {"no ledger": "–"},
        rows=f"{rows} rows of the {config.data.evaluate_on} split"
        + (", by which it was chosen among several runs (others will show less)" if config.privacy.trials > 1 else ""),
        metrics=[_metric(name, value, rows) for name, value in summary.get("metrics", {}).items()] if rows else [],
        baselines=summary.get("baselines") or [],
        training=_training(told, bundle),
        inputs="images" if config.data.task == "image-classification" else "texts",
        unit=config.privacy.unit if config.privacy.unit != "none" else "sample",
    )
    write_atomically(made.folder / "README.md", text.encode())


def _title(bundle: Bundle) -> str:
    """The data's name without its folder, and what is told of it."""
    names = bundle.label_names or []
    shown = f": {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else ""
    return f"{Path(bundle.trained_on).stem}{shown}"


def _answers(bundle: Bundle) -> str:
    if bundle.label_names:
        return f"it tells {len(bundle.label_names)} classes apart"
    return "it answers with a number" if bundle.config.data.task == "regression" else "it continues prompts"


def _code(made: Exported, bundle: Bundle) -> str:
    folder, base = json.dumps(made.name), json.dumps(made.base)
    kind = "AutoModel" + _CLASSES[bundle.config.data.task]
    is_image = bundle.config.data.task == "image-classification"
    trusted = ", trust_remote_code=True" if bundle.loaded.root else ""
    tokenizer = [] if is_image else [f"tokenizer = AutoTokenizer.from_pretrained({folder}{trusted})"]
    lines = [f"from transformers import {kind}{', AutoTokenizer' if tokenizer else ''}", ""]
    if made.is_merged or bundle.loaded.root:
        lines.append(f"model = {kind}.from_pretrained({folder}{trusted})")
    else:
        labels = f", num_labels={len(bundle.label_names or [0])}" if kind != "AutoModelForCausalLM" else ""
        sizes = ", ignore_mismatched_sizes=True" if is_image else ""
        lines.insert(0, "from peft import PeftModel")
        lines.append(f"base = {kind}.from_pretrained({base}{labels}{sizes})")
        lines.append(f"model = PeftModel.from_pretrained(base, {folder})")
    lines += tokenizer
    if kind == "AutoModelForSequenceClassification":
        texts = '"a text"' if len(trained_columns(bundle)) < 2 else '"the first text", "the second"'
        lines.append(f'inputs = tokenizer({texts}, truncation=True, return_tensors="pt")')
        lines.append(f"print({_of_logits('model(**inputs).logits', bundle)})")
    return "\n".join(lines)


def _of_logits(logits: str, bundle: Bundle) -> str:
    """What turns logits into probabilities, or into numbers in their units."""
    if bundle.label_names:
        return f"{logits}.softmax(-1)"
    if bundle.config.data.label_range is None:
        return logits
    low, high = bundle.config.data.label_range
    return f"{logits} * {(high - low) / 2} + {(high + low) / 2}"


def _note(made: Exported, bundle: Bundle) -> str:
    said = []
    if bundle.loaded.root:
        said.append(
            "The head reads pooled states, for which transformers has no class: `modeling_pooled.py` is that class, "
            "which `trust_remote_code` runs."
        )
        if not made.is_merged:
            said.append(
                "The encoder with its adapter alone: `PeftModel.from_pretrained(AutoModel.from_pretrained("
                f'"{made.base}"), "{made.name}", subfolder="adapter")`.'
            )
    if made.is_base_local and not made.is_merged:
        said.append("The base model is a folder that this one does not hold; who has it elsewhere, writes where.")
    if made.onnx_inputs:
        inputs = ", ".join(f"`{name}`" for name in made.onnx_inputs)
        said.append(
            f"`model.onnx` is the same model for runtimes of ONNX; it takes {inputs} (int64, texts by tokens),"
            " and gives `logits`."
        )
    if bundle.config.data.label_range is not None:
        low, high = bundle.config.data.label_range
        said.append(f"Logits of -1 and 1 are the numbers {low:g} and {high:g}.")
    return " ".join(said) or "Nothing but the libraries named is needed."


def _promise(stated: dict[str, Any]) -> str:
    if not stated:
        return "**Nothing is promised**: no statement came with this model."
    if not stated["private"]:
        return "**Nothing is promised**: this model was trained without differential privacy."
    if stated.get("simulation"):
        return (
            "**Nothing is promised**: the noise of this simulation came from a seed, and who has the seed or the run's "
            "folder can subtract it."
        )
    return "Differential privacy, under the assumptions that the statement names:"


def _digests(ledgers: Path) -> dict[str, str]:
    found = {}
    for path in sorted(ledgers.glob("*.json")):
        try:
            values = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError):
            raise CheckpointError(f"{path} is damaged; put a copy in its place") from None
        found[str(values.get("label") or path.stem)] = values.get(DIGEST, "–") if SALT in values else "–"
    return found


def as_text(value: object) -> str:
    """Any text, such as a client's name, as Markdown that shows it on one line and in one cell of a table."""
    return re.sub(r"[\\`*\[\]|<>&]", r"\\\g<0>", " ".join(str(value).split()))


def _metric(name: str, value: float, rows: int) -> tuple[str, str, str]:
    low_high = "{:.3f} to {:.3f}".format(*share_interval(value, rows)) if name in SHARES else "–"
    return name, f"{value:.4f}", low_high


def _training(told: Told, bundle: Bundle) -> dict[str, Any]:
    config, versions = bundle.config, told.environment
    own, federation = config.adapter, config.federation
    packages = versions.get("packages", {})
    return {
        "method": f"{federation.strategy}, rank {own.rank}, alpha {own.alpha:g}",
        "clients": len(told.clients) or config.clients.count or 1,
        "rounds": f"{federation.rounds} of {federation.local_steps} local steps, batch {config.optimizer.batch_size}",
        "longest text": f"{config.data.max_length} tokens",
        "made with": f"ffalora {versions.get('ffalora', '')}, "
        + ", ".join(f"{name} {packages.get(name, '')}" for name in ("torch", "transformers")),
    }
