"""Processes that share a client's steps end where one process ends, add the noise once, and exchange one sum a step."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks
from tiny import participants, tiny_engine

from ffalora.privacy.clipping import AdaptiveQuantileClipping
from ffalora.privacy.noise import SecureNoise
from ffalora.privacy.sampling import SystemDraw
from ffalora.training.workers import (
    ALONE,
    LeadStopped,
    Workers,
    WorkersLost,
    check_same_state,
    drawn_alike,
    joined,
)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SIZES = (2, 3)
CASES = {
    "private": ({"token_budget": 40}, 1),
    "private, two clients, each layer clipped by itself": ({"privacy": {"clipping": "per-layer"}}, 2),
    "private, both factors, adamw": ({"optimizer": {"name": "adamw", "lr": 0.01}, "trained": "both"}, 1),
    "plain, two clients": ({"privacy": {"unit": "none", "noise_multiplier": None}}, 2),
    "adaptive": ({"privacy": {"clipping": "adaptive"}}, 2),
    "draws that leave processes without a sample": ({"optimizer": {"batch_size": 1}}, 1),
}


def _run(name, workers=ALONE, steps=3):
    """State, samples differentiated in this process, report, steps counted and clipping norms."""
    options, clients = CASES[name]
    engine, adapters = tiny_engine(**options)
    engine.look_ahead(participants(clients))  # each process does
    engine.workers, seen = workers, []
    collate = engine.data.collate
    engine.data.collate = lambda samples: (seen.append(len(samples)), collate(samples))[1]
    state = adapters.state().repeat(clients, 1)
    cohort = participants(clients, batch=engine.optimizer.batch_size)
    if name == "adaptive":
        for one in cohort:
            one.adaptive = AdaptiveQuantileClipping(1.0, 8.0, engine.privacy.max_grad_norm)
    report = engine.train(cohort, state, steps)
    numbers = int(report.samples.sum()), float(report.losses.mean()), float(report.norms.median())
    return state, sum(seen), numbers, [p.ledger.steps_taken for p in cohort], [p.clipping_norm(0.5) for p in cohort]


def _secure_engine(workers, charged=None):
    """Secure noise and draws, which differ between processes unless they agree."""
    engine, adapters = tiny_engine()
    privacy = engine.privacy.model_copy(update={"noise": "secure"})
    return type(engine)(
        engine.model, adapters, engine.data, engine.losses, engine.optimizer, privacy, SecureNoise(), SystemDraw(),
        workers=workers, charged=charged,
    ), adapters  # fmt: skip


def _rms(found, expected):
    return float((found - expected).double().square().mean().sqrt() / expected.double().square().mean().sqrt())


@pytest.fixture(scope="module")
def processes():
    """What each of two and each of three processes found."""
    return {size: on_ranks(size, lambda workers: {name: _run(name, workers) for name in CASES}) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_processes_end_where_one_ends(processes, name, size):
    state, _, numbers, steps, norms = _run(name)
    found = [each[name] for each in processes[size]]
    for theirs, _, counted, taken, clipped in found:
        assert _rms(theirs, state) <= 1e-5 and taken == steps
        assert torch.equal(theirs, found[0][0]) and clipped == found[0][4]
        assert clipped == pytest.approx(norms, rel=1e-6)
        assert counted == pytest.approx(numbers, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("size", SIZES)
def test_each_process_computes_its_own_share_of_the_samples_only(processes, size):
    for name in CASES:
        counts = [found[name][1] for found in processes[size]]
        assert sum(counts) == _run(name)[1] and max(counts) - min(counts) <= 3


@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 5))
def test_shares_hold_each_sample_once_and_about_as_many_tokens(lengths, size):
    lengths = np.array(lengths, dtype=np.int64)
    shares = [Workers(rank, size).share(lengths) for rank in range(size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(lengths)))
    tokens = np.array([lengths[own].sum() for own in shares])
    assert tokens.max() - tokens.min() <= lengths.max(initial=0)


def _count_collectives(workers, steps, name):
    """How often each collective is called while ``steps`` steps are taken, and the shapes of what is summed."""
    calls, shapes, real = Counter(), Counter(), {}
    for kind in ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list", "all_gather", "barrier"):

        def counted(*arguments, kind=kind, **options):
            calls[kind] += 1
            if kind == "all_reduce":
                shapes[tuple(arguments[0].shape)] += 1
            return real[kind](*arguments, **options)

        real[kind] = getattr(dist, kind)
        setattr(dist, kind, counted)
    _run(name, workers, steps)
    for kind, function in real.items():
        setattr(dist, kind, function)
    return calls, shapes


@pytest.mark.parametrize("name,more", [("private", {}), ("plain, two clients", {}), ("adaptive", {(2,): 4})])
def test_a_logical_batch_costs_one_sum_over_all_processes_and_nothing_else(name, more):
    found = on_ranks(2, lambda workers: [_count_collectives(workers, steps, name) for steps in (1, 5)])
    for (few, _), (many, shapes) in found:
        sums = Counter(many)
        sums.subtract(few)
        assert {kind: count for kind, count in sums.items() if count} == {"all_reduce": 4 + sum(more.values())}
        assert len(shapes) == 1 + len(more) and max(shapes, key=len) == (CASES[name][1], shapes_width(name))


def shapes_width(name):
    return tiny_engine(**CASES[name][0])[1].layout.width


def test_secure_draws_noise_and_clipping_norms_agree_and_the_first_process_alone_adds_noise_and_charges():
    def train(workers):
        charges, noise = [], []
        engine, adapters = _secure_engine(workers, lambda cohort: charges.append(cohort[0].ledger.steps_taken))
        add, SecureNoise.add_ = SecureNoise.add_, lambda self, *a: (noise.append(1), add(self, *a))
        state, (client,) = adapters.state()[None], participants(1)
        client.adaptive = AdaptiveQuantileClipping(client.ledger.noise_multiplier, 8.0, engine.privacy.max_grad_norm)
        report = engine.train([client], state, steps=3)
        return state, client.adaptive.max_grad_norm, client.ledger.steps_taken, charges, len(noise), report.samples

    (first, norm, steps, charges, noise, samples), *others = on_ranks(3, train)
    assert steps == 3 and charges == [1, 2, 3] and noise == 3
    for state, theirs, counted, none, silent, passed in others:
        assert torch.equal(state, first) and (theirs, counted) == (norm, 3)
        assert none == [] and silent == 0 and torch.equal(passed, samples)


def test_a_key_makes_processes_draw_alike_and_every_step_anew():
    draw, other = SystemDraw(bytes(32)), SystemDraw(bytes([1] * 32))
    assert np.array_equal(draw(1, 5, 1000, 0.3), SystemDraw(bytes(32))(1, 5, 1000, 0.3))
    different = [draw(1, 6, 1000, 0.3), draw(2, 5, 1000, 0.3), other(1, 5, 1000, 0.3)]
    assert not any(np.array_equal(draw(1, 5, 1000, 0.3), each) for each in different)
    counts = [len(draw(0, step, 1000, 0.3)) for step in range(200)]
    assert abs(np.mean(counts) - 300) < 5 * (1000 * 0.3 * 0.7 / 200) ** 0.5
    assert "key" not in repr(draw)


def _keys_of_two_trainings(workers):
    first = drawn_alike(SystemDraw(), workers)
    return first.key, drawn_alike(first, workers).key


def test_every_training_draws_by_a_key_of_its_own():
    (first, second), other = on_ranks(2, _keys_of_two_trainings)
    assert other == (first, second) and first is not None and first != second


def test_a_process_that_dies_ends_the_others_with_every_release_charged():
    def train(workers):
        charged, released = [], []
        engine, adapters = _secure_engine(workers, lambda cohort: charged.append(1))

        def then_die(step):
            released.append(1)
            if workers.rank == 1 and step == 1:
                os._exit(9)

        with pytest.raises(WorkersLost, match=r"one of them ended or was killed.*--resume"):
            engine.train(participants(1), adapters.state()[None], steps=5, on_step=then_die)
        return len(charged), len(released)

    first, dead, third = on_ranks(3, train)
    assert dead is None and first == (3, 2) and third == (0, 2)


def test_what_the_first_process_refuses_ends_all():
    def refuse(workers):
        def no():
            raise ValueError("not so")

        with pytest.raises(ValueError if workers.leads else LeadStopped, match="not so"):
            workers.from_lead(no)
        return workers.from_lead(lambda: workers.rank)

    assert on_ranks(2, refuse) == [0, 0]


def test_processes_that_start_from_different_states_are_refused():
    def start(workers):
        with pytest.raises(ValueError, match="1 of 2 processes start from another state than process"):
            check_same_state(workers, torch.full((1, 2), float(workers.rank)))

    on_ranks(2, start)


def test_without_torchrun_a_process_works_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as workers:
        assert workers == ALONE and workers.leads and not dist.is_initialized()
    total = torch.ones(2)
    workers.add_up_(total)
    assert total.tolist() == [1, 1] and workers.gather(5) == [5] and workers.same_for_all(6) == 6
