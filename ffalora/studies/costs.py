"""What a local step costs, counted and not timed: floating-point operations, and bytes kept beside the model.

Operations are counted while a step runs, by torch's own counter, which is told about ours. Bytes are those that
autograd keeps from forward to backward, the arena of segment gradients, and the state. Both depend on shapes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import Config
from ..federated.experiment import Experiment, build

Shape = tuple[int, ...]


def step_costs(config: Config) -> dict[str, float]:
    """Counts of the first client's second local step; nothing is kept of it.

    Returns:
        ``flops_per_sample``: multiplications and additions of forward and backward products and of the adapters' own
        operations, by sample. ``saved_bytes``: what autograd keeps from forward to backward, in the largest physical
        batch. ``step_bytes``: the same with the arena and the client's state.

    Raises:
        ConfigError, DataError: as a run would.
    """
    experiment = build(config)
    strategy = experiment.strategy
    server = strategy.begin()
    strategy.load(server, trains=True)
    rows = strategy.start(server, [0])
    experiment.engine.train(experiment.participants[:1], rows, 1)  # the first step also probes the model
    kept = _KeptBytes(experiment.engine.model)
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    with torch.backends.mkldnn.flags(enabled=False), counter, kept.counting(experiment):  # it cannot see into oneDNN
        report = experiment.engine.train(experiment.participants[:1], rows, 1)
    samples = max(int(report.samples.sum()), 1)
    arena = 4 * experiment.adapters.layout.width * (kept.samples if experiment.config.privacy.at_clients else 1)
    return {
        "flops_per_sample": counter.get_total_flops() / samples,
        "saved_bytes": kept.most,
        "step_bytes": kept.most + arena + rows.element_size() * rows.numel(),
    }


class _KeptBytes:
    """Bytes of the distinct storages that autograd keeps in a pass, parameters and buffers left out.

    Attributes:
        most: of the largest pass; samples: how many it held.
    """

    def __init__(self, model: nn.Module):
        self._own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        self._pass: dict[int, int] = {}
        self.most = self.samples = 0

    @contextmanager
    def counting(self, experiment: Experiment) -> Iterator[None]:
        """Counts while the context lasts; a pass ends where the next one begins."""
        model = experiment.engine.model
        handle = model.register_forward_pre_hook(lambda *_: self._pass.clear())
        losses, engine = experiment.engine.losses, experiment.engine

        def counted(output: Any, targets: Tensor) -> Tensor:
            result = losses(output, targets)
            if sum(self._pass.values()) > self.most:
                self.most, self.samples = sum(self._pass.values()), len(targets)
            return result

        engine.losses = counted
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            engine.losses = losses
            handle.remove()

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._pass[storage.data_ptr()] = storage.nbytes()
        return tensor


def _formulas() -> dict[Any, Any]:
    """Operations of ours that multiply matrices, with their counts by shape: two for each product and sum."""
    return {torch.ops.ffalora.expand_: _expand, torch.ops.ffalora.backward: _backward, torch.ops.ffalora.outer: _outer}


def _expand(y: Shape, h: Shape, *_: Any, **__: Any) -> int:
    return 2 * y[0] * y[1] * h[1]


def _backward(dy: Shape, h: Shape, *_: Any, **__: Any) -> int:
    """``dh`` and the segments' gradients."""
    return 4 * dy[0] * dy[1] * h[1]


def _outer(p: Shape, q: Shape | None, *_: Any, **__: Any) -> int:
    return 2 * p[0] * p[1] * (q[1] if q is not None else 1)
