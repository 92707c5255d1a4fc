"""Reading samples so that what one draws at random moves no other.

Data sets augment where they are read: a transform takes its random numbers from generators that the whole process
shares, and that a training loop may seed with a number anybody can guess (transformers' Trainer does). With one record
less, every later one would be augmented otherwise, and a sum would move by more than C. So each sample is read with
generators that begin with it.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch

from ..privacy.sampling import Indices

_READING = 5  # apart from all else that is drawn by a seed


def read(dataset: Any, samples: Indices, step: int, seed: int | None) -> list[Any]:
    """The ``samples`` of a data set in which each draws for itself, from torch, numpy and ``random``.

    Args:
        dataset: with random transforms or without; generators of its own that somebody may know the seed of are not
            noticed here (:meth:`PrivateTrainer.audit` notices them).
        step: in which they are read.
        seed: what a sample draws then follows from seed, step and sample, so that a resumed run reads it again; None
            begins each with the operating system's random numbers, which are kept nowhere.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    states = random.getstate(), np.random.get_state()
    try:  # afterwards all generators stand where they stood: nothing of what was read shows in them
        with torch.random.fork_rng(devices):
            return [_read_one(dataset, int(sample), step, seed) for sample in samples]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _read_one(dataset: Any, sample: int, step: int, seed: int | None) -> Any:
    words: np.ndarray
    if seed is None:
        words = np.frombuffer(os.urandom(16), dtype=np.uint32)
    else:
        words = np.random.SeedSequence([seed, step, sample], spawn_key=(_READING,)).generate_state(4)
    number = int.from_bytes(words[:2].tobytes(), "little")
    random.seed(number)
    np.random.seed(words)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    return dataset[sample]
