"""Losses and metrics of every task against one-sample-at-a-time definitions."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ffalora.data import DataError
from ffalora.data.examples import IGNORE_INDEX, Ragged, TokenizedDataset
from ffalora.data.generation import exact_match, final_number, rouge_l
from ffalora.data.head_loss import HeadStates
from ffalora.data.tasks import TASKS, find_task
from ffalora.runs.evaluation import gather_examples


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def causal_batch(samples=4, width=9, vocabulary=13):
    targets = torch.randint(0, vocabulary, (samples, width), generator=torch.Generator().manual_seed(1))
    for row in range(samples):
        targets[row, : 2 + row] = IGNORE_INDEX
        targets[row, width - row :] = IGNORE_INDEX
    return random(samples, width, vocabulary), targets


def batch_of(name):
    if name == "causal-lm":
        return causal_batch()
    if name == "regression":
        return random(4, 1), random(4, seed=2)
    return random(4, 5), torch.tensor([0, 4, 2, 2])


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_has_the_same_loss_alone_and_in_company(name):
    logits, targets = batch_of(name)
    losses = find_task(name).losses(logits, targets)
    assert losses.shape == (4,) and losses.dtype == torch.float32
    for row in range(4):
        alone = find_task(name).losses(logits[row : row + 1], targets[row : row + 1])
        torch.testing.assert_close(losses[row : row + 1], alone)


@pytest.mark.parametrize("name", TASKS)
def test_gradient_of_a_sample_touches_its_own_outputs_only(name):
    logits, targets = batch_of(name)
    logits.requires_grad_()
    find_task(name).losses(logits, targets)[1].backward()
    touched = logits.grad.flatten(1).abs().sum(1) > 0
    assert touched.tolist() == [False, True, False, False]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_the_metrics_that_it_reports(name):
    task = find_task(name)
    gathered = {key: value.numpy() for key, value in task.gather(*batch_of(name)).items()}
    assert tuple(task.metrics(gathered)) == task.reports


def test_losses_of_tokens_read_nothing_back_from_the_device():
    """Tensors without data stand for a device that would have to be waited for."""
    logits, targets = (t.to("meta") for t in causal_batch())
    states = HeadStates(torch.empty(4, 9, 6, device="meta"), torch.empty(13, 6, device="meta"))
    for given in (logits, states):
        assert find_task("causal-lm").losses(SimpleNamespace(logits=given), targets).shape == (4,)


@pytest.mark.parametrize("name", TASKS)
def test_losses_are_float32_also_from_bfloat16_logits_and_from_model_outputs(name):
    logits, targets = batch_of(name)
    half = logits.bfloat16()
    losses = find_task(name).losses(SimpleNamespace(logits=half), targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, find_task(name).losses(half.float(), targets))


def test_causal_loss_is_the_mean_over_answer_tokens_predicted_from_the_left():
    logits, targets = causal_batch()
    losses = find_task("causal-lm").losses(logits, targets)
    for row in range(4):
        own = [t for t in range(1, 9) if targets[row, t] != IGNORE_INDEX]
        expected = [-torch.log_softmax(logits[row, t - 1], 0)[targets[row, t]].item() for t in own]
        assert losses[row].item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_causal_loss_of_a_sample_without_answer_tokens_is_zero_with_a_zero_gradient():
    logits, targets = causal_batch()
    targets[2] = IGNORE_INDEX
    logits.requires_grad_()
    losses = find_task("causal-lm").losses(logits, targets)
    losses.sum().backward()
    assert losses[2] == 0 and torch.isfinite(logits.grad).all() and not logits.grad[2].any()


def metrics_of(task, *batches):
    """The metrics of batches ``(logits, targets)``, as ``gather_examples`` puts together what is gathered of each."""
    found = [task.gather(*batch) for batch in batches]
    return task.metrics({name: torch.cat([each[name] for each in found]).double().numpy() for name in found[0]})


@pytest.mark.parametrize("name", TASKS)
def test_metrics_do_not_depend_on_how_rows_are_batched(name):
    task = find_task(name)
    logits, targets = batch_of(name)
    once = metrics_of(task, (logits, targets))
    parts = metrics_of(task, (logits[:1], targets[:1]), (logits[1:], targets[1:]))
    assert once == pytest.approx(parts, rel=1e-6)
    assert once["loss"] == pytest.approx(task.losses(logits, targets).mean().item(), rel=1e-6)


def test_class_metrics_equal_those_by_hand():
    logits = torch.eye(3)[[0, 0, 1, 1]]
    task = find_task("classification")
    metrics = metrics_of(task, (logits, torch.tensor([0, 1, 1, 1])))
    assert metrics["accuracy"] == 0.75
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_outputs_that_are_not_finite_are_wrong_whichever_class_comes_first(lost, caplog):
    """A diverged model would reach an accuracy by the largest of NaN, which is the first class."""
    logits, target = torch.tensor([[lost, lost], [0.0, 1.0], [lost, 0.0]]), torch.tensor([0, 1, 0])
    metrics = metrics_of(find_task("classification"), (logits, target))
    assert metrics["accuracy"] == pytest.approx(1 / 3) and metrics["macro_f1"] == pytest.approx(1 / 2)
    tokens, targets = torch.tensor([[[lost, 0.0], [0.0, 1.0], [0.0, 0.0]]]), torch.tensor([[1, 0, 1]])
    assert metrics_of(find_task("causal-lm"), (tokens, targets))["token_accuracy"] == 0.5
    assert metrics_of(find_task("regression"), (torch.tensor([lost, 1.0]), torch.ones(2)))["pearson"] == 0.0
    texts = TokenizedDataset(Ragged([[1], [2]]), np.zeros(2, dtype=np.int64), pad_token_id=0)
    gather_examples(_Says(lost), texts, find_task("classification"), torch.device("cpu"))
    assert "outputs for 2 of 2 evaluated rows are not finite, and count as wrong" in caplog.text


class _Says(torch.nn.Module):
    """A model whose every logit is one number."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=torch.full((len(input_ids), 2), self.number))


def test_regression_metrics_equal_those_by_hand():
    task = find_task("regression")
    predicted, wanted = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 3.0, 4.0])
    metrics = metrics_of(task, (predicted, wanted))
    assert metrics["mse"] == pytest.approx(1 / 3)
    assert metrics["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 4])[0, 1])
    assert metrics_of(task, (torch.ones(3, 1), wanted))["pearson"] == 0.0


def test_numbers_in_units_are_learned_between_minus_one_and_one_and_measured_in_their_units():
    task, plain = find_task("regression", [100.0, 500.0]), find_task("regression")
    learned, wanted = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([100.0, 300.0, 700.0])
    assert task.losses(learned, wanted).tolist() == [0.0, 0.0, 1.0]
    metrics = metrics_of(task, (learned, wanted))
    assert metrics == pytest.approx(
        {"mse": 200.0**2 / 3, "pearson": np.corrcoef([1, 3, 5], [1, 3, 7])[0, 1], "loss": 1 / 3}
    )
    assert task.gather(learned, wanted)["predicted"].tolist() == [100.0, 300.0, 500.0]
    assert plain.losses(learned, wanted).tolist() == [101.0**2, 300.0**2, 699.0**2], "without a range, as they are"


def test_perplexity_weighs_tokens_not_samples():
    task = find_task("causal-lm")
    logits, targets = causal_batch()
    own = targets[:, 1:] != IGNORE_INDEX
    mean = torch.nn.functional.cross_entropy(logits[:, :-1][own], targets[:, 1:][own]).item()
    metrics = metrics_of(task, (logits, targets))
    assert metrics["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    right = (logits[:, :-1].argmax(-1) == targets[:, 1:])[own].float().mean().item()
    assert metrics["token_accuracy"] == pytest.approx(right)


def test_no_rows_and_unknown_tasks_are_errors():
    nothing = TokenizedDataset(Ragged([]), np.zeros(0, dtype=np.float32), pad_token_id=0)
    with pytest.raises(DataError, match="no row was evaluated"):
        gather_examples(torch.nn.Identity(), nothing, find_task("regression"), torch.device("cpu"))
    with pytest.raises(DataError, match="task='ner': choose one of classification"):
        find_task("ner")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 7", 7),
        ("#### 1,250.50 pounds, not 9", Fraction(2501, 2)),
        ("The answer is 12, no, -13.", -13),
        ("#### none\n", None),
        ("no digits", None),
        ("", None),
    ],
)
def test_final_number_is_what_the_answer_ends_in(text, number):
    assert final_number(text) == number


def test_exact_match_compares_values_and_counts_missing_numbers_as_wrong():
    assert exact_match(["#### 7.0", "8", "none", "1,000"], ["#### 7", "#### 9", "#### 1", "#### 1000"]) == 0.5
    with pytest.raises(ValueError, match="give equally many"):
        exact_match(["1"], [])


def test_exact_match_of_answers_without_numbers_compares_their_words():
    assert exact_match(["Yes , PLEASED", "Yes.", "pleased, yes", ""], ["Yes, pleased."] * 4) == 0.25


@pytest.mark.parametrize(
    "answer,reference,expected",
    [
        ("The cat sat.", "the CAT sat", 1.0),
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman police killed", "police kill the gunman", 0.5),
        ("", "word", 0.0),
        ("a b c d", "d", 0.4),
    ],
)
def test_rouge_l_is_the_share_of_words_in_the_same_order(answer, reference, expected):
    assert rouge_l([answer], [reference]) == pytest.approx(expected)
    assert rouge_l([answer, "x"], [reference, "y"]) == pytest.approx(expected / 2)
    with pytest.raises(ValueError, match="give equally many"):
        rouge_l([answer], [])


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("covid-19 negative", "covid-19 positive", 0),
        ("Type 2 benign", "Type 2 malignant", 0),
        ("Type 2, malignant.", "Type 2 malignant", 1),
        ("I saw 3 dogs", "There are 3 reasons to call the doctor now", 0),
        ("it is 7", "3 + 4 = 7.", 1),
        ("it is $12", "The price is $12", 1),
        ("that is 50 percent", "50%", 1),
        ("about 8", "so\n#### 8 apples", 1),
    ],
)
def test_a_number_inside_a_reference_is_no_answer(answer, reference, right):
    assert exact_match([answer], [reference]) == right
