"""Ledgers on the disk: what several processes charge adds up, and what was changed by hand is noticed."""

import json
import signal
import subprocess
import sys

import pytest

from ffalora.privacy.accounting import LedgerMismatch, PrivacyBudgetSpent, PrivacyLedger
from ffalora.privacy.data_ledger import DataLedger
from ffalora.privacy.ledger_files import charge_file, load_ledger, resume_file
from ffalora.privacy.sealed import digest_of

#: Charges steps one by one and says so after each, as a noisy result would leave after each. What the disk itself does
#: is not the question here.
WORKER = """
import os, sys
from pathlib import Path
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.accounts import open_accounts
from ffalora.privacy.data_ledger import DataLedger

os.fsync = lambda handle: None
folder, book, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
ledger = PrivacyLedger(0, 50, 0.1, 1.0, 1e-5, 10_000)
records = {"0": lambda: [b"%d" % i for i in range(50)]}
accounts = open_accounts(
    {"0": ledger}, folder, resume=True, is_secure=True, data_ledger=DataLedger(book), records=records, run="test"
)
for _ in range(steps):
    ledger.charge()
    accounts.charge({"0": ledger})
    print("released", flush=True)
"""


def ledger(**terms) -> PrivacyLedger:
    return PrivacyLedger(
        **dict(client_id=0, dataset_size=50, sample_rate=0.1, noise_multiplier=1.0, delta=1e-5, max_steps=10) | terms
    )


def start(folder, book, steps):
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(book), str(steps)], stdout=subprocess.PIPE, text=True
    )


@pytest.mark.long
def test_a_thousand_steps_of_four_processes_on_one_folder_are_all_charged(tmp_path):
    workers = [start(tmp_path / "run", tmp_path / "book", 250) for _ in range(4)]
    released = sum(worker.communicate(timeout=240)[0].count("released") for worker in workers)
    assert released == 1000 and all(worker.returncode == 0 for worker in workers)
    assert load_ledger(tmp_path / "run" / "0.json").steps_taken == 1000
    assert [entry.steps.steps for entry in DataLedger(tmp_path / "book").entries] == [1000]


@pytest.mark.long
def test_processes_on_folders_of_their_own_compose_in_the_data_sets_ledger(tmp_path):
    workers = [start(tmp_path / f"run-{i}", tmp_path / "book", 100) for i in range(2)]
    assert [worker.communicate(timeout=240)[0].count("released") for worker in workers] == [100, 100]
    book = DataLedger(tmp_path / "book")
    assert [entry.steps.steps for entry in book.entries] == [100, 100]
    assert [[part.steps for part in each] for each in book.spent()] == [[200]]


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_no_step_that_a_killed_process_released_is_lost(tmp_path):
    released = 0
    for _ in range(3):
        worker = start(tmp_path / "run", tmp_path / "book", 10_000)
        for _ in range(20):
            released += worker.stdout.readline() == "released\n"
        worker.send_signal(signal.SIGKILL)
        released += worker.communicate(timeout=60)[0].count("released\n")
    assert released >= 60
    assert load_ledger(tmp_path / "run" / "0.json").steps_taken >= released
    assert DataLedger(tmp_path / "book").entries[0].steps.steps >= released


def test_two_ledgers_of_one_file_share_what_is_allowed(tmp_path):
    first, second = ledger(), ledger()
    for _ in range(5):
        for each in (first, second):
            each.charge()
            charge_file(each, tmp_path / "0.json")
    assert second.steps_taken == load_ledger(tmp_path / "0.json").steps_taken == 10
    first.charge()
    with pytest.raises(PrivacyBudgetSpent, match="max_steps=10"):
        charge_file(first, tmp_path / "0.json")
    assert first.steps_taken == load_ledger(tmp_path / "0.json").steps_taken == 10


def test_steps_of_another_noise_are_not_added_to_a_file(tmp_path):
    noisy, faint = ledger(noise_multiplier=4.0), ledger(noise_multiplier=0.6)
    for each in (noisy, faint):
        each.charge()
    charge_file(noisy, tmp_path / "0.json")
    with pytest.raises(LedgerMismatch, match=r"noise_multiplier was 4\.0 and is 0\.6"):
        charge_file(faint, tmp_path / "0.json")
    assert load_ledger(tmp_path / "0.json").steps_taken == 1


def test_secure_steps_are_not_added_to_those_of_a_simulation(tmp_path):
    simulated, real = ledger(), ledger()
    simulated.charge(noise="seeded")
    charge_file(simulated, tmp_path / "0.json")
    with pytest.raises(LedgerMismatch, match="noise='seeded' and asks for one with 'secure'"):
        simulated.charge(noise="secure")
    real.charge(noise="secure")
    with pytest.raises(LedgerMismatch, match="noise was 'seeded' and is 'secure'"):
        charge_file(real, tmp_path / "0.json")
    untold = ledger()
    untold.charge()
    charge_file(untold, tmp_path / "0.json")
    stored = load_ledger(tmp_path / "0.json")
    assert (stored.steps_taken, stored.noise) == (2, "seeded")


def test_a_ledger_of_a_version_that_wrote_down_no_noise_is_read_and_goes_on(tmp_path):
    state = {name: value for name, value in ledger(steps_taken=3).state_dict().items() if name != "noise"}
    (tmp_path / "0.json").write_text(json.dumps(state | {"digest": digest_of(state)}))
    assert load_ledger(tmp_path / "0.json").noise is None
    going = ledger()
    resume_file(going, tmp_path / "0.json")
    going.charge(noise="secure")
    charge_file(going, tmp_path / "0.json")
    assert (load_ledger(tmp_path / "0.json").steps_taken, load_ledger(tmp_path / "0.json").noise) == (4, "secure")


def test_an_edited_ledger_is_refused(tmp_path):
    book = ledger()
    book.charge(6)
    book.save(tmp_path / "0.json")
    held = json.loads((tmp_path / "0.json").read_text())
    (tmp_path / "0.json").write_text(json.dumps(held | {"steps_taken": 2}))
    with pytest.raises(LedgerMismatch, match="changed since it was written"):
        resume_file(ledger(), tmp_path / "0.json")


def test_a_published_digest_confirms_no_guess_of_what_the_ledger_says_of_its_data(tmp_path):
    book = ledger(fingerprint="sha256 of all records, of which somebody knows all but one")
    for name in "01":
        book.save(tmp_path / name)
    held = [json.loads((tmp_path / name).read_text()) for name in "01"]
    assert held[0]["digest"] != held[1]["digest"] and len(bytes.fromhex(held[0]["salt"])) == 16
    assert digest_of(book.state_dict()) not in {each["digest"] for each in held}
    assert load_ledger(tmp_path / "0").state_dict() == book.state_dict()


def test_a_ledger_of_an_earlier_version_is_read_though_its_digest_has_no_random_bits(tmp_path):
    state = ledger().state_dict()
    (tmp_path / "0.json").write_text(json.dumps(state | {"digest": digest_of(state)}))
    assert load_ledger(tmp_path / "0.json").state_dict() == state
