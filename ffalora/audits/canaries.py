"""Canaries for the user's own model and data: what they are, how they train among the real samples, what betrays them.

Three kinds. *One direction*: a gradient much longer than C along one parameter of its own, which goes to clipping in
the place of a sample's (where clients are protected: an update, in the place of a client's); the strongest that an
attacker could hope for. *Mislabelled*: a real sample of the data once
more, with another class. *Outside the vocabulary of the data*: random tokens with a random class. Each is in with
probability one half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.examples import Examples, Ragged, TokenizedDataset
from ..training.gradients import SegmentGradients
from ..training.results import StepResults
from ..training.step import LogicalStep
from .bounds import one_run_bound
from .directions import Directions

ONE_DIRECTION, MISLABELLED, OUT_OF_VOCABULARY = "one direction", "mislabelled", "random words"
#: How much longer than C the gradient, or update, of a canary of one direction is, before clipping.
LONGER = 100.0
#: Shares of the canaries that are guessed to be in, and as many to be out; fixed beforehand, each with its share of the
#: significance.
_SHARES = (0.5, 0.1, 0.02)
#: Most numbers in what is kept of all canaries of one kind.
MOST_NUMBERS = 2**27


@dataclass(frozen=True)
class CanaryTest:
    """What guesses about one kind of canary found.

    Attributes:
        kind: of the canaries; sees: what the attacker sees ('every step', 'the final model').
        trials, guesses, correct: canaries, guesses of the best test, right ones.
        epsilon_lower: disproved with the audit's confidence.
        ceiling: what as many canaries could disprove at most, every guess being right: the power of the test.
        expected: what canaries of one direction disprove, on average, in a sound run of these terms; NaN elsewhere.
    """

    kind: str
    sees: str
    trials: int
    guesses: int
    correct: int
    epsilon_lower: float
    ceiling: float
    expected: float = float("nan")


def with_canaries(train: Examples, vocabulary: int, count: int, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """The data with ``count`` canaries of each kind that it can hold behind its own samples.

    Args:
        train: the data; vocabulary: how many tokens there are.

    Returns:
        the longer data, and the indices of each kind; the data as it was and none where it is not classified texts.
    """
    classes = np.unique(train.labels)
    if not isinstance(train, TokenizedDataset) or not np.issubdtype(train.labels.dtype, np.integer) or len(classes) < 2:
        return train, {}
    rows, wrong = rng.choice(len(train), min(count, len(train)), replace=False), []
    for row in rows:
        wrong.append(rng.choice(classes[classes != train.labels[row]]))
    shapes, random = rng.choice(len(train), count), []
    for row in shapes:
        own = train.input_ids[row].copy()
        own[1:-1] = rng.integers(0, vocabulary, max(0, len(own) - 2))  # first and last token mark the text
        random.append(own.tolist())
    labels = np.concatenate([train.labels, wrong, rng.choice(classes, count)]).astype(train.labels.dtype)
    everything = np.concatenate([np.arange(len(train)), rows, shapes])
    ids = [*_rows(train.input_ids, everything[: len(train) + len(rows)]), *random]
    types = train.token_type_ids
    kinds = None if types is None else Ragged(_rows(types, everything))
    whole = TokenizedDataset(Ragged(ids), labels, train.pad_token_id, kinds)
    n, end = len(train), len(train) + len(rows)
    return whole, {MISLABELLED: np.arange(n, end), OUT_OF_VOCABULARY: np.arange(end, end + count)}


def one_text(data: Examples) -> Examples:
    """The first of classified texts by itself; other data as they are."""
    if not isinstance(data, TokenizedDataset):
        return data
    types = None if data.token_type_ids is None else Ragged(_rows(data.token_type_ids, [0]))
    ids = Ragged(_rows(data.input_ids, [0]))
    return TokenizedDataset(ids, data.labels[:1], data.pad_token_id, types)


def _rows(ragged: Ragged, indices: Sequence[int] | np.ndarray) -> list[list[int]]:
    return [ragged[int(i)].tolist() for i in indices]


class CanaryStep(LogicalStep):
    """A logical step in which indices behind the data are canaries of one direction.

    Attributes:
        directions: of each client's; signs: of the canary with index ``n + i`` which way, ±1, or 0 where it is out.
        others: float64 ``[C,P]``, what the samples of the last step's batch sum to without these canaries.
    """

    directions: Directions
    signs: NDArray[np.float32]
    others: Tensor

    def passes(self, drawn: Sequence[np.ndarray], budget: int) -> StepResults:
        """As for samples alone; then the canaries' gradients are clipped and added."""
        n = len(self.setup.data.lengths)
        found = super().passes([one[one < n] for one in drawn], budget)
        self.others = self.total.clone()
        owner = np.repeat(np.arange(len(drawn)), [int((one >= n).sum()) for one in drawn])
        which = np.concatenate([one[one >= n] - n for one in drawn]).astype(np.int64)
        if len(which):
            self._add(owner, which)
        return found

    def _add(self, owner: np.ndarray, which: np.ndarray) -> None:
        layout, device = self.setup.adapters.layout, self.total.device
        lengths = torch.from_numpy(self.signs[which].astype(np.float32)) * LONGER * float(max(self.norms))
        gradients = self.directions.gradients(which % len(self.directions), lengths, layout.width)
        squares = torch.zeros(len(which), layout.slots, dtype=torch.float64)
        for place in layout.places:
            squares[:, place.slot] = gradients[:, place.columns].double().square().sum(1)
        client = torch.from_numpy(owner).to(torch.int32).to(device)
        found = SegmentGradients(gradients.to(device), squares.to(device), client, torch.zeros(len(which)))
        found.clip_into_(self.total, *self.clipping)


def guess(kind: str, sees: str, scores: NDArray, included: NDArray, delta: float, significance: float) -> CanaryTest:
    """Guesses 'in' for the highest scores and 'out' for the lowest, and bounds ε by how many guesses are right.

    Args:
        scores: float ``[m]``, higher for canaries that seem to be in; included: bool ``[m]``.
        delta, significance: of the bound.
    """
    order, best, ceiling = np.argsort(scores, kind="stable"), (0.0, 0, 0), 0.0
    for share in _SHARES:
        count = max(1, round(share * len(scores) / 2))
        highest, lowest = order[-count:], order[: min(count, len(scores) - count)]  # of a single canary no lowest
        correct, guesses = int(included[highest].sum() + (~included[lowest]).sum()), len(highest) + len(lowest)
        terms = delta, significance / len(_SHARES)
        best = max(best, (one_run_bound(len(scores), guesses, correct, *terms), guesses, correct))
        ceiling = max(ceiling, one_run_bound(len(scores), guesses, guesses, *terms))
    return CanaryTest(kind, sees, len(scores), best[1], best[2], best[0], ceiling)


def expected_bound(
    trials: int,
    scores_of: Callable[[NDArray], NDArray],
    delta: float,
    significance: float,
    rng: np.random.Generator,
) -> float:
    """The mean bound that canaries of one direction give in a sound run: five simulations of the guesses alone.

    Args:
        trials: canaries; scores_of: from who is in to scores, as in a sound run (:func:`sound_scores`).
    """
    found = []
    for _ in range(5):
        included = rng.random(trials) < 0.5
        found.append(guess("", "", scores_of(included), included, delta, significance).epsilon_lower)
    return float(np.mean(found))


def sound_scores(included: NDArray, steps: int, rate: float, sigma: float, rng: np.random.Generator) -> NDArray:
    """How often each canary that is in was drawn, with the noise of all steps."""
    trials = len(included)
    return included * rng.binomial(steps, rate, trials) + sigma * steps**0.5 * rng.standard_normal(trials)


def matched_scores(gradients: Tensor, observed: Tensor, noise_std: float, signal_std: float) -> NDArray:
    """How much of each canary's gradient is in what was observed: ridge regression on all of them together, so that
    canaries that look alike do not speak for each other.

    Args:
        gradients: float32 ``[m,P]``, clipped; observed: float64 ``[P]``, the sum of all steps.
        noise_std: of a coordinate of ``observed``; signal_std: of the number of times that a canary was drawn.
    """
    rows = gradients.double().cpu()
    gram = rows @ rows.T
    gram += torch.eye(len(rows), dtype=torch.float64) * max((noise_std / signal_std) ** 2, 1e-9 * float(gram.trace()))
    return torch.linalg.solve(gram, rows @ observed.double().cpu()).numpy()


@torch.no_grad()
def losses_of(
    model: Any, losses: Callable[[Any, Tensor], Tensor], data: Any, samples: np.ndarray, device: torch.device
) -> NDArray:
    """The model's loss of each of these samples, float64."""
    found = []
    for some in np.array_split(samples, max(1, len(samples) // 64)):
        inputs, targets = data.collate(some)
        output = model(**{name: value.to(device) for name, value in inputs.items()})
        found.append(losses(output, targets.to(device)).double().cpu())
    return torch.cat(found).numpy()
