"""The benchmark commands from end to end on a CPU with tiny shapes: they finish, resume, and say what is red."""

import bench_path  # noqa: F401
import cpu
import gate
import gpu
import pytest
import torch
from record import read

QUICK = ["--device", "cpu", "--quick"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_gpu_command_measures_what_the_output_holds_already(tmp_path, monkeypatch, capsys):
    output = tmp_path / "gpu.csv"
    command = [*QUICK, "--section", "device", "ops", "--output", str(output)]
    monkeypatch.setattr(gate, "CASES", {name: gate.CASES[name] for name in ("expand-plain", "clip-flat")})
    assert gpu.main(command) == 0
    rows = read(output)
    ops = [row for row in rows if row.section == "ops"]
    assert {row.case.split()[0] for row in ops} == {"expand_", "backward", "outer", "clip_reduce_", "privatize_step_"}
    assert all(row.status == "ok" and row.gate == "green" and row.ms > 0 and row.bytes > 0 for row in ops)
    assert all(row.device and row.versions and row.commit and row.date for row in rows)
    assert gpu.main(command) == 0
    assert len([row for row in read(output) if row.section == "ops"]) == len(ops)
    assert gpu.main([*command, "--again"]) == 0
    assert len([row for row in read(output) if row.section == "ops"]) == 2 * len(ops)
    assert "best rival" in capsys.readouterr().out


def test_red_gate_is_not_in_the_exit_status(tmp_path, monkeypatch):
    def wrong(backend, device="cpu"):
        raise AssertionError("y: relative error 1")

    monkeypatch.setattr(gate, "CASES", {"expand-plain": wrong})
    output = tmp_path / "gpu.csv"
    assert gpu.main([*QUICK, "--section", "gate", "--output", str(output)]) == 1
    assert read(output)[-1].gate == "red"


@pytest.mark.slow
def test_gpu_command_does_not_run_to_its_end_on_a_cpu(tmp_path):
    output = tmp_path / "gpu.csv"
    assert gpu.main([*QUICK, "--output", str(output)]) == 0
    rows = read(output)
    assert {row.section for row in rows} == {"device", "gate", "ops", "layer", "steps", "memory", "counters"}
    unexpected = [row for row in rows if not row.status.startswith(("ok", "unavailable"))]
    assert not unexpected, unexpected
    assert len(list(tmp_path.glob("*.png"))) == 2  # no memory is measured on a CPU


@pytest.mark.slow
def test_cpu_command_does_not_run_to_its_end(tmp_path):
    output = tmp_path / "cpu.csv"
    assert cpu.main(["--quick", "--output", str(output)]) == 0
    rows = read(output)
    assert {row.section for row in rows} == {"device", "gate", "equal", "job", "ablation", "cohort", "rss"}
    assert all(row.status == "ok" for row in rows), [row for row in rows if row.status != "ok"]
    assert cpu.main(["--quick", "--output", str(output)]) == 0
    measured = ("equal", "job", "ablation", "cohort", "rss")
    assert [r for r in read(output) if r.section in measured] == [r for r in rows if r.section in measured]
