"""A finished adapter as a folder for whoever has transformers and PEFT, and nothing of ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..adapters.peft import CONFIG_FILE, OWN_FILE, WEIGHTS_FILE, checkpoint_names, head_tensors
from ..adapters.peft_plain import is_plain, plain_factors
from ..config import ConfigError
from ..data.asset_table import ASSETS
from . import modeling_pooled
from .bundle import HEAD_FILE, Bundle, load_bundle
from .card import Exported, Told, write_card
from .folder import adapter_folder
from .onnx_file import check_onnx, write_onnx

MODELLING = "modeling_pooled"
_AUTO = {
    "AutoConfig": f"{MODELLING}.PooledConfig",
    "AutoModelForSequenceClassification": f"{MODELLING}.PooledClassifier",
}


def export(
    run: str | Path,
    folder: str | Path,
    merged: bool = False,
    base: str | None = None,
    metrics: bool = True,
    name: str | None = None,
    onnx: bool = False,
) -> Exported:
    """Writes a run's adapter, or the base model merged with it, with its head, tokenizer and a model card.

    A head of the model's own class needs that class alone: PEFT's ``AutoPeftModel…`` takes the adapter, transformers'
    ``AutoModel…`` the merged model. A head on pooled states brings its class as a file, for ``trust_remote_code``; its
    adapter lies in the subfolder ``adapter``. All numbers are float32.

    Args:
        run: the run's folder, or its ``adapter``.
        folder: made; must not hold anything.
        merged: the whole model instead of the adapter alone.
        base: the base model's name for others, such as one of the hub (default: what the run calls it).
        metrics: put the run's metrics into the card; they are computed on private rows, without noise.
        name: what the card's code calls it (default: the folder's name).
        onnx: the merged model as ``model.onnx`` as well, for runtimes without torch (``pip install 'ffalora[onnx]'``).

    Raises:
        ConfigError: the folder holds something, PEFT has no format for the run's kind of adapter, or ONNX is asked for
            an adapter alone, of another task, or without its libraries.
        CheckpointError: there is no such adapter, or the run's folder is damaged.
    """
    run, folder = adapter_folder(run), Path(folder)
    told = Told.of(run.parent)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds something already; give the name of a new folder")
    if not merged and not (run / CONFIG_FILE).exists():
        raise ConfigError(
            f"{run}: PEFT has no format for this kind of adapter; export the merged model (--merged), which all "
            "but a bottleneck have"
        )
    if onnx and not merged:
        raise ConfigError("onnx is a format of whole models: export the merged model (--merged)")
    bundle = load_bundle(run, {"model.dtype": "float32", "device": "cpu"})
    if onnx:
        check_onnx(bundle.config.data.task)
    if merged:
        bundle.adapters.merge()
        bundle.adapters.detach()
    own = bundle.config.model.name
    found = ASSETS[own].hub if own in ASSETS else own
    made = Exported(
        folder, name or folder.name, merged, base or found, base is None and Path(own).expanduser().exists()
    )
    folder.mkdir(parents=True, exist_ok=True)
    if bundle.loaded.tokenizer is not None:
        bundle.loaded.tokenizer.model_max_length = bundle.config.data.max_length
        bundle.loaded.tokenizer.save_pretrained(folder)
    model = bundle.loaded.model
    if bundle.loaded.root:
        _write_pooled(bundle, model, run, made)
    elif merged:
        model.config.update(_label_names(bundle))
        model.save_pretrained(folder)
    else:
        _copy_adapter(run, folder, made.base, None, bundle)
    if onnx:
        made = replace(made, onnx_inputs=tuple(write_onnx(folder, bundle)))
    write_card(told, made, bundle, metrics)
    return made


def _write_pooled(bundle: Bundle, model: nn.Module, run: Path, made: Exported) -> None:
    """The classifier on pooled states: its class, its configuration, and its weights."""
    encoder: Any = model.get_submodule(bundle.loaded.root)
    depth = int(getattr(encoder.config, "num_hidden_layers", 1))
    source = {"encoder": encoder.config.to_dict()} if made.is_merged else {"base_model": made.base}
    config: dict[str, Any] = {
        "model_type": modeling_pooled.PooledConfig.model_type,
        "architectures": ["PooledClassifier"],
        "auto_map": _AUTO,
        "layers": list(getattr(model, "read", [depth])),
        "depth": depth,
        "hidden_size": encoder.config.hidden_size,
        "head_scale": bundle.config.model.head_scale,
        **source,
        **_label_names(bundle),
    }
    (made.folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
    shutil.copyfile(str(modeling_pooled.__file__), made.folder / f"{MODELLING}.py")
    head = {name: value.detach().float().contiguous() for name, value in head_tensors(model).items()}
    center = getattr(model, "center", torch.zeros(len(config["layers"]), encoder.config.hidden_size))
    head["center"] = center.detach().float().contiguous()
    if made.is_merged:
        head |= {f"encoder.{name}": value.contiguous() for name, value in encoder.state_dict().items()}
        save_file(head, made.folder / "model.safetensors", metadata={"format": "pt"})
    else:
        save_file(head, made.folder / HEAD_FILE, metadata={"format": "pt"})
        _copy_adapter(run, made.folder / "adapter", made.base, "FEATURE_EXTRACTION", bundle)


def _copy_adapter(run: Path, folder: Path, base: str, task_type: str | None, bundle: Bundle) -> None:
    """PEFT's two files, with a base model that others can find and, where it has none, a task; with one rank and one
    whole alpha for all layers, which every server reads.
    """
    folder.mkdir(exist_ok=True)
    config, own = (json.loads((run / name).read_text(encoding="utf-8")) for name in (CONFIG_FILE, OWN_FILE))
    config |= {"base_model_name_or_path": base, "task_type": config.get("task_type") or task_type}
    tensors = {name: value.float() for name, value in load_file(run / WEIGHTS_FILE).items()}
    if not is_plain(bundle.adapters.config):
        rank, factors = plain_factors(bundle.adapters.layers)
        one = {"use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
        config |= {**one, "r": rank, "lora_alpha": rank, "init_lora_weights": True}
        own |= {**one, "rank": rank, "alpha": rank, "init": "kaiming"}
        tensors |= checkpoint_names(factors, bundle.loaded.root)
    config["lora_alpha"] = int(config["lora_alpha"])  # 8.0 is refused by Ollama
    for name, values in ((CONFIG_FILE, config), (OWN_FILE, own)):
        written = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(written, encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _label_names(bundle: Bundle) -> Mapping[str, Any]:
    if bundle.label_names is None:
        return {"id2label": {0: "value"}, "label2id": {"value": 0}} if bundle.config.data.task == "regression" else {}
    return {
        "id2label": dict(enumerate(bundle.label_names)),
        "label2id": {name: number for number, name in enumerate(bundle.label_names)},
    }
