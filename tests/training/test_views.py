"""Views of a sample: several rows in one segment, drawn by sample and step alone, whose mean gradient is clipped."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from mutants import MUTANTS
from small_runs import PRIVATE
from test_tasks import images
from tiny import losses, participants, tiny_data, tiny_engine, tiny_model

from ffalora.adapters import AdapterConfig, attach
from ffalora.adapters.dropout import branched
from ffalora.config import ConfigError
from ffalora.data.users import Owners
from ffalora.federated.cohort import trains_in_one_pass
from ffalora.federated.experiment import build
from ffalora.federated.simulate import run_round
from ffalora.models import MeanPooledClassifier
from ffalora.privacy.noise import SecureNoise, SeededNoise
from ffalora.privacy.sampling import SystemDraw
from ffalora.training.dropout import DropoutKeys
from ffalora.training.gradients import segment_gradients
from ffalora.training.participant import Participant
from ffalora.training.sensitivity import FLOAT32_LIMIT, probe_sensitivity
from ffalora.training.step import LogicalStep
from ffalora.training.views import Shift, Views, WordDropout, begin_words

K = 3
#: Of 60 tokens, 1 and 2 are special, and every third goes on with a word.
WORDS = WordDropout(0.4, torch.isin(torch.arange(60), torch.tensor([1, 2])), torch.arange(60) % 3 > 0, padding=0)
VIEWS = Views(K, WORDS)


def engine_of(views=VIEWS, dropout=0.0, **changes):
    engine, adapters = tiny_engine(views=views, **changes)
    for layer in adapters.layers.values():
        layer.p_dropout = dropout
    return engine, adapters


def sums(engine, adapters, client, drawn):
    step = LogicalStep(engine, [client], adapters.state()[None], None, 0.0, None, None)
    results = step.passes([drawn], engine.token_budget)
    return step.total[0].clone(), *results.read(), results.rows, results.plan


def views_of(engine, client, sample):
    """Inputs and targets of a sample's views in the client's next step."""
    keys = engine.dropout_keys([client], np.zeros(1, int), np.array([sample]))
    return engine.views.of(*engine.data.collate([sample]), lambda: keys)


def mean_gradient(engine, adapters, client, sample):
    """Of a sample's views, by autograd, in the columns of the state."""
    inputs, targets = views_of(engine, client, sample)
    engine.model.zero_grad()
    losses(engine.model(**inputs), targets).mean().backward()
    row = torch.zeros(adapters.layout.width, dtype=torch.float64)
    for place in adapters.layout.places:
        row[place.columns] = adapters.layout.parameter(place).grad.double().reshape(-1)
    return row


@pytest.mark.parametrize("budget", [10_000, 60])
def test_the_gradients_of_a_sample_s_views_are_averaged_and_then_clipped(budget):
    engine, adapters = engine_of(token_budget=budget)
    client, drawn = participants(1)[0], np.array([0, 7, 11, 30, 31])
    total, *each, plan = sums(engine, adapters, client, drawn)
    limit, expected = engine.privacy.max_grad_norm, torch.zeros_like(total)
    for sample in drawn:
        own = mean_gradient(engine, adapters, client, sample)
        expected += own * min(1.0, limit / float(own.norm()))
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    assert [len(values) for values in each] == [len(drawn)] * 3
    lengths = engine.data.lengths[drawn]
    assert plan.tokens == K * lengths.sum()
    assert all(K * len(batch) * lengths[batch].max() <= budget for batch in plan.batches)


@pytest.mark.parametrize(
    "config",
    [{}, {"views": Views(K), "dropout": 0.2}, {"users": True, "dropout": 0.2, "trained": "both", "head": "trained"}],
    ids=["words", "dropout-alone", "users"],
)
def test_one_record_moves_the_sum_by_at_most_c_whatever_the_number_of_views(config, fixed_draws):
    config, client = dict(config), participants(1)[0]
    if config.pop("users", False):
        owners = Owners.of((np.arange(40) // 4).tolist())
        config |= {"owners": owners, "privacy": {"unit": "user", "samples_per_user": 4}}
        client.ledger = dataclasses.replace(client.ledger, unit="user", dataset_size=10, sample_rate=0.5)
    engine, adapters = engine_of(**config)
    found = probe_sensitivity(engine, [client], adapters.state()[None], records=3)
    assert found.holds and 0.5 < found.largest.ratio <= FLOAT32_LIMIT


@pytest.mark.parametrize("mutant", ["views are clipped one by one", "dropout keys by position"])
def test_the_probe_catches_views_that_one_record_moves_too_far(mutant, monkeypatch, fixed_draws):
    MUTANTS[mutant](monkeypatch)
    engine, adapters = engine_of(token_budget=1000)
    found = probe_sensitivity(engine, participants(1), adapters.state()[None], records=12)
    assert not found.holds and found.largest.ratio > 1.1


def test_a_run_is_the_same_however_it_is_cut():
    states = []
    for budget in (10_000, 10):
        engine, adapters = engine_of(token_budget=budget, dropout=0.2, privacy={"noise_multiplier": 0.0})
        states.append(adapters.state()[None])
        engine.train(participants(1), states[-1], 2)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


def test_views_are_the_same_packed_and_padded():
    pooled = MeanPooledClassifier(tiny_model().bert, 3, 0.3, 1.0, 0)
    adapters = attach(pooled.eval(), AdapterConfig(rank=4, dropout=0.2, target_modules=["query", "value"]))
    adapters.load_state_(adapters.state() + 0.05 * torch.randn(adapters.layout.width, generator=torch.manual_seed(1)))
    sample = np.arange(6)
    each = [np.repeat(column, K) for column in (np.zeros(6, int), np.zeros(6, int), sample)]
    keys = DropoutKeys.of(SeededNoise(3), *each, view=np.tile(np.arange(K), 6))
    inputs, targets = VIEWS.of(*tiny_data().collate(sample), lambda: keys)
    padded, packed = (
        segment_gradients(
            pooled, adapters, losses, inputs, targets, rows=each[0][:6], dropout=lambda: keys, packed=packed, views=K
        ).gradients.clone()
        for packed in (False, True)
    )
    torch.testing.assert_close(padded, packed, rtol=1e-4, atol=1e-7)


def test_a_run_that_stopped_ends_like_one_that_did_not():
    engine, adapters = engine_of(dropout=0.2)
    whole = adapters.state()[None]
    begun = whole.clone()
    engine.train(participants(1), whole, 4)
    first = participants(1)[0]
    engine.train([first], begun, 2)
    engine, _ = engine_of(dropout=0.2)
    again = Participant(0, first.samples, dataclasses.replace(first.ledger), steps_taken=2)
    engine.train([again], begun, 2)
    assert torch.equal(begun, whole)


@pytest.mark.parametrize("secure", [False, True], ids=["seeded", "secure"])
def test_views_differ_by_sample_step_and_view_and_secure_ones_never_come_again(secure):
    engine, _ = engine_of(Views(64, WORDS), data=tiny_data(longest=20))
    if secure:
        engine.noise, engine.draw = SecureNoise(), SystemDraw(bytes(32))
    client = participants(1)[0]
    engine.data.input_ids.flat[:] = np.resize(np.arange(3, 60), engine.data.input_ids.flat.shape)
    longest = int(engine.data.lengths.argmax())
    here, again = (views_of(engine, client, longest)[0]["attention_mask"].sum(1).tolist() for _ in range(2))
    client.steps_taken = 1
    following = views_of(engine, client, longest)[0]["attention_mask"].sum(1).tolist()
    assert len(set(here)) > 1 and here != following and (here == again) != secure


def test_words_fall_whole_in_the_stated_share_and_special_tokens_stay():
    """5,000 views: shares are within 5 standard deviations (false alarm below 1e-5)."""
    text, words = [1, 4, 6, 7, 8, 9, 10, 2], [[4, 6], [7], [8, 9], [10]]
    ids = torch.tensor([[*text, 0, 0]]).repeat(5_000, 1)
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": (ids > 7).long()}
    found = WORDS(inputs, branched(torch.tensor(5), 5_000))
    rows = [row[real.bool()].tolist() for row, real in zip(found["input_ids"], found["attention_mask"], strict=True)]
    left = itertools.product([True, False], repeat=4)
    subsets = [[1, *itertools.chain(*itertools.compress(words, kept)), 2] for kept in left]
    assert {tuple(row) for row in rows} == {tuple(one) for one in subsets if len(one) > 2}
    missing = np.mean([[word[0] not in row for word in words] for row in rows], axis=0)
    assert np.abs(missing - (0.4 - 0.4**4)).max() < 5 * (0.24 / 5_000) ** 0.5
    assert torch.equal(found["token_type_ids"], (found["input_ids"] > 7).long())
    assert not found["input_ids"][~found["attention_mask"].bool()].any()


@pytest.mark.parametrize(
    ("pieces", "begins"),
    [
        (["[CLS]", "play", "##ing", "##", "▁"], [True, True, False, False, True]),
        (["<s>", "Ġplay", "ing", "##", "Ġ"], [False, True, False, False, True]),
        (["<s>", "▁play", "ing"], [False, True, False]),
        (["word0", "word1"], [True, True]),
    ],
)
def test_the_vocabulary_tells_where_words_begin(pieces, begins):
    assert begin_words(pieces).tolist() == begins


def test_images_move_by_whole_pixels_up_to_the_share_of_a_side_and_repeat_their_edges():
    image = torch.arange(120.0).view(1, 2, 6, 10)
    keys = branched(torch.tensor(7), 400)
    found = Shift(0.2)({"pixel_values": image.repeat(400, 1, 1, 1)}, keys)["pixel_values"]
    rows, columns = (
        [(torch.arange(size) + by).clamp(0, size - 1) for by in range(-most, most + 1)]
        for size, most in ((6, 1), (10, 2))
    )
    possible = {str(image[0][:, row][:, :, column].tolist()) for row in rows for column in columns}
    assert {str(one.tolist()) for one in found} == possible and len(possible) == 15
    few = Shift(0.2)({"pixel_values": image.repeat(2, 1, 1, 1)}, keys[[7, 300]])["pixel_values"]
    assert torch.equal(few, found[[7, 300]])


@pytest.mark.parametrize("task", ["texts", "images"])
def test_samples_are_changed_while_training_and_evaluated_as_they_are(small, tmp_path, task):
    changes = {"data__augment": "word-dropout", **PRIVATE} if task == "texts" else {"data__augment": "shift", **PRIVATE}
    changes |= {} if task == "texts" else images(tmp_path)
    plain, augmented = (build(small(**changes | own)) for own in ({"data__augment": "none"}, {"data__views": 2}))
    assert plain.evaluate() == augmented.evaluate()
    rows = []
    for experiment in (plain, augmented):
        server = experiment.strategy.begin()
        run_round(experiment, server)
        rows.append(server.row)
    assert not torch.equal(*rows)


def test_views_count_where_batches_are_weighed(small):
    few, many = (build(small(**PRIVATE, data__views=views, data__augment="word-dropout")) for views in (1, 4))
    for experiment in (few, many):
        experiment.engine.token_budget = int(2 * 8 * experiment.train.lengths.mean())
    assert trains_in_one_pass(few, 3) and not trains_in_one_pass(many, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__views": 4}, r"data\.views=4 would all be alike"),
        ({"data__augment": "shift"}, r"'shift' is for task image-classification, got 'classification'"),
        ({"data__augment": "word-dropout", "data__task": "causal-lm"}, "got 'causal-lm': an answer would be one to"),
        ({"data__views": 0}, r"data\.views"),
    ],
)
def test_what_makes_no_view_is_refused_by_name(small, changes, said):
    with pytest.raises(ConfigError, match=said):
        small(**changes)
