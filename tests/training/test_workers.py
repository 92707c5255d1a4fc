"""Two processes that share a client's steps end where one process ends, and add the noise once."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent))
from tiny import participants, tiny_engine

from ffalora.privacy.clipping import AdaptiveQuantileClipping
from ffalora.privacy.noise import SecureNoise
from ffalora.privacy.sampling import SystemDraw
from ffalora.training.workers import Workers, check_same_state

CASES = {
    "private": ({"token_budget": 40}, 1),
    "private, both factors, adamw": ({"optimizer": {"name": "adamw", "lr": 0.01}, "trained": "both"}, 1),
    "plain, two clients": ({"privacy": {"unit": "none", "noise_multiplier": None}}, 2),
}


def _run(options, clients, workers=None):
    """State, samples differentiated in this process, report and steps counted."""
    engine, adapters = tiny_engine(**options)
    engine.look_ahead(participants(clients))  # each process does
    engine.workers, seen = workers, []
    collate = engine.data.collate
    engine.data.collate = lambda samples: (seen.append(len(samples)), collate(samples))[1]
    state, cohort = adapters.state().repeat(clients, 1), participants(clients)
    report = engine.train(cohort, state, steps=3)
    numbers = int(report.samples.sum()), float(report.losses.mean()), float(report.norms.median())
    return state, sum(seen), numbers, [p.ledger.steps_taken for p in cohort]


def _run_secure(workers):
    """Secure noise and draws, which differ between processes unless they agree."""
    engine, adapters = tiny_engine()
    privacy = engine.privacy.model_copy(update={"noise": "secure"})
    engine = type(engine)(
        engine.model, adapters, engine.data, engine.losses, engine.optimizer, privacy, SecureNoise(), SystemDraw(),
        workers=workers,
    )  # fmt: skip
    state, (client,) = adapters.state()[None], participants(1)
    client.adaptive = AdaptiveQuantileClipping(client.ledger.noise_multiplier, 8.0, engine.privacy.max_grad_norm)
    engine.train([client], state, steps=2)
    return state, client.adaptive.max_grad_norm


def _worker(rank, size, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    try:
        workers = Workers(rank, size)
        found = {name: _run(*case, workers) for name, case in CASES.items()}
        found["secure"] = _run_secure(workers)
        try:
            check_same_state(workers, torch.full((1, 2), float(rank)))
        except ValueError as error:
            found["parted"] = str(error)
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(_worker, (2, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_where_one_ends(processes, name):
    state, _, (counted, loss, norm), steps = _run(*CASES[name])
    first, second = (found[name] for found in processes)
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], state, rtol=1e-5, atol=1e-7)
    assert first[2] == pytest.approx((counted, loss, norm), rel=1e-4, nan_ok=True) and first[3] == steps


@pytest.mark.parametrize("name", CASES)
def test_each_process_computes_its_own_half_of_the_samples_only(processes, name):
    _, samples, _, _ = _run(*CASES[name])
    first, second = (found[name][1] for found in processes)
    assert first + second == samples and abs(first - second) <= 0.4 * samples


def test_processes_agree_on_cryptographic_draws_noise_and_clipping_norms(processes):
    (first, first_norm), (second, second_norm) = (found["secure"] for found in processes)
    assert torch.equal(first, second) and first_norm == second_norm


def test_processes_that_start_from_different_states_are_refused(processes):
    assert all("1 of 2 processes start from another state" in found["parted"] for found in processes)
