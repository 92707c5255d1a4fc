"""The numbers of an upload on the wire: as float32, or how far the client moved, in fewer bits.

What is rounded is the difference from where the server knows the client to have started, so that small updates of large
numbers survive. ``int8`` keeps blocks of 64 numbers, each with a scale of its own, and rounds stochastically: the
expected value is exact (QSGD; Alistarh et al., NeurIPS 2017, section 3.1, with the largest number in the place of the
norm). ``top-k`` sends the largest moves alone; what was left out of one round is added to the moves of the next (error
feedback; Stich, Cordonnier and Jaggi, NeurIPS 2018, algorithm 1, with a round's whole move in the place of a
gradient). All of it follows the noise, from nothing but rows that could be sent: it changes no ε. Downloads stay
float32: a server that rounded its own state would lose what moves less than a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from .strategies import ServerState, Strategy
from .strategies.wire import BLOCK, largest_moves

_LARGEST, _ROUNDING = 127, 11
#: What a client keeps of a number's move until it is sent.
_LEFT = "payload.left"
#: The arrays of each format.
_TYPES = {
    "float32": ["float32"],
    "float16": ["float16"],
    "int8": ["int8", "float32"],
    "top-k": ["int32", "uint8", "float16"],
}


def packed(config: Config, strategy: Strategy, server: ServerState, client: int, row: Tensor) -> list[np.ndarray]:
    """What a client sends of the row ``[P]`` that it ended at: one array; (int8) the codes and the scales; (top-k) how
    many numbers there are, a bit for each that says whether it is sent, and the moves of those.

    Args:
        config: of the run. strategy, server: as the client has them since the round began; with top-k ``server`` keeps
            what the client has not sent yet.
    """
    kind, numbers = config.federation.payload, strategy.wire.upload(server, row).cpu()
    if kind == "float32":
        return [numbers.numpy()]
    moved = numbers - _start(strategy, server, client)
    if kind == "float16":
        return [moved.half().numpy()]
    if kind == "top-k":
        return _top_k(moved, config.federation.payload_share, server, client)
    words = np.random.SeedSequence([config.seed, server.round, client], spawn_key=(_ROUNDING,))
    return _int8(moved.numpy(), np.random.Generator(np.random.Philox(words)))


def unpacked(kind: str, arrays: Sequence[Any]) -> np.ndarray:
    """What arrived, as float32 ``[n]``: the numbers themselves (float32), or how far they moved.

    Args:
        kind: ``federation.payload``. arrays: what :func:`packed` made, or whatever a client sends instead.

    Raises:
        ValueError: arrays of another count, dtype or shape.
    """
    types = _TYPES[kind]
    shown = [f"{getattr(array, 'dtype', type(array).__name__)}" for array in arrays]
    if shown != types or any(array.ndim != 1 for array in arrays):
        raise ValueError(
            f"it sent {len(arrays)} arrays of {', '.join(shown)}; federation.payload={kind} is {len(types)} of "
            f"{', '.join(types)}"
        )
    if kind == "top-k":
        return _spread_out(*arrays)
    if kind != "int8":
        return arrays[0].astype(np.float32)
    codes, scales = arrays
    if len(scales) != math.ceil(len(codes) / BLOCK):
        raise ValueError(f"{len(scales)} scales for {len(codes)} numbers in blocks of {BLOCK}")
    with np.errstate(over="ignore", invalid="ignore"):
        return codes.astype(np.float32) * np.repeat(scales, BLOCK)[: len(codes)]


def received_row(kind: str, strategy: Strategy, server: ServerState, client: int, numbers: np.ndarray) -> Tensor:
    """The row ``[P]`` of what :func:`unpacked` gave; columns that were not sent are the server's.

    Raises:
        ValueError: the wrong count of numbers.
    """
    found = torch.from_numpy(np.array(numbers))
    if kind != "float32":
        start = _start(strategy, server, client)
        if start.shape != found.shape:
            raise ValueError(f"{found.numel()} numbers, {start.numel()} expected")
        found = start + found
    return strategy.wire.received(server, found.to(server.row.device))


def through_the_wire(
    config: Config,
    strategy: Strategy,
    server: ServerState,
    clients: Sequence[int],
    rows: Tensor,
    arrives: Sequence[bool] | None = None,
) -> Tensor:
    """Rows ``[C,P]`` as a server gets them; what a client does not send stays as it is.

    Args:
        arrives: whose row does; nobody else sends anything. None: everybody's.
    """
    kind = config.federation.payload
    if kind == "float32" or not len(rows):
        return rows
    everything = torch.full_like(strategy.wire.upload(server, rows[0]), math.nan)
    is_sent, found = strategy.wire.received(server, everything).isnan(), []
    for client, row, is_there in zip(clients, rows, arrives or [True] * len(rows), strict=True):
        if not is_there:
            found.append(row)
            continue
        numbers = unpacked(kind, packed(config, strategy, server, client, row))
        found.append(torch.where(is_sent, received_row(kind, strategy, server, client, numbers), row))
    return torch.stack(found)


def _start(strategy: Strategy, server: ServerState, client: int) -> Tensor:
    """What the client would send if it had not moved, on the CPU."""
    return strategy.wire.upload(server, strategy.start(server, [client])[0]).cpu()


def _int8(moved: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Codes int8 ``[n]`` and scales float32, one a block; a block with NaN or Inf gets the scale NaN."""
    blocks = np.zeros((math.ceil(len(moved) / BLOCK), BLOCK))
    blocks.reshape(-1)[: len(moved)] = moved
    scales = (np.abs(blocks).max(1, initial=0.0) / _LARGEST).astype(np.float32)
    scales[~np.isfinite(scales)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = np.nan_to_num(blocks / scales[:, None].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    codes = np.floor(levels + generator.random(blocks.shape)).clip(-_LARGEST, _LARGEST)
    return [codes.astype(np.int8).reshape(-1)[: len(moved)], scales]


def _top_k(moved: Tensor, share: float, server: ServerState, client: int) -> list[np.ndarray]:
    """Count int32 ``[1]``, bits uint8 ``[⌈n/8⌉]``, and the largest moves float16; ``server`` keeps what is left of the
    moves ``[n]``, unless it is not finite.
    """
    left = moved + server.clients.rows(_LEFT, [client], torch.zeros_like(moved))[0]
    is_sent = torch.zeros(len(left), dtype=torch.bool)
    is_sent[left.abs().topk(largest_moves(len(left), share)).indices] = True  # of all numbers NaN is the largest
    sent = left[is_sent].half()
    left[is_sent] -= sent.float()
    if bool(left.isfinite().all()):
        server.clients.put(_LEFT, [client], left[None])
    return [np.array([len(left)], dtype=np.int32), np.packbits(is_sent.numpy()), sent.numpy()]


def _spread_out(count: np.ndarray, bits: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """The moves float32 ``[n]`` of what :func:`_top_k` made, 0 where none was sent."""
    numbers = int(count[0]) if len(count) == 1 else -1
    if numbers < 0 or len(bits) != math.ceil(numbers / 8):
        raise ValueError(f"{len(bits)} bytes of bits, a count {count[:3].tolist()} of numbers")
    found, is_sent = np.zeros(numbers, dtype=np.float32), np.unpackbits(bits, count=numbers).astype(bool)
    if is_sent.sum() != len(sent):
        raise ValueError(f"{len(sent)} moves for {is_sent.sum()} numbers that moved")
    found[is_sent] = sent
    return found
