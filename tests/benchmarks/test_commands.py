"""The benchmark commands from end to end on a CPU with tiny shapes: they finish, resume, and say what is red."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import bench_path
import cpu
import gate
import gpu
import peers
import plan
import pytest
import torch
from record import read
from session import Session, run_sections
from workload import roberta

from ffalora_kernels.ops import SCHEMAS

QUICK = ["--device", "cpu", "--quick"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.long
def test_gpu_command_leaves_out_what_the_output_holds_already(tmp_path, monkeypatch, capsys):
    output = tmp_path / "gpu.csv"
    command = [*QUICK, "--section", "device", "ops", "--output", str(output)]
    monkeypatch.setattr(plan, "QUICK", plan.QUICK[1:])
    monkeypatch.setattr(gate, "CASES", {name: gate.CASES[name] for name in ("expand-plain", "clip-flat")})
    assert gpu.main(command) == 0
    rows = read(output)
    ops = [row for row in rows if row.section == "ops"]
    assert {row.case.split()[0] for row in ops} == set(SCHEMAS) | {"adapted_product"}
    assert all(row.status == "ok" and row.gate == "green" and row.ms > 0 and row.bytes > 0 for row in ops)
    assert all(row.device and row.versions and row.commit and row.date for row in rows)
    assert gpu.main(command) == 0
    assert len([row for row in read(output) if row.section == "ops"]) == len(ops)
    assert gpu.main([*command, "--again"]) == 0
    assert len([row for row in read(output) if row.section == "ops"]) == 2 * len(ops)
    assert "best rival" in capsys.readouterr().out


def test_red_gate_is_in_the_exit_status(tmp_path, monkeypatch):
    def wrong(backend, device="cpu"):
        raise AssertionError("y: relative error 1")

    monkeypatch.setattr(gate, "CASES", {"expand-plain": wrong})
    output = tmp_path / "gpu.csv"
    assert gpu.main([*QUICK, "--section", "gate", "--output", str(output)]) == 1
    assert read(output)[-1].gate == "red"


def small_model(device, quick):
    work = roberta(device, 32, 1, 4, 100, samples=4, batch=4, length=8, rank=4)
    return [(work, ["floor", "peft, a frozen", "opacus hooks, a frozen", "ours"])]


def out_of_memory(work):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.long
def test_benchmark_goes_on_when_a_rival_runs_out_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "models", small_model)
    monkeypatch.setattr(gate, "CASES", {"expand-plain": gate.CASES["expand-plain"]})
    monkeypatch.setitem(peers.STEPS, "opacus hooks, a frozen", out_of_memory)
    output = tmp_path / "gpu.csv"
    assert gpu.main([*QUICK, "--section", "steps", "--output", str(output)]) == 0
    status = {row.provider: row.status for row in read(output) if row.section == "steps"}
    assert status.pop("opacus hooks, a frozen") == "out of memory"
    assert set(status) == {"floor", "peft, a frozen", "ours"} and set(status.values()) == {"ok"}


@pytest.mark.long
def test_who_runs_out_of_memory_beside_others_is_measured_alone(tmp_path, monkeypatch):
    made: list[str] = []

    def hungry(work):
        if made:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ours(work)

    def counted(work):
        made.append("peft")
        provider = peft(work)
        weakref.finalize(provider, made.remove, "peft")
        return provider

    ours, peft = peers.STEPS["ours"], peers.STEPS["peft, a frozen"]
    monkeypatch.setattr(plan, "models", small_model)
    monkeypatch.setattr(gate, "CASES", {"expand-plain": gate.CASES["expand-plain"]})
    monkeypatch.setitem(peers.STEPS, "ours", hungry)
    monkeypatch.setitem(peers.STEPS, "peft, a frozen", counted)
    output = tmp_path / "gpu.csv"
    assert gpu.main([*QUICK, "--section", "steps", "--output", str(output)]) == 0
    rows = {row.provider: row for row in read(output) if row.section == "steps"}
    assert rows["ours"].status == "ok" and rows["ours"].config["alone"] and rows["ours"].ms > 0
    assert rows["ours"].error == rows["ours"].error, "the result of the second try was not checked"
    assert "alone" not in rows["peft, a frozen"].config


@pytest.mark.long
def test_benchmark_goes_on_without_packages_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "models", small_model)
    monkeypatch.setattr(gate, "CASES", {"expand-plain": gate.CASES["expand-plain"]})
    for name in ("transformers", "peft"):
        monkeypatch.setitem(sys.modules, name, None)
    output = tmp_path / "gpu.csv"
    assert gpu.main([*QUICK, "--section", "steps", "--output", str(output)]) == 0
    status = {row.provider: row.status for row in read(output) if row.section == "steps"}
    assert status["floor"] == "unavailable: transformers is not installed"
    assert status["peft, a frozen"] == "unavailable: peft is not installed"
    assert status["ours"].startswith("unavailable")


def test_benchmark_runs_from_a_checkout_that_is_not_installed():
    """``-S`` leaves out what makes an editable installation importable; torch comes by the path."""
    environment = {**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1])}
    program = (
        f"import sys; sys.path.insert(0, {str(bench_path.BENCHMARKS)!r}); import checkout, ffalora_kernels, ffalora"
    )
    subprocess.run([sys.executable, "-S", "-c", program], env=environment, check=True)


def test_sections_leave_each_other_their_share_of_the_time(tmp_path, monkeypatch):
    now, ends = [0.0], {}
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def spending(name, seconds):
        def section(session):
            ends[name] = session.end
            now[0] += seconds

        return section

    session = Session(torch.device("cpu"), tmp_path / "rows.csv", True, False, end=100.0)
    run = {name: spending(name, seconds) for name, seconds in (("gate", 20), ("a", 60), ("b", 1), ("c", 1))}
    run_sections(session, run, ["gate", "a", "b", "c"], {"a": 0.5, "b": 0.25, "c": 0.25})
    assert ends["gate"] == 100.0
    assert ends["a"] == 60.0, "half of the 80 seconds that the gate left"
    assert ends["b"] == 90.0, "half of the 20 seconds that are left to the last two"
    assert ends["c"] == 100.0, "what b did not use"


@pytest.mark.slow
def test_gpu_command_runs_to_its_end_on_a_cpu(tmp_path):
    output = tmp_path / "gpu.csv"
    assert gpu.main([*QUICK, "--output", str(output)]) == 0
    rows = read(output)
    assert {row.section for row in rows} == {"device", "gate", "ops", "layer", "steps", "memory", "counters"}
    unexpected = [row for row in rows if not row.status.startswith(("ok", "unavailable"))]
    assert not unexpected, unexpected
    assert len(list(tmp_path.glob("*.png"))) == 2  # no memory is measured on a CPU


@pytest.mark.slow
def test_cpu_command_runs_to_its_end(tmp_path):
    output = tmp_path / "cpu.csv"
    assert cpu.main(["--quick", "--output", str(output)]) == 0
    rows = read(output)
    measured = ("equal", "job", "ablation", "cohort", "language", "runs", "rss")
    assert {row.section for row in rows} == {"device", "gate", *measured}
    unexpected = [row for row in rows if row.status != "ok" and not row.status.startswith("unavailable: opake is not")]
    assert not unexpected, unexpected
    assert cpu.main(["--quick", "--output", str(output)]) == 0
    assert [r for r in read(output) if r.section in measured] == [r for r in rows if r.section in measured]
