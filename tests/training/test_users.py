"""A user is the unit: all that is drawn of one is clipped together, or counted as a group."""

import dataclasses
import os
from functools import partial

import bench_path  # noqa: F401
import numpy as np
import pytest
import sensitivity as cases
import torch
from ranks import on_ranks
from tiny import ledger, losses, tiny_data, tiny_engine

from ffalora.data.users import Owners
from ffalora.privacy.noise import SeededNoise
from ffalora.privacy.sampling import SeededDraw, records_of
from ffalora.training.batches import grouped_batches
from ffalora.training.participant import Participant
from ffalora.training.private_gradient import PrivateGradient
from ffalora.training.sensitivity import FLOAT32_LIMIT, probe_sensitivity
from ffalora.training.step import LogicalStep
from ffalora.training.workers import ALONE

#: 40 samples of 10 users, who own 1 to 12 of them.
WHOSE = np.repeat(np.arange(10), [1, 1, 2, 2, 3, 3, 4, 5, 7, 12])
USERS = Owners.of([f"user {i}" for i in WHOSE])


def engine_of(owners=USERS, k=5, draws="users", shuffled=True, **changes):
    privacy = {"unit": "user", "samples_per_user": k, "draws": draws} | changes.pop("privacy", {})
    return tiny_engine(privacy=privacy, owners=owners, **changes)


def one_client(owners=USERS, users=10, batch=4, group=1, samples=None, **terms):
    mine = np.arange(len(owners)) if samples is None else samples
    count = users if group == 1 else len(mine)
    return Participant(0, mine, ledger(0, count, batch, unit="user", group=group, **terms))


def sums(engine, adapters, drawn, client=None):
    step = LogicalStep(engine, [client or one_client()], adapters.state()[None], None, 0.0, None, None)
    results = step.passes([np.asarray(drawn)], engine.token_budget)
    return step.total[0].clone(), *results.read(), results.rows, results.plan


def gradient_of(engine, adapters, samples):
    """Σ of the samples' gradients by autograd, in the columns of the state."""
    inputs, targets = engine.data.collate(samples)
    engine.model.zero_grad()
    losses(engine.model(**inputs), targets).sum().backward()
    row = torch.zeros(adapters.layout.width, dtype=torch.float64)
    for place in adapters.layout.places:
        row[place.start : place.start + place.size] = adapters.layout.parameter(place).grad.double().reshape(-1)
    return row


@pytest.mark.parametrize("packed_budget", [1000, 25])
def test_the_gradients_of_a_user_are_summed_and_then_clipped(packed_budget):
    engine, adapters = engine_of(token_budget=packed_budget)
    drawn = np.flatnonzero(np.isin(WHOSE, [0, 4, 8]))
    total, _, norms, _, plan = sums(engine, adapters, drawn)
    expected = torch.zeros_like(total)
    for user in (0, 4, 8):
        own = gradient_of(engine, adapters, np.flatnonzero(WHOSE == user))
        expected += own * min(1.0, engine.privacy.max_grad_norm / float(own.norm()))
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    assert len(norms) == 3
    assert all(len(set(WHOSE[drawn[batch]])) == 1 for batch in plan.batches) or packed_budget == 1000


@pytest.mark.long
@pytest.mark.parametrize(
    "config",
    [
        {}, {"draws": "samples", "k": 3}, {"trained": "both", "head": "trained"}, {"token_budget": 30},
        {"privacy": {"clipping": "per-layer"}}, {"privacy": {"clipping": "automatic"}},
    ],
    ids=str,
)  # fmt: skip
def test_the_probe_leaves_users_out_and_finds_nothing_in_a_sound_engine(config):
    engine, adapters = engine_of(**config)
    for layer in adapters.layers.values():
        layer.p_dropout = 0.2
    samples, group = None, 1
    if config.get("draws") == "samples":
        samples, group = np.flatnonzero(np.arange(40) - np.searchsorted(WHOSE, WHOSE) < 3), 3
    client = one_client(group=group, samples=samples)
    found = probe_sensitivity(engine, [client], adapters.state()[None], records=4)
    assert found.holds and found.unit == "user" and "one user moves" in str(found)
    assert found.largest.ratio > (0.5 if group == 1 else 0.3)
    assert {move.record for move in found.moves} <= set(range(10))


@pytest.mark.parametrize("k", [8, 1000])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_user_of_a_thousand_samples_moves_the_sum_by_at_most_c(k, dropout):
    whose = np.concatenate([np.zeros(1000, int), np.arange(1, 31)])
    owners = Owners.of(whose.tolist())
    engine, adapters = engine_of(owners, k, data=tiny_data(1030, longest=6), token_budget=600)
    for layer in adapters.layers.values():
        layer.p_dropout = dropout
    client = one_client(owners, users=31, batch=31)
    drawn = engine.sample(client)
    assert int((whose[drawn] == 0).sum()) == min(k, 1000) and len(drawn) == min(k, 1000) + 30
    with_user, without = (sums(engine, adapters, part, client)[0] for part in (drawn, drawn[whose[drawn] != 0]))
    moved = float((with_user - without).norm()) / engine.privacy.max_grad_norm
    assert 0.5 < moved <= FLOAT32_LIMIT


@pytest.mark.long
@pytest.mark.parametrize("number", range(12))
def test_one_user_moves_the_sum_by_at_most_c_in_random_cases(number):
    assert cases.ratio(dataclasses.replace(cases.Case.random(number), unit="user")) <= FLOAT32_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("number", range(12, 200))
def test_one_user_moves_the_sum_by_at_most_c_in_all_random_cases(number):
    assert cases.ratio(dataclasses.replace(cases.Case.random(number), unit="user")) <= FLOAT32_LIMIT


def test_users_are_drawn_and_not_their_samples():
    engine, _ = engine_of(k=5)
    client, counts, steps = one_client(batch=4), np.zeros(10), 400
    for number in range(steps):
        client.steps_taken = number
        drawn = engine.sample(client)
        held = np.bincount(WHOSE[drawn], minlength=10)
        assert set(held) <= {0, *np.minimum(np.bincount(WHOSE), 5)}, "all of a user, or none"
        counts += held > 0
    assert np.abs(counts / steps - 0.4).max() < 4 * np.sqrt(0.24 / steps)


def test_whose_samples_are_drawn_depends_on_no_other_user():
    engine, _ = engine_of(k=5)
    seen = []
    for without in (None, 3):
        mine = np.flatnonzero(WHOSE != without)
        client = one_client(users=10 - (without is not None), batch=100, samples=mine)
        drawn = engine.sample(client)
        seen.append([drawn[WHOSE[drawn] == user].tolist() for user in (0, 2)])
    assert seen[0] == seen[1]


def test_samples_of_a_user_with_many_are_drawn_afresh_in_every_step():
    engine, _ = engine_of(k=5)
    client, seen = one_client(batch=100), set()
    for number in range(40):
        client.steps_taken = number
        seen |= set(engine.sample(client)[WHOSE[engine.sample(client)] == 9].tolist())
    assert seen == set(np.flatnonzero(WHOSE == 9).tolist())


def test_noise_and_divisor_are_those_of_users():
    engine, adapters = engine_of(privacy={"noise_multiplier": 2.0}, optimizer={"lr": 1.0})
    client = one_client(batch=4, sigma=2.0)
    step = LogicalStep(engine, [client], adapters.state()[None], None, 0.0, None, None)
    assert client.ledger.expected_batch == pytest.approx(4)
    assert float(step.noise_std) == pytest.approx(2.0 * engine.privacy.max_grad_norm, rel=1e-6)


def test_a_run_is_the_same_however_it_is_cut_and_counts_a_step_for_everybody():
    states = []
    for budget in (10_000, 40):
        engine, adapters = engine_of(token_budget=budget)
        states.append(adapters.state()[None])
        client = one_client()
        report = engine.train([client], states[-1], 3)
        assert client.ledger.steps_taken == 3 and len(report.losses) == len(report.norms) == len(report.rows)
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def test_several_clients_share_a_pass_and_keep_their_users_apart():
    engine, adapters = engine_of(token_budget=10_000)
    clients = []
    for i, users in enumerate((range(5), range(5, 10))):
        mine = np.flatnonzero(np.isin(WHOSE, users))
        clients.append(Participant(i, mine, ledger(i, 5, 3, unit="user")))
    together = adapters.state().repeat(2, 1)
    engine.train([dataclasses.replace(c, ledger=dataclasses.replace(c.ledger)) for c in clients], together, 2)
    for i, client in enumerate(clients):
        alone = adapters.state()[None]
        engine.train([client], alone, 2)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_user_is_compared_with_autograd_s():
    engine, adapters = engine_of()
    assert engine.probe.recomputes
    engine.train([one_client(batch=100)], adapters.state()[None], 2)
    assert len(engine.probe._compared) == 2


@pytest.mark.parametrize(
    ("draws", "terms", "said"),
    [
        ("users", {"unit": "sample"}, "ledger has unit='sample', but users are protected"),
        ("users", {"users": 40}, "for dataset_size=40, but it holds 10 users"),
        ("samples", {}, "counts group=1, but privacy.draws='samples' with samples_per_user=5 makes groups of 5"),
        ("samples", {"group": 5}, "a user owns 12 of its samples, more than samples_per_user=5"),
        ("users", {"owners": None}, "whose its samples are is not known"),
    ],
)
def test_a_ledger_that_does_not_count_users_as_they_are_drawn_is_refused(draws, terms, said):
    engine, adapters = engine_of(terms.pop("owners", USERS), draws=draws)
    client = one_client(**{"group": 1} | {k: v for k, v in terms.items() if k != "unit"})
    if "unit" in terms:
        client.ledger = ledger(0, 10, 4)
    with pytest.raises(ValueError, match=said):
        engine.train([client], adapters.state()[None], 1)
    assert client.ledger.steps_taken == 0


def test_records_of_several_owners_are_refused_where_users_are_summed():
    owners = Owners.of([["a", "b"], "a", *"b" * 38])
    engine, adapters = engine_of(owners)
    with pytest.raises(ValueError, match=r"1 of 40 records have several owners .* set privacy.draws to samples"):
        engine.train([one_client(owners, users=2, batch=2)], adapters.state()[None], 1)


def own_loop(**terms):
    """A private loop of one's own, by users, and how it cuts and collates what it draws."""
    engine, adapters = engine_of()
    book = ledger(0, terms.pop("count", 10), 4, **{"unit": "user"} | terms)
    private = PrivateGradient(
        engine.model, adapters, losses, book, engine.privacy.max_grad_norm, SeededNoise(1), users=WHOSE
    )

    def physical(drawn):
        plan = grouped_batches(engine.data.lengths[drawn], WHOSE[drawn], 60)
        return [(drawn[batch], *engine.data.collate(drawn[batch])) for batch in plan.batches]

    return engine, adapters, private, physical


def test_a_loop_of_one_s_own_clips_users_as_the_engine_does():
    engine, adapters, private, physical = own_loop()
    draw = SeededDraw(3)
    drawn = records_of(draw(0, 0, 10, 0.9), WHOSE, 5, partial(draw.some, 0, 0))
    total, _, norms = private.clipped_sum(0, physical(drawn))
    torch.testing.assert_close(total[0], sums(engine, adapters, drawn)[0], rtol=1e-4, atol=1e-6)
    assert len(norms) == len(set(WHOSE[drawn]))
    gradient, loss = private.step(0, physical(drawn))
    assert gradient.shape == (adapters.layout.width,) and loss > 0 and private.ledger.steps_taken == 1


def test_a_user_who_is_cut_in_a_loop_of_one_s_own_is_refused_before_anything_is_computed():
    engine, _, private, _ = own_loop()
    whole = np.flatnonzero(np.isin(WHOSE, [8, 9]))
    for parts in (np.array_split(whole, 3), [whole[::-1][np.argsort(np.arange(len(whole)) % 2)]]):
        with pytest.raises(ValueError, match=r"user \d are in two physical batches, or not side by side"):
            private.clipped_sum(0, [(part, *engine.data.collate(part)) for part in parts])


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"unit": "sample", "count": 40}, "unit='sample', but users are given"),
        ({"count": 40}, "for dataset_size=40, but it holds 10 users"),
        ({"count": 40, "group": 4}, "a user owns 12 samples, more than group=4"),
    ],
)
def test_a_ledger_that_does_not_fit_the_users_of_a_loop_is_refused(terms, said):
    with pytest.raises(ValueError, match=said):
        own_loop(**terms)


def shared_run(workers):
    """State after two steps, and whose samples were differentiated in this process, step by step."""
    engine, adapters = engine_of(workers=ALONE)
    client, seen, collate = one_client(batch=6), [], engine.data.collate
    engine.look_ahead([client])
    engine.workers = workers
    engine.data.collate = lambda samples: (seen.append(set(WHOSE[samples].tolist())), collate(samples))[1]
    state = adapters.state()[None]
    for _ in range(2):
        seen.append(None)
        engine.train([client], state, 1)
    return state, seen


def users_by_step(seen):
    steps = []
    for one in seen:
        steps = [*steps, set()] if one is None else [*steps[:-1], steps[-1] | one]
    return steps


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_share_users_and_never_cut_one():
    state, seen = shared_run(ALONE)
    found = on_ranks(2, shared_run)
    for theirs, _ in found:
        torch.testing.assert_close(theirs, state, rtol=1e-4, atol=1e-5)
    for whole, first, second in zip(*map(users_by_step, [seen, found[0][1], found[1][1]]), strict=True):
        assert first | second == whole and not first & second
