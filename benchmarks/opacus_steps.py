"""Private steps with Opacus on PEFT: hooks, functorch, ghost clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft_steps import peft_model
from provider import Provider, Sums, trained_parameters
from torch import Tensor
from workload import Workload


def opacus(work: Workload, mode: str = "hooks", trained: str = "b") -> Provider:
    """Opacus on PEFT: 'hooks' or 'functorch' form per-sample gradients, 'ghost' their norms and a second backward
    pass.
    """
    from opacus.grad_sample.utils import prepare_module
    from opacus.optimizers import get_optimizer_class

    if mode == "ghost":
        return _ghost(work, trained)
    model = prepare_module(peft_model(work, trained), mode, strict=False)
    parameters = trained_parameters(model)
    optimizer = get_optimizer_class("flat", False, mode)(
        torch.optim.SGD(parameters.values(), lr=work.lr), noise_multiplier=work.noise_multiplier,
        max_grad_norm=work.max_grad_norm, expected_batch_size=work.expected,
    )  # fmt: skip

    def backward(number: int) -> None:
        inputs, targets = work.batch(number)
        optimizer.zero_grad()
        work.losses(model(**inputs), targets).mean().backward()

    def step(number: int) -> None:
        backward(number)
        optimizer.step()

    def sums(number: int) -> Sums:
        backward(number)
        optimizer.clip_and_accumulate()
        found = {name: p.summed_grad.clone() for name, p in parameters.items()}
        optimizer.zero_grad()
        return found

    return Provider(step, sums, trained=trained)


class _Criterion:
    """The workload's losses in the form that Opacus's loss wrapper asks for."""

    def __init__(self, losses: Callable[[Any, Tensor], Tensor]):
        self.reduction = "mean"
        self._losses = losses

    def __call__(self, output: Any, targets: Tensor) -> Tensor:
        return self._losses(output, targets)


def _ghost(work: Workload, trained: str) -> Provider:
    from opacus.grad_sample.utils import prepare_module
    from opacus.optimizers import get_optimizer_class
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model = prepare_module(peft_model(work, trained), "ghost", strict=False, max_grad_norm=work.max_grad_norm)
    parameters = trained_parameters(model)
    optimizer = get_optimizer_class("flat", False, "ghost")(
        torch.optim.SGD(parameters.values(), lr=work.lr), noise_multiplier=work.noise_multiplier,
        max_grad_norm=work.max_grad_norm, expected_batch_size=work.expected,
    )  # fmt: skip
    criterion = DPLossFastGradientClipping(model, optimizer, _Criterion(work.losses))

    def backward(number: int) -> None:
        inputs, targets = work.batch(number)
        optimizer.zero_grad()
        criterion(model(**inputs), targets).backward()

    def step(number: int) -> None:
        backward(number)
        optimizer.step()

    def sums(number: int) -> Sums:
        backward(number)
        found = {name: p.grad.clone() for name, p in parameters.items()}
        optimizer.zero_grad()
        return found

    return Provider(step, sums, trained=trained)
