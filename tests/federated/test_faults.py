"""What a private run leaves behind when it is killed, the disk is full, or its folder cannot be written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import CLIENT_LEVEL, PRIVATE

from ffalora.adapters import CheckpointError
from ffalora.federated import simulate as simulate_module
from ffalora.federated.checkpoint import read_checkpoint
from ffalora.federated.simulate import simulate
from ffalora.files.atomic import write_atomically
from ffalora.privacy.accounting import LedgerMismatch, PrivacyLedger
from ffalora.privacy.accounts import Accounts
from ffalora.report import read_runs
from ffalora.runs.folder import CHECKPOINT, LEDGERS, METRICS, rows_of

_FULL = Path("/dev/full")


def _kills(*arguments: str) -> list[dict]:
    script = Path(__file__).with_name("kills.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, env=environment, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _check_reports(reports: list[dict], modes: set[str]) -> None:
    assert {report["mode"] for report in reports} == modes
    for report in reports:
        assert report.get("bit_identical", True)
        if "secure" in report["mode"]:
            assert report["charged_steps"] >= report["noisy_results"]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("mode", ["seeded", "secure"])
def test_a_killed_run_resumes_to_the_same_bits_and_keeps_every_charge(mode):
    reports = _kills("--mode", mode, "--kills", "2", "--rounds", "4")
    _check_reports(reports, {mode})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills_change_no_bit_and_forget_no_charge():
    reports = _kills("--kills", "10", "--runs", "2")
    _check_reports(reports, {"seeded", "secure", "client-seeded", "client-secure"})
    assert sum(report["kills"] for report in reports) >= 50


class _Killed(BaseException):
    pass


def _stop_after(monkeypatch, charges: int) -> None:
    """The next run stops dead right after its ledgers were written for the n-th time."""
    real, count = Accounts.charge, [0]

    def charge(accounts, ledgers):
        real(accounts, ledgers)
        count[0] += 1
        if count[0] == charges:
            raise _Killed

    monkeypatch.setattr(Accounts, "charge", charge)


@pytest.mark.parametrize("private,counted", [(PRIVATE, 1 + 2 * 2), (CLIENT_LEVEL, 1 + 2)])
def test_steps_charged_before_the_first_checkpoint_are_kept(private, counted, small, tmp_path, monkeypatch):
    config = small(**private, privacy__noise="secure")
    with monkeypatch.context() as patch:
        _stop_after(patch, charges=1)
        with pytest.raises(_Killed):
            simulate(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    with pytest.raises(CheckpointError, match="holds a run already"):
        simulate(config, tmp_path / "run", progress=False)
    simulate(config, tmp_path / "run", resume=True, progress=False)
    ledgers = [json.loads(p.read_text()) for p in (tmp_path / "run" / LEDGERS).glob("*.json")]
    assert [ledger["steps_taken"] for ledger in ledgers] == [counted] * len(ledgers)
    rows = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert len({row["epsilon"] for row in rows}) < 3  # the killed step was charged: the last round is not covered


def test_a_missing_ledger_is_refused(small, tmp_path, monkeypatch):
    config = small(**PRIVATE, privacy__noise="secure")
    with monkeypatch.context() as patch:
        _stop_after(patch, charges=3)
        with pytest.raises(_Killed):
            simulate(config, tmp_path / "run", progress=False)
    (tmp_path / "run" / LEDGERS / "1.json").unlink()
    with pytest.raises(LedgerMismatch, match="without it ε is unknown"):
        simulate(config, tmp_path / "run", resume=True, progress=False)


@pytest.mark.skipif(not _FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("victim", [CHECKPOINT, "adapter/head.safetensors", "privacy.json"])
def test_a_full_disk_leaves_the_last_checkpoint_whole_and_is_explained(victim, small, tmp_path, monkeypatch):
    config, run = small(**PRIVATE), tmp_path / "run"
    simulate(small(**PRIVATE), tmp_path / "whole", progress=False)
    real = simulate_module.run_round

    def fill_the_disk_in_round_two(experiment, server):
        if server.round == 1:
            target = run / victim
            target.parent.mkdir(parents=True, exist_ok=True)
            target.with_name(target.name + ".partial").symlink_to(_FULL)
        return real(experiment, server)

    with monkeypatch.context() as patch:
        patch.setattr(simulate_module, "run_round", fill_the_disk_in_round_two)
        with pytest.raises(OSError, match=r"[Nn]o space left on device.*intact") as error:
            simulate(config, run, progress=False)
    assert error.value.filename.endswith(victim)
    header, _ = read_checkpoint(run / CHECKPOINT)
    assert header["round"] >= 1
    simulate(config, run, resume=True, progress=False)
    for name in (CHECKPOINT, "adapter/adapter_model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_disk_that_fills_within_a_row_leaves_the_rows_before_it_and_is_explained(small, tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    config, run = small(**PRIVATE), tmp_path / "run"
    whole = simulate(config, tmp_path / "whole", progress=False)
    real, limits = simulate_module.run_round, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk_in_round_two(experiment, server):
        row = real(experiment, server)
        if server.round == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((run / METRICS).stat().st_size + 20, limits[1]))
        return row

    try:
        with monkeypatch.context() as patch:
            patch.setattr(simulate_module, "run_round", fill_the_disk_in_round_two)
            with pytest.raises(OSError, match=r"File too large.*intact") as error:
                simulate(config, run, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename.endswith(METRICS)
    assert [row["round"] for row in rows_of((run / METRICS).read_bytes())[0]] == [1]
    resumed = simulate(config, run, resume=True, progress=False)
    assert [row["metrics"] for row in resumed.rounds] == [row["metrics"] for row in whole.rounds]


@pytest.mark.parametrize("torn", [b'{"round": 3, "metr', '{"round": 3, "client": "Zürich'.encode()[:-4]])
def test_a_row_that_a_kill_tore_is_run_again(torn, small, tmp_path, monkeypatch):
    config, run = small(), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(simulate_module.Run, "is_over", lambda self: self.server.round == 2)
        simulate(config, run, progress=False)
    with open(run / METRICS, "ab") as file:
        file.write(torn)
    assert len(read_runs([run])[0].rounds) == 2
    simulate(config, run, resume=True, progress=False)
    assert [row["round"] for row in rows_of((run / METRICS).read_bytes())[0]] == [1, 2, 3]


@pytest.mark.skipif(not _FULL.exists(), reason="needs /dev/full")
def test_a_step_whose_charge_could_not_be_written_never_happens(small, tmp_path):
    """Secure noise: no charge on the disk, no noisy result."""
    config, run = small(**PRIVATE, privacy__noise="secure"), tmp_path / "run"
    (run / LEDGERS).mkdir(parents=True)
    (run / LEDGERS / "0.json.partial").symlink_to(_FULL)
    with pytest.raises(OSError, match="No space left"):
        simulate(config, run, resume=True, progress=False)
    assert not (run / CHECKPOINT).exists()
    assert not (run / LEDGERS / "0.json").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_an_unwritable_folder_is_explained(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "ledger.json").write_text("before")
    folder.chmod(0o500)
    user = os.geteuid()
    try:
        if user == 0:
            os.chmod(tmp_path, 0o755)
            os.seteuid(65534)
        with pytest.raises(OSError, match=r"cannot write: Permission denied.*folder that can be written") as error:
            write_atomically(folder / "ledger.json", b"after")
    finally:
        os.seteuid(user)
        folder.chmod(0o700)
    assert error.value.filename == str(folder / "ledger.json")
    assert (folder / "ledger.json").read_text() == "before"
    assert not (folder / "ledger.json.partial").exists()


def test_a_file_in_the_place_of_a_folder_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write") as error:
        PrivacyLedger(0, 10, 0.5, 1.0, 1e-5, 5).save(tmp_path / "file" / "ledger.json")
    assert error.value.filename.endswith("ledger.json")
