"""A real federation of processes on loopback: equal to the simulator, masked sums, a killed client. Needs Flower."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import CLIENT_LEVEL, PRIVATE

from ffalora.federated.simulate import simulate
from ffalora.files.numbers import rounded_up

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'ffalora[flower]'")
from ffalora.federated.flower.loopback import demonstration_policy, loopback, run_on_loopback

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def furthest(a, b):
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("private", [{}, PRIVATE], ids=["plain", "private"])
def test_processes_on_loopback_end_where_the_simulator_ends(small, tmp_path, private):
    config = small(clients__count=2, federation__rounds=2, federation__one_pass="never", **private)
    run_on_loopback(config, tmp_path / "flower", shared_streams=True, timeout=300, wait=800)
    simulated = simulate(config, tmp_path / "simulated", progress=False)
    assert furthest(adapter_of(tmp_path / "flower"), adapter_of(tmp_path / "simulated")) <= 1e-6
    rows = [json.loads(line) for line in (tmp_path / "flower/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["metrics"] == pytest.approx(simulated.rounds[-1]["metrics"], abs=1e-5)
    payload = simulated.summary["bytes_up_per_client_round"]
    assert 2 * payload < rows[0]["bytes_up"] < 2 * (payload + 600)
    if private:
        ledger = json.loads((tmp_path / "flower/clients/1/1.json").read_text())
        assert ledger["steps_taken"] == 4
        assert rows[-1]["epsilon"] == rounded_up(simulated.rounds[-1]["epsilon"], decimals=2)


@pytest.mark.parametrize("secagg_range", [None, 4.0], ids=["in the open", "masked"])
def test_the_simulation_engine_of_flower_ends_where_the_simulator_ends(small, tmp_path, secagg_range):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'flwr[simulation]'")
    uniform = {"federation__weighting": "uniform", "federation__one_pass": "never"}
    config = small(clients__count=3, federation__rounds=2, **uniform, **PRIVATE)
    run_on_loopback(config, tmp_path / "flower", secagg_range, shared_streams=True, timeout=600, wait=800, engine=True)
    simulated = simulate(config, tmp_path / "simulated", progress=False)
    level = 1e-6 if secagg_range is None else 4.0 * 2**-20
    assert furthest(adapter_of(tmp_path / "flower"), adapter_of(tmp_path / "simulated")) <= level
    rows = [json.loads(line) for line in (tmp_path / "flower/metrics.jsonl").read_text().splitlines()]
    assert not any(row["failed"] for row in rows)
    assert rows[-1]["epsilon"] == rounded_up(simulated.rounds[-1]["epsilon"], decimals=2)
    assert json.loads((tmp_path / "flower/clients/1/1.json").read_text())["steps_taken"] == 4


def test_secure_aggregation_gives_the_average_within_its_quantisation(small, tmp_path):
    config = small(
        clients__count=3, federation__rounds=1, federation__one_pass="never", federation__weighting="uniform"
    )
    run_on_loopback(config, tmp_path / "flower", secagg_range=4.0, timeout=300, wait=800)
    simulate(config, tmp_path / "simulated", progress=False)
    masked, plain = adapter_of(tmp_path / "flower"), adapter_of(tmp_path / "simulated")
    assert 0 < furthest(masked, plain) <= 4.0 * 2**-21
    assert all(value.isfinite().all() for value in masked.values()) and any(value.any() for value in masked.values())


def test_sites_bring_the_noise_and_the_server_learns_their_sum_alone(small, tmp_path):
    changes = {"privacy__noise_at": "clients", "federation__participation": 1.0, "federation__rounds": 2}
    config = small(clients__count=3, federation__one_pass="never", **CLIENT_LEVEL | changes)
    run_on_loopback(config, tmp_path / "flower", shared_streams=True, timeout=300, wait=800)
    simulate(config, tmp_path / "simulated", progress=False)
    assert furthest(adapter_of(tmp_path / "flower"), adapter_of(tmp_path / "simulated")) <= 1e-5
    rows = [json.loads(line) for line in (tmp_path / "flower/metrics.jsonl").read_text().splitlines()]
    assert not rows[-1]["failed"] and set(rows[-1]["epsilon_per_client"]) == {"0", "1", "2"}


def children_of(process):
    """Ids of the processes that a process started, and their command lines."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(place.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            found[int(place.name)] = (parent, place.joinpath("cmdline").read_text())
        except OSError:
            continue
    return {number: command for number, (parent, command) in found.items() if parent == process}


@pytest.mark.parametrize("which", ["flower.trainer", "flower.supernode"])
def test_a_killed_client_leaves_the_round_to_the_others_has_paid_and_comes_back(small, tmp_path, which):
    config = small(clients__count=2, federation__rounds=5, federation__one_pass="never", **PRIVATE)
    output = tmp_path / "flower"
    with loopback(output, 2, demonstration_policy(config, shared_streams=True)) as federation:
        federation.submit(config, output, None, 100)
        deadline = time.monotonic() + 300
        while not (output / "clients/1/1.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        (victim,) = [n for n, line in children_of(federation.processes["site-1"].pid).items() if which in line]
        os.kill(victim, signal.SIGKILL)
        federation.wait_for(output / "summary.json", 500)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["round"] == 5 and {"0", "1"} <= rows[-1]["epsilon_per_client"].keys()
    assert not rows[-1]["failed"], "it takes part again"
    missed = sum(any("client 1" in said or "node" in said for said in row["failed"]) for row in rows)
    charged = json.loads((output / "clients/1/1.json").read_text())["steps_taken"]
    assert 2 * (5 - missed) <= charged <= 10
    assert torch.isfinite(torch.cat([value.flatten() for value in adapter_of(output).values()])).all()
