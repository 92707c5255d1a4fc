"""The model's own dropout in a private pass, keyed by sample; randomness that cannot be keyed so is refused.

See ``adapters.dropout`` for why. Models call dropout in many places; a torch function mode meets them all, fused
attention included (which is then computed in the open), and the generators of random tensors that torch's interface
has; the comparison of first gradients meets the rest.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from ffalora_kernels.checks import signed

from ..adapters import Adapters
from ..adapters.dropout import DropoutMasks, branched, masked_dropout, mix, positions_of
from ..adapters.targets import is_compiled
from ..privacy.noise import NoiseSource, SecureNoise
from .detectors import each_module
from .independence import SamplesNotIndependent

#: Keeps the keys of dropout apart from those of the noise.
_STREAM = 0x0D60_9BA5_4C1F_77E3
_UNKEYED = {
    F.alpha_dropout,
    F.feature_alpha_dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.gumbel_softmax,
    F.rrelu,
    torch.rand,
    torch.randn,
    torch.rand_like,
    torch.randn_like,
    torch.randint,
    torch.randint_like,
    torch.randperm,
    torch.bernoulli,
    torch.normal,
    torch.poisson,
    torch.multinomial,
    torch.binomial,
    torch._standard_gamma,
    torch._sample_dirichlet,
    torch.alpha_dropout,
    torch.alpha_dropout_,
    torch.feature_dropout,
    torch.feature_dropout_,
    torch.feature_alpha_dropout,
    torch.feature_alpha_dropout_,
    torch.rrelu,
    torch.rrelu_,
    Tensor.bernoulli,
    Tensor.bernoulli_,
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.log_normal_,
    Tensor.cauchy_,
    Tensor.geometric_,
    Tensor.random_,
    Tensor.exponential_,
    Tensor.multinomial,
}
#: Where the layers among them are told whether they draw at all: place and name of the argument. Those of
#: ``torch.nn.functional`` hand theirs on by name.
_SWITCHES = {
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout, F.dropout1d, F.dropout2d, F.dropout3d), (2, "training")),
    **dict.fromkeys((torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout), (2, "train")),
    **dict.fromkeys((torch.alpha_dropout_, torch.feature_dropout_, torch.feature_alpha_dropout_), (2, "train")),
    **dict.fromkeys((F.rrelu, torch.rrelu, torch.rrelu_), (3, "training")),
}


@dataclass(frozen=True)
class DropoutKeys:
    """What the masks of a pass are made from.

    Attributes:
        samples: int64 ``[S]``, one key a sample.
        shared: of the choices that all samples share (layers that are skipped): the same for a whole logical step,
            whoever takes part.
    """

    samples: np.ndarray
    shared: int = 0

    def only(self, rows: slice) -> DropoutKeys:
        """Of some samples of the batch, side by side."""
        return DropoutKeys(self.samples[rows], self.shared)

    def masks(self, device: torch.device, inputs: Mapping[str, Any]) -> DropoutMasks:
        """The masks of a pass on padded samples, ``inputs`` of the model, whose mask says where each of them begins."""
        positions = positions_of(inputs.get("attention_mask"))
        return DropoutMasks(torch.as_tensor(self.samples).to(device), positions=positions, shared=self.shared)

    @classmethod
    def of(
        cls,
        noise: NoiseSource,
        client: np.ndarray,
        step: np.ndarray,
        sample: np.ndarray,
        shared: int = 0,
        view: int | np.ndarray = 0,
    ) -> DropoutKeys:
        """Keys for a batch, as secret as its noise.

        Where noise is secure they come from the operating system and are never written anywhere. Where it is seeded
        they are a function of (key, client, sample, view, step): a run that is repeated, resumed, packed or cut
        differently draws the same masks.

        Args:
            noise: of the run; client, step, sample: int64 ``[S]``; view: one number, or ``[S]`` of them.
        """
        if isinstance(noise, SecureNoise):
            return cls.fresh(len(sample), shared)
        keys = torch.full((len(sample),), signed(noise.key ^ _STREAM))
        for column in (client, sample, np.full(len(sample), view), step):
            keys = mix(branched(keys, 1)[:, 0] ^ torch.as_tensor(column, dtype=torch.int64))
        return cls(keys.numpy(), shared)

    @classmethod
    def shared_by(cls, noise: NoiseSource, step: int) -> int:
        """``shared`` of a logical step, asked for once: how the step is cut into batches must not matter."""
        nobody = np.array([-1])
        return int(cls.of(noise, nobody, np.array([step]), nobody).samples[0]) & 2**62 - 1

    @classmethod
    def fresh(cls, samples: int, shared: int = 0) -> DropoutKeys:
        """Keys from the operating system, never written anywhere: what a private run needs."""
        return cls(np.frombuffer(bytearray(os.urandom(8 * samples)), dtype=np.int64), shared)


def drops_out(model: nn.Module, adapters: Adapters) -> bool:
    """Whether a pass may draw masks: the adapters' dropout is on in every pass, the model's own in training mode."""
    own = any(getattr(layer, "p_dropout", 0.0) for layer in adapters.layers.values())
    return own or any(module.training for module in each_module(model))


class DrawsAtRandom(RuntimeError):
    """A pass that was to be recorded drew masks of dropout, or anything else."""


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Within the block nothing may be drawn from the generators of this process: Python's, numpy's, torch's own.

    Raises:
        DrawsAtRandom: at its end, where one of them moved.
    """
    before = _generators()
    yield
    if _generators() != before:
        raise DrawsAtRandom("the model draws at random, which a recording would do alike every time")


def _generators() -> tuple:
    of_numpy = np.random.get_state(legacy=False)["state"]
    return random.getstate(), of_numpy["key"].tobytes(), of_numpy["pos"], torch.get_rng_state().numpy().tobytes()


@contextmanager
def keyed_dropout(model: nn.Module, masks: DropoutMasks | None) -> Iterator[None]:
    """Within the block every dropout of a model that is in training mode takes its mask from ``masks``; None is for
    passes in which nothing drops out.

    Raises:
        SamplesNotIndependent: a compiled model in training mode, whose dropout cannot be reached; or, within the
            block, other random tensors.
    """
    if masks is None:
        yield
        return
    keyed: AbstractContextManager = nullcontext()
    if any(module.training for module in each_module(model)):
        _check_reachable(model)
        keyed = _Keyed(masks)
    with torch.random.fork_rng([]), keyed:
        torch.default_generator.manual_seed(masks.shared)
        yield


def _check_reachable(model: nn.Module) -> None:
    inside = [name for name, module in model.named_modules() if _draws_inside(module)]
    if inside:
        raise SamplesNotIndependent(
            f"{inside[0]} draws dropout inside an operation of its own, by the position in the batch; set its dropout "
            "to 0, or put it into evaluation mode"
        )
    drops = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p for module in model.modules())
    if drops and is_compiled(model):
        raise SamplesNotIndependent(
            "a compiled model draws its dropout by the position in the batch, so that one sample more or less redraws "
            "everybody's masks; do not compile it, or set its dropout to 0"
        )
    fused = str(getattr(getattr(model, "config", None), "_attn_implementation", ""))
    if drops and ("flash" in fused or "flex" in fused):
        raise SamplesNotIndependent(
            f"attn_implementation={fused!r} draws attention dropout by the position in the batch; use 'eager' or "
            "'sdpa', or set the model's attention dropout to 0"
        )


def _draws_inside(module: nn.Module) -> bool:
    kinds = (nn.RNNBase, nn.MultiheadAttention)
    return isinstance(module, kinds) and module.training and bool(module.dropout)


class _Keyed(TorchFunctionMode):
    def __init__(self, masks: DropoutMasks):
        super().__init__()
        self.masks = masks

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.backward, torch.autograd.backward) and kwargs.get("inputs") is None:
            with self:
                return _backward(*args, **kwargs)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func in (torch.dropout, torch.dropout_):
            return self._torch_dropout(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention and _given(kwargs, args, 4, "dropout_p", 0.0):
            return self._attention(*args, **kwargs)
        result = func(*args, **kwargs)
        if func not in _UNKEYED or not _is_drawn(func, args, kwargs):
            return result
        self.masks.drew = True
        if isinstance(result, Tensor) and result.numel() > 1:
            raise SamplesNotIndependent(
                f"the model draws random numbers by {getattr(func, '__name__', func)}, of shape {tuple(result.shape)}, "
                "which belong to positions in the batch: one sample more or less redraws everybody's. Turn that off, "
                "or train with the model in evaluation mode"
            )
        return result

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return input
        dropped = input * 0.0 if p >= 1.0 else masked_dropout(input, p, self.masks)
        return input.copy_(dropped) if inplace else dropped

    def _torch_dropout(self, func: Callable, input: Tensor, p: float, train: bool) -> Tensor:
        return self._dropout(input, p, train, inplace=func is torch.dropout_)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """As ``scaled_dot_product_attention`` defines it, with a keyed mask on the weights ``[S,H,T,T]``."""
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = (query @ key.transpose(-2, -1)).float() * factor
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            hidden = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
            scores = hidden
        return masked_dropout(torch._safe_softmax(scores, -1), dropout_p, self.masks).to(value.dtype) @ value


def _backward(
    outputs: Tensor | Sequence[Tensor],
    gradient: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: None = None,
    grad_tensors: Any = None,
) -> None:
    """The backward pass with the caller's modes on, for what is computed again in it (checkpointed activations): of the
    outputs' edges in the graph, for tensors would be handed to a mode, which is off while it has them.
    """
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    edges = tuple(get_gradient_edge(output) for output in outputs)
    torch.autograd.backward(edges, grad_tensors if gradient is None else gradient, retain_graph, create_graph)


def _given(kwargs: dict[str, Any], args: tuple, position: int, name: str, default: Any) -> Any:
    return kwargs.get(name, args[position] if len(args) > position else default)


def _is_drawn(func: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a layer with a training switch really drew (``F.dropout2d`` and the like)."""
    return func not in _SWITCHES or bool(_given(kwargs, args, *_SWITCHES[func], False))
