"""The ledger of a named data set: runs that share records compose, seeded ones are never charged, and it cannot be
talked out of what it knows.
"""

import json
import os
import shutil
from functools import partial

import pytest

from ffalora.files.numbers import rounded_up
from ffalora.privacy.accountants import epsilon
from ffalora.privacy.accounting import LedgerMismatch, PrivacyBudgetSpent, PrivacyLedger
from ffalora.privacy.accounts import open_accounts
from ffalora.privacy.data_ledger import DataLedger, find_data_ledger
from ffalora.privacy.ledger_table import format_ledger, total_spent
from ffalora.privacy.statement import PrivacyStatement

RATE, SIGMA, DELTA = 0.1, 1.0, 1e-5


class Site:
    """Runs on one data set, each in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.runs = folder, 0

    @property
    def book(self):
        return DataLedger(self.folder / "book")

    def open(self, records, folder=None, resume=False, secure=True, **terms):
        self.runs += folder is None
        folder = self.folder / (folder or f"run-{self.runs}")
        ledger = PrivacyLedger(**dict(client_id=0, dataset_size=len(records), sample_rate=RATE,
                                      noise_multiplier=SIGMA, delta=DELTA, max_steps=20) | terms)  # fmt: skip
        accounts = open_accounts(
            {"0": ledger}, folder, resume, secure, data_ledger=self.book, records={"0": lambda: records}, run="run"
        )
        return ledger, accounts

    def take(self, steps, records, **how):
        ledger, accounts = self.open(records, **how)
        for _ in range(steps):
            ledger.charge()
            accounts.charge({"0": ledger})
        return ledger


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def people(*numbers):
    return [b"person %d" % i for i in numbers]


def test_runs_that_share_records_compose(site):
    first = site.take(20, people(*range(50)))
    second = site.take(20, people(*range(40, 90)))
    assert first.epsilon() == epsilon(SIGMA, RATE, 20, DELTA)
    assert second.epsilon() == epsilon(SIGMA, RATE, 40, DELTA)
    assert second.final_epsilon() == second.epsilon()


def test_one_edited_row_renews_nothing(site):
    records = people(*range(50))
    site.take(20, records)
    assert site.take(20, [b"another", *records[1:]]).epsilon() == epsilon(SIGMA, RATE, 40, DELTA)


def test_runs_on_disjoint_records_do_not_touch_each_other(site):
    site.take(20, people(*range(50)))
    assert site.take(20, people(*range(50, 99))).epsilon() == epsilon(SIGMA, RATE, 20, DELTA)


def test_what_disjoint_runs_spent_counts_once_for_a_run_on_all_of_them(site):
    for i in range(3):
        site.take(20, people(*range(10 * i, 10 * i + 10)))
    assert site.take(1, people(*range(30))).epsilon() == epsilon(SIGMA, RATE, 21, DELTA)


class Siblings:
    """Clients of one run, whose steps are charged together."""

    def __init__(self, site, *held):
        self.ledgers = {str(i): PrivacyLedger(i, 50, RATE, SIGMA, DELTA, 20) for i in range(len(held))}
        records = {str(i): partial(people, *each) for i, each in enumerate(held)}
        self.accounts = open_accounts(
            self.ledgers, site.folder / "run", False, True, data_ledger=site.book, records=records
        )

    def step(self):
        for ledger in self.ledgers.values():
            ledger.charge()
        self.accounts.charge(self.ledgers)

    @property
    def epsilons(self):
        return [ledger.epsilon() for ledger in self.ledgers.values()]


def test_clients_of_one_run_that_hold_the_same_record_compose(site):
    run = Siblings(site, range(50), range(49, 90), range(100, 150))
    for _ in range(5):
        run.step()
    assert run.epsilons == [epsilon(SIGMA, RATE, steps, DELTA) for steps in (10, 10, 5)]
    assert total_spent(site.book) == (rounded_up(epsilon(SIGMA, RATE, 10, DELTA)), DELTA)
    assert "other runs or clients spent on the same records" in str(
        PrivacyStatement.from_ledgers(list(run.ledgers.values()), "secure", 1.0).caveats
    )


def test_a_budget_is_of_a_record_however_many_clients_of_a_run_hold_it(site):
    site.book.set_budget(epsilon(SIGMA, RATE, 15, DELTA), DELTA)
    run = Siblings(site, range(50), range(50), range(50))
    for _ in range(5):
        run.step()
    assert [ledger.steps_left for ledger in run.ledgers.values()] == [0, 0, 0]
    assert run.epsilons == [epsilon(SIGMA, RATE, 15, DELTA)] * 3
    with pytest.raises(PrivacyBudgetSpent):
        run.step()


def test_a_budget_that_ends_in_the_middle_of_a_step_of_several_clients_is_not_exceeded(site):
    site.book.set_budget(epsilon(SIGMA, RATE, 4, DELTA), DELTA)
    run = Siblings(site, range(50), range(50), range(50))
    run.step()
    with pytest.raises(PrivacyBudgetSpent):
        run.step()
    assert total_spent(site.book) == (rounded_up(epsilon(SIGMA, RATE, 4, DELTA)), DELTA)


def test_steps_of_a_run_in_progress_count_for_another(site):
    runs = [site.open(people(*range(50))) for _ in range(2)]
    for _ in range(5):
        for ledger, accounts in runs:
            ledger.charge()
            accounts.charge({"0": ledger})
    assert [ledger.epsilon() for ledger, _ in runs] == [epsilon(SIGMA, RATE, steps, DELTA) for steps in (9, 10)]


def test_a_seeded_run_is_written_down_and_never_charged(site):
    site.take(20, people(*range(50)), secure=False)
    assert [(entry.noise, entry.steps.steps) for entry in site.book.entries] == [("seeded", 0)]
    assert site.take(20, people(*range(50))).epsilon() == epsilon(SIGMA, RATE, 20, DELTA)
    assert "seeded" in format_ledger(site.book)


def test_deleting_a_run_does_not_forget_what_it_spent(site):
    site.take(20, people(*range(50)), folder="run")
    for file in (site.folder / "run").iterdir():
        file.unlink()
    assert site.take(20, people(*range(50)), folder="run").epsilon() == epsilon(SIGMA, RATE, 40, DELTA)


def test_a_ledger_file_turned_back_or_removed_is_noticed_on_resume(site):
    site.take(5, people(*range(50)), folder="run")
    file = site.folder / "run" / "0.json"
    old = file.read_text()
    site.take(3, people(*range(50)), folder="run", resume=True)
    file.write_text(old)
    with pytest.raises(LedgerMismatch, match="counts 5 steps, but the ledger of its data set was charged 8"):
        site.open(people(*range(50)), folder="run", resume=True)
    file.unlink()
    with pytest.raises(LedgerMismatch, match="counts 0 steps"):
        site.open(people(*range(50)), folder="run", resume=True)


def test_of_two_copies_of_a_run_that_train_at_once_the_second_is_refused_before_it_releases_anything(site):
    site.take(2, people(*range(50)), folder="run")
    shutil.copytree(site.folder / "run", site.folder / "copy")
    runs = [site.open(people(*range(50)), folder=name, resume=True) for name in ("run", "copy")]
    (first, accounts), (second, copied) = runs
    for _ in range(3):
        first.charge()
        accounts.charge({"0": first})
    second.charge()
    with pytest.raises(LedgerMismatch, match=r"copy/0\.json counts 2 steps, but .* charged 5 .*a copy of its folder"):
        copied.charge({"0": second})
    assert site.book.entries[0].steps.steps == 5


def test_a_resumed_run_does_not_count_itself_twice(site):
    site.take(5, people(*range(50)), folder="run")
    again = site.take(5, people(*range(50)), folder="run", resume=True)
    assert again.epsilon() == epsilon(SIGMA, RATE, 10, DELTA)
    assert len(site.book.entries) == 1


def test_a_spent_budget_ends_a_run_and_refuses_the_next(site, caplog):
    site.book.set_budget(epsilon(SIGMA, RATE, 30, DELTA), DELTA)
    site.take(20, people(*range(50)))
    ledger, accounts = site.open(people(*range(50)))
    assert ledger.steps_left == 10 and "enough for 10 more of its steps" in caplog.text
    for _ in range(10):
        ledger.charge()
        accounts.charge({"0": ledger})
    with pytest.raises(PrivacyBudgetSpent, match="budget of its data set allows 10"):
        ledger.charge()
    with pytest.raises(PrivacyBudgetSpent, match="ffalora epsilon --ledger book"):
        site.open(people(*range(50)))
    assert site.take(20, people(*range(50, 99))).steps_taken == 20


def test_a_budget_that_another_run_spends_meanwhile_ends_this_one(site):
    site.book.set_budget(epsilon(SIGMA, RATE, 12, DELTA), DELTA)
    ledger, accounts = site.open(people(*range(50)))
    site.take(10, people(*range(50)))
    for _ in range(2):
        ledger.charge()
        accounts.charge({"0": ledger})
    with pytest.raises(PrivacyBudgetSpent):
        ledger.charge()
        accounts.charge({"0": ledger})
    assert ledger.steps_taken == 2


def test_clients_and_samples_on_the_same_records_are_refused(site):
    site.take(5, people(*range(50)))
    with pytest.raises(LedgerMismatch, match="client and sample do not compose"):
        site.open(people(*range(50)), unit="client")


def test_records_are_not_to_be_told_from_what_the_ledger_holds(site):
    site.take(1, people(*range(50)))
    held = b"".join(file.read_bytes() for file in (site.folder / "book").rglob("*") if file.is_file())
    assert b"person" not in held
    other = DataLedger(site.folder / "other")
    assert other._log.salted(b"person 1") != site.book._log.salted(b"person 1")


@pytest.mark.parametrize("damage", ["edit", "remove", "reorder", "foreign"])
def test_a_log_that_was_changed_is_refused(site, damage):
    site.take(4, people(*range(50)))
    log = site.folder / "book" / "charges.jsonl"
    lines = log.read_text().splitlines()
    if damage == "edit":
        lines[2] = lines[2].replace('"0": 1', '"0": 0')
    elif damage == "remove":
        del lines[2]
    elif damage == "reorder":
        lines[0], lines[1] = lines[1], lines[0]
    else:
        lines.append(json.dumps({"record": {"budget": [1e6, 1e-5]}, "seal": "00"}))
    log.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerMismatch, match="was changed, or one before it removed"):
        DataLedger(site.folder / "book")


def test_a_record_that_a_killed_writer_never_finished_is_dropped(site):
    ledger, accounts = site.open(people(*range(50)))
    with open(site.folder / "book" / "charges.jsonl", "ab") as file:
        file.write(b'{"record": {"charge": {"0"')
    ledger.charge()
    accounts.charge({"0": ledger})
    assert site.book.entries[0].steps.steps == 1


def test_a_kill_while_the_key_is_made_leaves_a_ledger_that_can_be_used(site, monkeypatch):
    def killed(handle):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.fsync", killed)
        DataLedger(site.folder / "book")
    assert not (site.folder / "book" / "key").exists()
    (site.folder / "book" / "key").touch(0o600)  # as earlier versions left it
    site.take(1, people(*range(50)))
    assert site.book.entries[0].steps.steps == 1
    if os.name == "posix":
        assert (site.folder / "book" / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_that_was_emptied_is_refused_where_there_is_a_log(site):
    site.take(1, people(*range(50)))
    (site.folder / "book" / "key").write_text("")
    with pytest.raises(LedgerMismatch, match="holds no key"):
        DataLedger(site.folder / "book")


def test_a_log_without_its_key_is_refused(site):
    site.take(1, people(*range(50)))
    (site.folder / "book" / "key").unlink()
    with pytest.raises(LedgerMismatch, match="key is missing"):
        DataLedger(site.folder / "book")


def test_the_table_says_who_spent_what_and_what_is_left(site):
    site.book.set_budget(8, 1e-6)
    site.take(20, people(*range(50)))
    text = format_ledger(site.book)
    assert "20 / 20" in text and "secure" in text and "Budget: ε = 8 at δ = 1e-06" in text
    assert float(text.split("it was part of: ε = ")[1].split()[0]) >= epsilon(SIGMA, RATE, 20, 1e-6)


def test_the_total_is_of_single_records_whichever_runs_each_was_part_of(site, monkeypatch):
    site.take(20, people(*range(50)))
    site.take(20, people(*range(50, 90)), sample_rate=0.2)
    assert total_spent(site.book)[0] == rounded_up(epsilon(SIGMA, 0.2, 20, DELTA))
    site.take(20, people(49))  # of the first run, too
    both = max(epsilon(SIGMA, 0.2, 20, DELTA), epsilon(SIGMA, RATE, 40, DELTA))
    assert total_spent(site.book)[0] == rounded_up(both)
    monkeypatch.setattr("ffalora.privacy.data_ledger.MOST_HISTORIES", 2)
    assert total_spent(site.book)[0] > rounded_up(both)  # a bound, where there are many


def test_a_ledger_has_a_name_in_the_folder_of_ledgers_or_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("FFALORA_LEDGERS", str(tmp_path / "ledgers"))
    assert find_data_ledger(None, "data/Patients 2024.csv").folder == tmp_path / "ledgers" / "Patients-2024"
    assert find_data_ledger("patients", "x").folder == tmp_path / "ledgers" / "patients"
    assert find_data_ledger(str(tmp_path / "here"), "x").folder == tmp_path / "here"
