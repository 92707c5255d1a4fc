"""PEFT's ``LoraConfig``, key by key: what is taken over, what says nothing about the adapter, and what is refused.

The same table answers for checkpoints, for configurations (``AdapterConfig.from_peft``), for live PEFT models
(``convert``) and for the documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .names import OTHER_NAMES

#: PEFT's name and ours.
HONOURED = {
    **OTHER_NAMES["adapter"],
    "target_modules": "target_modules",
    "exclude_modules": "exclude_modules",
    "layers_to_transform": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "use_rslora": "use_rslora",
    "modules_to_save": "head",
}
INITS = {
    True: "kaiming",
    None: "kaiming",
    "gaussian": "gaussian",
    "orthogonal": "orthonormal",
    "pissa": "pissa",
    "olora": "olora",
}
#: Inits whose factors are computed from data.
DATA_INITS = ("eva", "corda", "lora_ga")

NEUTRAL = {
    "peft_type": "must be LORA",
    "task_type": "written, not needed to read",
    "auto_mapping": "says how to make the base model, which is given here",
    "peft_version": "says who wrote the file",
    "base_model_name_or_path": "the base model is given",
    "revision": "the base model is given",
    "inference_mode": "says what the writer did with the adapter",
    "fan_in_fan_out": "found from the layer (Conv1D)",
    "runtime_config": "PEFT's offloading",
    "megatron_core": "used with megatron_config only",
    "loftq_config": "used with init_lora_weights='loftq' only",
    "eva_config": "used with init_lora_weights='eva' only",
    "corda_config": "used with init_lora_weights='corda' only",
    "lora_ga_config": "used with init_lora_weights='lora_ga' only",
    "qalora_group_size": "used with use_qalora only",
}

REFUSED = {
    "use_dora": "DoRA's trained magnitudes divide by a norm of the merged weight: not linear in what is trained",
    "lora_bias": "a bias inside the adapter has no place in a state of factors",
    "bias": "trained biases of the base belong to no adapter; convert() trains them without privacy",
    "use_qalora": "QALoRA pools the input of quantisation groups",
    "use_bdlora": "block-diagonal factors",
    "alora_invocation_tokens": "aLoRA switches adapters inside a sequence",
    "arrow_config": "Arrow routes tokens between adapters",
    "kasa_config": "KaSA trains singular values and changes the base weight",
    "velora_config": "VeLoRA compresses the saved input, so its gradients are approximations",
    "monteclora_config": "MonteCLoRA samples its factors",
    "layer_replication": "replicated layers share weights under names that the base model does not have",
    "megatron_config": "Megatron's sharded layers",
    "target_parameters": "adapters on bare parameters (fused experts) have no per-sample gradients",
    "trainable_token_indices": "trained rows of the embedding",
    "ensure_weight_tying": "adapters tied between embedding and output layer",
}


def to_own_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and values of an ``adapter_config.json`` in our names.

    Raises:
        ValueError: names every key that cannot be honoured, its value, and why.
    """
    if (kind := config.get("peft_type", "LORA")) not in ("LORA", None):
        raise ValueError(f"peft_type={kind!r}; only LORA can be taken over")
    problems = refusals(config)
    if problems:
        raise ValueError("; ".join(problems))
    values = {ours: config[theirs] for theirs, ours in HONOURED.items() if config.get(theirs) is not None}
    values.pop("head", None)
    values["init"] = init_of(config)
    indices = values.get("layers_to_transform")
    values["layers_to_transform"] = [indices] if isinstance(indices, int) else indices or None
    for key in ("target_modules", "exclude_modules"):
        if isinstance(values.get(key), (set, tuple)):
            values[key] = sorted(values[key])
    return values


def without_neutral(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` without PEFT's keys that say nothing about the adapter, or that ask for nothing.

    Raises:
        ValueError: one that asks for something we do not do, or that another key says here.
    """
    if saved := values.get("modules_to_save"):
        raise ValueError(f"modules_to_save={saved!r}: set head to 'trained', which trains the task head")
    theirs = {key: value for key, value in values.items() if key in (*NEUTRAL, *REFUSED, "modules_to_save")}
    if problems := refusals(theirs):
        raise ValueError("; ".join(problems))
    return {key: value for key, value in values.items() if key not in theirs}


def refusals(config: Mapping[str, Any]) -> list[str]:
    """One sentence for each key that asks for something we do not do."""
    problems = []
    for key, value in config.items():
        if key in HONOURED or key in NEUTRAL or not value or (key == "bias" and value == "none"):
            continue
        if key in REFUSED:
            problems.append(f"{key}={value!r} is not supported: {REFUSED[key]}")
        else:
            problems.append(f"{key}={value!r} is not a key this version knows, so it cannot be honoured")
    return problems


def own_init(value: Any) -> Any:
    """Our name of a value of ``init_lora_weights``; the randomised PiSSA is taken as the exact one. A value without
    one comes back as it is.
    """
    if isinstance(value, str) and value.startswith("pissa"):
        return "pissa"
    if isinstance(value, str) and value.lower() == "olora":
        return "olora"
    if value in ("loftq", "mica", *DATA_INITS):
        raise ValueError(
            f"init_lora_weights={value!r} is not supported: it changes the base weight or the trained factor in a way "
            "that cannot be made again from the checkpoint; merge the adapter with PEFT and attach a new one"
        )
    return value if isinstance(value, (list, dict)) else INITS.get(value, value)


def init_of(config: Mapping[str, Any]) -> str:
    """Our name of a checkpoint's ``init_lora_weights``.

    An init whose values come with the checkpoint and that leaves the base weight alone is as good as any; ``False``
    (PEFT's test switch) leaves both factors random, which a checkpoint overwrites.
    """
    name = own_init(config.get("init_lora_weights", True))
    return name if name in INITS.values() else "kaiming"


def to_peft(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of PEFT's ``LoraConfig`` that the values of an adapter's configuration fix."""
    names = {ours: theirs for theirs, ours in HONOURED.items()}
    skipped = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init", "head")
    theirs = {names[k]: v for k, v in values.items() if k in names and k not in skipped}
    init, alpha = values["init"], values["alpha"]
    theirs["lora_alpha"] = int(alpha) if alpha == int(alpha) else alpha  # 8.0 is refused by Ollama
    return {**theirs, "init_lora_weights": init if init in ("pissa", "olora") else True, "bias": "none"}
