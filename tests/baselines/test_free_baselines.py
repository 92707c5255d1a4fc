"""Baselines that cost nothing: the largest class, and the nearest text."""

import pytest
import torch
from torch import nn

from ffalora.baselines import class_texts, head_features, majority, mean_label, prototypes, zero_shot


def test_the_majority_is_that_of_the_test_split():
    assert majority(torch.tensor([2, 2, 0, 1, 2])) == (2, 0.6)
    with pytest.raises(ValueError, match="empty"):
        majority(torch.empty(0))


def test_no_constant_errs_less_than_the_mean_of_the_test_split():
    assert mean_label(torch.tensor([1.0, 2.0, 6.0])) == pytest.approx((3.0, 14 / 3))
    with pytest.raises(ValueError, match="empty"):
        mean_label(torch.empty(0))


def test_of_classes_without_texts_of_their_own_the_names_are_said():
    texts = class_texts(["bad", "good"], {"bad": ["a bad movie"]})
    assert texts == [["a bad movie"], ["good", "This is good.", "The text is about good."]]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"label_names": ["one"]}, "two classes or more"),
        ({"label_names": ["a", "b"], "texts": {"c": ["x"]}}, "the classes are a, b"),
        ({"label_names": ["a", "b"], "texts": {"a": [" "]}}, "texts of a are empty"),
    ],
)
def test_texts_that_describe_no_class_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        class_texts(**arguments)


def test_the_nearest_prototype_by_cosine_is_predicted():
    generator = torch.Generator().manual_seed(0)
    texts, samples = torch.randn(5, 8, generator=generator), torch.randn(300, 8, generator=generator)
    directions = prototypes(texts, [2, 2, 1])
    by_cosine = (nn.functional.normalize(samples, dim=1) @ directions.T).argmax(1)
    assert torch.equal(zero_shot(directions).predict(samples), by_cosine)
    assert torch.equal(zero_shot(directions, temperature=9.0).predict(samples), by_cosine)
    with pytest.raises(ValueError, match="sum to the 5 rows"):
        prototypes(texts, [2, 2])
    with pytest.raises(ValueError, match="temperature"):
        zero_shot(directions, temperature=0.0)


class Pooler(nn.Module):
    """A mean over tokens and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.head(states.mean(1))


def test_features_are_what_the_head_reads_in_the_order_of_the_batches():
    model, states = Pooler(), torch.randn(5, 4, 3)
    features = head_features(model, model.head, [{"states": states[:2]}, {"states": states[2:]}])
    assert torch.allclose(features, states.mean(1)) and features.dtype == torch.float32
    assert not model.head._forward_pre_hooks


def test_a_head_that_reads_no_pooled_state_is_refused():
    model = Pooler()
    with pytest.raises(ValueError, match=r"batch 0: the head was given \[\]"):
        head_features(model, nn.Linear(3, 2), [{"states": torch.randn(2, 4, 3)}])
    with pytest.raises(ValueError, match="batches is empty"):
        head_features(model, model.head, [])
