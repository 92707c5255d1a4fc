"""Classification without training: the class whose describing text is nearest to the sample, by cosine.

Texts about classes are public, so neither the classifier nor a head that starts from it spends any budget. Sources:
Chang et al. 2008 (Importance of Semantic Representation: Dataless Classification); Yin, Hay and Roth, EMNLP 2019
(Benchmarking Zero-shot Text Classification); averages of several texts a class as in Radford et al., ICML 2021, §3.1.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import LinearClassifier

#: Texts of a class of which only the name is known.
_TEMPLATES = ("{}", "This is {}.", "The text is about {}.")


def class_texts(label_names: Sequence[str], texts: Mapping[str, Sequence[str]] | None = None) -> list[list[str]]:
    """The texts that stand for each class, in the order of ``label_names``.

    Args:
        label_names: names of the classes, in the order of their numbers.
        texts: texts of a class by its name, such as {"negative": ["a bad movie"]}; of others their names are said.

    Raises:
        ValueError: fewer than two classes, a text for a class that does not exist, or no text.
    """
    if len(label_names) < 2:
        raise ValueError(f"label_names={list(label_names)}: zero-shot classification needs two classes or more")
    strange = sorted(set(texts or {}) - set(label_names))
    if strange:
        raise ValueError(f"texts are given for {', '.join(strange)}, but the classes are {', '.join(label_names)}")
    found = [list((texts or {}).get(name) or [t.format(name) for t in _TEMPLATES]) for name in label_names]
    empty = [name for name, own in zip(label_names, found, strict=True) if not all(text.strip() for text in own)]
    if empty:
        raise ValueError(f"the texts of {', '.join(empty)} are empty; describe each class in a few words")
    return found


def prototypes(features: Tensor, counts: Sequence[int]) -> Tensor:
    """One direction a class: the mean of its texts' normalised features, normalised again.

    Args:
        features: float32 ``[T,D]``, features of all texts, class after class.
        counts: number of texts of each class; they sum to T.

    Returns:
        float32 ``[L,D]`` of length 1.

    Raises:
        ValueError: counts that do not sum to T, or a class without a text.
    """
    if sum(counts) != len(features) or min(counts, default=0) < 1:
        raise ValueError(f"counts={list(counts)} must be positive and sum to the {len(features)} rows of features")
    means = [part.mean(0) for part in F.normalize(features, dim=1).split(list(counts))]
    return F.normalize(torch.stack(means), dim=1)


def zero_shot(directions: Tensor, temperature: float = 1.0) -> LinearClassifier:
    """The nearest prototype by cosine, as a linear classifier of normalised features.

    Subtracting the prototypes' mean changes no prediction, and leaves a head that starts here without a part common to
    all classes.

    Args:
        directions: float32 ``[L,D]``, from :func:`prototypes`.
        temperature: what cosines are multiplied with; 1 leaves predictions alone, a head that is trained further starts
            with logits of this size.

    Raises:
        ValueError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be positive")
    weight = (directions - directions.mean(0)) * temperature
    return LinearClassifier(weight, torch.zeros(len(directions)))
