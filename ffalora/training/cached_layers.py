"""The frozen layers below the first adapted one, computed once: what they make of a sample never changes in a run.

All samples pass through them before the first round, and the states of their tokens are kept in one table. The model
then begins at the first adapted layer: its embeddings become a look-up in the table, the layers below it pass on what
they are given, and the token numbers of a batch become rows of the table. Names of modules stay as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..adapters import Adapters
from ..config import Config, ConfigError
from ..data.examples import Examples, TokenizedDataset, fingerprint
from ..models import KeptMeans, MeanPooledClassifier, mean_of_real
from .batches import physical_batches
from .independence import SamplesNotIndependent, check_independence
from .stand_ins import CachedExamples, PassOn, Rows

#: Most bytes that 'auto' spends on the table. A constant: what is free changes between a run and its continuation.
AUTO_BYTES = 2 * 2**30
_TOKENS, _PROBED, _COMPARED = 8192, 64, 8
#: The last table, by the digest of all that it was computed from: methods and seeds of one comparison share it.
_kept: dict[str, _Table] = {}


@dataclass(frozen=True)
class CachedLayers:
    """What a run works with.

    Attributes:
        count: layers that are computed no more; 0 where nothing is cached.
        train, evaluation: examples as the model takes them now. What they hold is unchanged.
    """

    count: int
    train: Examples
    evaluation: Examples


class _NotCacheable(Exception):
    """Why a model or a run cannot begin at a later layer."""


def cache_frozen_layers(
    config: Config,
    model: nn.Module,
    adapters: Adapters,
    train: Examples,
    evaluation: Examples,
    clients: int,
    device: torch.device,
) -> CachedLayers:
    """Passes all samples through the frozen layers and lets ``model`` begin behind them, where the configuration and
    the model allow it; changes nothing elsewhere.

    Args:
        config: ``model.cache_frozen_layers`` says whether.
        model: with ``adapters`` attached, in evaluation mode, on ``device``.
        train: the training samples, of all clients; evaluation: those that metrics are computed on.
        clients: how many there are.
        device: where the table is kept.

    Raises:
        ConfigError: 'always', but it cannot be.
        SamplesNotIndependent: samples are protected, and the model mixes them.
    """
    choice = config.model.cache_frozen_layers
    if choice == "never":
        return CachedLayers(0, train, evaluation)
    try:
        bottom = _find_bottom(model, adapters)
        if config.data.augment != "none":
            raise _NotCacheable("data.augment changes samples in every step")
        if not isinstance(train, TokenizedDataset) or not isinstance(evaluation, TokenizedDataset):
            raise _NotCacheable("its samples are not classified texts")
        if choice == "auto":
            _check_worth(config, model, train, evaluation, clients)
        _check_apart(model, train, device, private=config.privacy.at_clients)
        return _cache(model, bottom, train, evaluation, config.data.max_evaluation_samples, device)
    except _NotCacheable as reason:
        if choice == "always":
            raise ConfigError(
                f"model.cache_frozen_layers='always' cannot be for {config.model.name}: {reason}; set it to auto"
            ) from None
        return CachedLayers(0, train, evaluation)


@dataclass(frozen=True)
class _Table:
    """What the frozen layers make of all samples.

    Attributes:
        states: ``[rows,D]``, of each token behind the last of them.
        means: float32 ``[n, layers, D]``, of each sample, at those layers whose means the head reads.
    """

    states: Tensor
    means: Tensor


@dataclass(frozen=True)
class _Bottom:
    """The part of an encoder that is frozen from its first layer on.

    Attributes:
        encoder: module with ``embeddings``.
        layers: all its layers; the first ``count`` of them hold nothing that is trained.
    """

    encoder: nn.Module
    layers: nn.ModuleList
    count: int

    @property
    def last(self) -> nn.Module:
        """The last frozen layer."""
        return self.layers[self.count - 1]


class _Reached(Exception):
    """Ends a forward pass that need not go on; holds what the last layer wanted gave."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _find_bottom(model: nn.Module, adapters: Adapters) -> _Bottom:
    trained = {id(layer.module) for layer in adapters.trained_layers()}

    def is_trained(part: nn.Module) -> bool:
        return any(id(module) in trained for module in part.modules()) or any(
            parameter.requires_grad for parameter in part.parameters()
        )

    for encoder in model.modules():
        embeddings, layers = (getattr(encoder, "embeddings", None), getattr(encoder, "encoder", None))
        layers = getattr(layers, "layer", None)
        if isinstance(embeddings, nn.Module) and isinstance(layers, nn.ModuleList):
            count = next((i for i, layer in enumerate(layers) if is_trained(layer)), len(layers))
            if count == 0 or is_trained(embeddings):
                raise _NotCacheable("training begins in its first layer (see adapter.layers_to_transform)")
            return _Bottom(encoder, layers, count)
    raise _NotCacheable("it is no encoder of the kind of BERT, with 'embeddings' and 'encoder.layer'")


def _check_worth(config: Config, model: nn.Module, train: Examples, evaluation: Examples, clients: int) -> None:
    """Whether training takes the samples up more than once on average, and their states fit. Only keys that a
    continued run may not change decide: with and without the table results differ in their last digits. Nor does a
    size that is secret: the number of cached layers is written down.
    """
    federation, bound = config.federation, config.privacy.public_size_bound
    draws = federation.steps * federation.participation * clients
    if draws * config.optimizer.batch < (len(train) if bound is None else bound * clients):
        raise _NotCacheable("training takes up fewer samples than there are")
    width = getattr(model.config, "hidden_size", 0)
    tokens = int(train.lengths.sum()) if bound is None else bound * clients * config.data.max_length
    size = next(model.parameters()).element_size() * width * (tokens + int(evaluation.lengths.sum()))
    if size > AUTO_BYTES:
        raise _NotCacheable(f"the table would take {size / 2**30:.1f} GiB")


def _check_apart(model: nn.Module, train: Examples, device: torch.device, private: bool) -> None:
    """States are kept by sample, so each must be a function of its own sample. On the whole model and on real tokens:
    behind the table a sample that is read backwards differs less, and mixing in lower layers could not be seen.
    """
    inputs, _ = train.collate(np.arange(min(_PROBED, len(train))))
    try:
        if not check_independence(model, _on(device, inputs)):
            raise _NotCacheable("its samples are too few, or too much alike, to check that it keeps them apart")
    except SamplesNotIndependent as error:
        if private:
            raise
        raise _NotCacheable(str(error)) from None


def _cache(
    model: nn.Module,
    bottom: _Bottom,
    train: TokenizedDataset,
    evaluation: TokenizedDataset,
    most: int | None,
    device: torch.device,
) -> CachedLayers:
    compared = np.arange(min(_COMPARED, len(train)))
    alone = torch.cat([_logits(model, train, compared[i : i + 1], device) for i in range(len(compared))])
    evaluated = len(evaluation) if most is None else min(most, len(evaluation))
    tokens = int(train.input_ids.offsets[-1])
    padding_row = tokens + int(evaluation.input_ids.offsets[evaluated])
    cached_train = CachedExamples(train, len(train), 0, padding_row)
    cached_evaluation = CachedExamples(evaluation, evaluated, tokens, padding_row)
    read = [layer for layer in model.read if layer <= bottom.count] if isinstance(model, MeanPooledClassifier) else []
    first = _output(model, bottom.last, _on(device, train.collate(compared)[0]))
    states = _states(first)
    key = _digest(bottom, states, read, cached_train, cached_evaluation)
    table = _kept.get(key)
    if table is None:
        _kept.clear()
        size, wide = len(cached_train) + len(cached_evaluation), states.shape[-1]
        table = _Table(states.new_zeros(padding_row + 1, wide), torch.zeros(size, len(read), wide, device=device))
        _fill(table, 0, model, bottom, read, cached_train, device)
        _fill(table, len(cached_train), model, bottom, read, cached_evaluation, device)
    before = bottom.encoder.embeddings, list(bottom.layers[: bottom.count])
    _put(bottom, Rows(table.states).eval(), [PassOn(isinstance(first, tuple)).eval() for _ in before[1]])
    if read:
        first_rows = np.concatenate([each.first_rows[:-1] for each in (cached_train, cached_evaluation)])
        model.kept = KeptMeans(table.means, torch.from_numpy(first_rows).to(device))
    try:
        _compare(_logits(model, cached_train, compared, device), alone, states.dtype)
    except (_NotCacheable, RuntimeError, TypeError, ValueError, AttributeError) as error:  # unfit states raise any
        _put(bottom, *before)
        if read:
            model.kept = None
        raise _NotCacheable(str(error)) from None
    _kept[key] = table
    return CachedLayers(bottom.count, cached_train, cached_evaluation)


def _digest(bottom: _Bottom, states: Tensor, read: list[int], *examples: CachedExamples) -> str:
    """SHA-256 over everything that the table depends on, to the last bit."""
    parts = [bottom.encoder.embeddings, *bottom.layers[: bottom.count]]
    config, computed = bottom.encoder.config, (states.dtype, states.device, torch.get_num_threads())
    terms = f"{parts} {read} {config} {getattr(config, '_attn_implementation', None)} {computed}"
    digest = hashlib.sha256(terms.encode())
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for each in examples:
        digest.update(fingerprint(each.texts, np.arange(len(each))).encode())
    return digest.hexdigest()


def _put(bottom: _Bottom, embeddings: nn.Module, layers: Sequence[nn.Module]) -> None:
    bottom.encoder.embeddings = embeddings
    for number, layer in enumerate(layers):
        bottom.layers[number] = layer


@torch.no_grad()
def _fill(
    table: _Table,
    first: int,
    model: nn.Module,
    bottom: _Bottom,
    read: list[int],
    examples: CachedExamples,
    device: torch.device,
) -> None:
    """Writes what the layers make of ``examples``, of which ``first`` is the first sample's number, into the table."""
    for batch in physical_batches(examples.lengths, _TOKENS, overhead=256).batches:
        inputs, _ = examples.texts.collate(batch)
        real = inputs["attention_mask"].bool()
        rows = examples.collate(batch)[0]["input_ids"][real]
        inputs = _on(device, inputs)
        with ExitStack() as stack:
            passed = [stack.enter_context(_watched(bottom.layers[layer - 1])) for layer in read]
            table.states[rows.to(device)] = _states(_output(model, bottom.last, inputs))[real.to(device)]
        for column, states in enumerate(passed):
            table.means[first + torch.from_numpy(batch), column] = mean_of_real(states[0], inputs["attention_mask"])


@contextmanager
def _watched(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, the states that come out of ``layer`` are appended to the list, as float32."""
    found: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: found.append(_states(output).float()))
    try:
        yield found
    finally:
        handle.remove()


@torch.no_grad()
def _output(model: nn.Module, last: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """What the layer ``last`` of the model makes of a batch; the layers behind it are not computed."""

    def end(_: nn.Module, __: Any, output: Any) -> None:
        raise _Reached(output)

    handle = last.register_forward_hook(end)
    try:
        model(**inputs)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise _NotCacheable("its forward pass does not use its layers one after another")


def _states(output: Any) -> Tensor:
    """Hidden states ``[S,T,D]`` from a layer's output."""
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def _logits(model: nn.Module, examples: Examples, indices: np.ndarray, device: torch.device) -> Tensor:
    return model(**_on(device, examples.collate(indices)[0])).logits.double()


def _compare(from_table: Tensor, alone: Tensor, dtype: torch.dtype) -> None:
    """Outputs of a batch from the table are those of each sample passed through the whole model alone."""
    difference = float((from_table - alone).square().mean().sqrt() / alone.square().mean().sqrt())
    if not difference <= (1e-3 if dtype == torch.float32 else 0.05):
        raise _NotCacheable(
            f"from kept states it computes outputs that differ by {difference:.2g} of their size: there is more to "
            "its lower layers than embeddings and one layer after another, or they look at other samples"
        )


def _on(device: torch.device, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}
