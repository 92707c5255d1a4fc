"""The one command of a borrowed machine: its stages share the time, keep what they said, and bring what is missing."""

import sys
import time
from zipfile import ZipFile

import bench_path  # noqa: F401
import bringup
import gate
import pytest
import torch
from record import read


@pytest.fixture
def sitting(tmp_path):
    return bringup.BringUp(tmp_path, "cpu", True, 2, {})


def test_wheels_are_unpacked_where_their_package_is_missing_and_nowhere_else(tmp_path):
    for name, package in (("there-1-py3-none-any.whl", "json"), ("missing-1-py3-none-any.whl", "not_installed_here")):
        with ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr(f"{package}/__init__.py", "")
            wheel.writestr(f"{package}-1.dist-info/METADATA", "")
    assert bringup.unpack_missing(tmp_path, tmp_path / "site") == ["missing-1-py3-none-any.whl"]
    assert (tmp_path / "site" / "not_installed_here" / "__init__.py").exists()
    assert bringup.unpack_missing(None, tmp_path / "site") == []


def test_a_stage_that_ends_early_leaves_its_time_to_those_after_it(sitting, monkeypatch):
    given = {}

    def stage(name):
        def run(_, seconds):
            given[name] = seconds
            return sitting.run(name, [sys.executable, "-c", f"print('{name} was here')"], seconds)

        return run

    monkeypatch.setattr(bringup, "RUN", {name: stage(name) for name in bringup.STAGES})
    bringup.run_stages(sitting, list(bringup.STAGES), 1000.0)
    assert given["extension"] == pytest.approx(120, rel=0.05)
    assert given["tune"] > 0.5 * 1000 and (sitting.output / "gate.log").read_text() == "gate was here\n"
    assert {status for status, _ in sitting.results.values()} == {0}


def test_a_stage_that_runs_out_of_time_is_ended_and_said(sitting):
    assert sitting.run("gate", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5) == bringup.TIMED_OUT


def test_what_a_stage_started_ends_with_it(sitting):
    mark = sitting.output / "still there"
    late = f"import pathlib, time; time.sleep(1.5); pathlib.Path({str(mark)!r}).touch()"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {late!r}]); time.sleep(60)"
    assert sitting.run("gate", [sys.executable, "-c", f"import time; {start}"], 1.0) == bringup.TIMED_OUT
    time.sleep(1.0)
    assert not mark.exists()


@pytest.mark.parametrize(("free", "expected"), [(22, 7), (79, 16), (1, 1)], ids=["24 GB", "80 GB", "a full card"])
def test_no_more_processes_check_than_the_card_has_memory_for(monkeypatch, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 2**30, 80 * 2**30))
    assert gate.fitting(torch.device("cuda"), 16) == expected
    assert gate.fitting(torch.device("cpu"), 16) == 16


def test_gate_runs_cases_by_name_and_keeps_its_row(tmp_path, monkeypatch):
    names = ("expand-plain", "clip-flat")
    monkeypatch.setattr(gate, "CASES", {name: gate.CASES[name] for name in names})
    output = tmp_path / "gpu.csv"
    assert gate.main(["--device", "cpu", "--only", *names, "--output", str(output)]) == 0
    (row,) = read(output)
    assert (row.section, row.gate, row.config) == ("gate", "green", {"failed": []})


def test_a_process_of_the_gate_that_dies_makes_it_red(monkeypatch):
    monkeypatch.setattr(gate, "__file__", "-c")  # in place of the script: python -c --device …
    failures, count = gate.shared_out("cpu", True, 2)
    assert len(failures) == 2 and count == 0


def test_a_commit_is_named_where_there_is_no_checkout(monkeypatch, tmp_path):
    import record

    monkeypatch.setattr(record, "__file__", str(tmp_path / "benchmarks" / "record.py"))
    monkeypatch.setenv("FFALORA_COMMIT", "abc123")
    record.commit.cache_clear()
    try:
        assert record.commit() == "abc123"
    finally:
        record.commit.cache_clear()
