"""Breaks privacy on purpose, one way at a time, and records which tests notice: ``benchmarks/data/mutations.csv``.

Each mutant of ``tests/audits/mutants.py`` is loaded as a plugin of a test session of its own, in a process that is
forked once everything is imported. A mutant that no test notices fails the script. Names as arguments run these alone
and leave the other rows as they are.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks/data/mutations.csv"
#: What is broken, and the tests of its rooms.
MUTANTS = {
    ("noise halved", "clipping removed", "head without noise", "accounting reset each round",
     "poisson replaced by a fixed batch", "steps are not charged", "empty draws add no noise"):
    ("training/test_engine.py", "training/test_refusals.py", "audits/test_audit.py", "privacy/test_accounting.py",
     "privacy/test_sampling.py"),
    ("updates are not clipped",):
    ("privacy/test_client_level.py",
     "audits/test_own.py::test_whole_clients_have_canaries_that_a_missing_clip_betrays"),
    ("clipping norm doubled", "rows counted twice", "collator mixes neighbours", "backward scaled"):
    ("training/test_engine.py::test_clipped_sum_equals_opacus",
     "training/test_sensitivity.py::test_the_probe_catches_what_one_record_moves_too_far"),
    ("dropout masks by position", "dropout keys by position", "dropout masks fresh in each pass",
     "dropout masks repeat every step", "secure dropout from a public seed", "dropout is left to the generator"):
    ("training/test_dropout.py::test_one_record_moves_the_clipped_sum_by_at_most_the_clipping_norm",
     "training/test_dropout.py::test_secure_runs_never_repeat_a_mask_and_seeded_runs_always_do",
     "training/test_dropout.py::test_an_engine_draws_the_same_masks_however_a_batch_is_cut",
     "training/test_dropout.py::test_keys_are_made_only_where_something_drops_out"),
    ("gradients are not compared", "probe leaves nothing out", "probe forgives everything",
     "audit guesses by a coin", "audit ignores delta"):
    ("audits/test_mutants.py::test_a_check_passes_in_the_sound_package_and_fails_in_the_mutant",
     "training/test_sensitivity.py::test_the_probe_catches_what_one_record_moves_too_far"),
    ("prior is amplified", "prior is left out", "prior of a simulation counts"):
    ("privacy/test_prior.py", "privacy/test_accounting.py"),
    ("ledgers are not locked",):
    ("privacy/test_ledger_files.py",),  # four processes at once
    ("charges forget what others charged", "edited ledgers are believed", "edited charges are believed",
     "runs of other folders are not counted"):
    ("privacy/test_ledger_files.py::test_two_ledgers_of_one_file_share_what_is_allowed",
     "privacy/test_ledger_files.py::test_an_edited_ledger_is_refused", "privacy/test_data_ledger.py"),
    ("a site takes what the server asks for", "a site spends what the server asks for",
     "a site trains on whatever is named"):
    ("federated/test_policy.py",),
    ("statement gives the smallest epsilon", "epsilon is rounded to the nearest", "pages call simulations protected",
     "a run is held against the worst baseline"):
    ("report/test_report.py::test_only_a_run_with_secure_noise_is_called_protected", "privacy/test_statement.py",
     "cli/test_cli.py::test_a_report_says_of_each_run_whether_it_was_worth_it",
     "audits/test_mutants.py::test_a_check_passes_in_the_sound_package_and_fails_in_the_mutant"),
    ("samples of a user are clipped apart", "users are cut between physical batches",
     "samples of a user are not limited", "rows are drawn in place of users", "groups are counted as one sample",
     "users may be at several clients", "further owners are forgotten"):
    ("training/test_users.py::test_the_gradients_of_a_user_are_summed_and_then_clipped",
     "training/test_users.py::test_the_probe_leaves_users_out_and_finds_nothing_in_a_sound_engine",
     "training/test_users.py::test_a_user_of_a_thousand_samples_moves_the_sum_by_at_most_c",
     "training/test_users.py::test_users_are_drawn_and_not_their_samples",
     "privacy/test_user_accounting.py::test_a_ledger_of_groups_counts_them_and_remembers_them",
     "federated/test_user_level.py::test_where_samples_are_drawn_each_user_keeps_at_most_k_and_the_ledger_counts_groups",
     "federated/test_user_level.py::test_what_does_not_keep_users_whole_is_refused",
     "federated/test_user_level.py::"
     "test_several_owners_each_count_where_samples_are_drawn_and_are_refused_where_users_are"),
    ("normals of a wrong column", "buffers are used by several clients", "records take part more often than planned",
     "sensitivity of one participation", "steps of an unfinished release are free", "noise begins anew for nothing"):
    ("privacy/test_correlation.py::test_noise_step_by_step_is_the_inverse_of_the_factor_times_normals",
     "privacy/test_correlation.py::"
     "test_sensitivity_is_that_of_the_group_and_the_gradients_which_change_a_release_most",
     "privacy/test_correlation.py::"
     "test_epsilon_is_never_below_a_monte_carlo_accountant_in_fifty_random_configurations",
     "privacy/test_correlation.py::test_steps_count_as_the_releases_that_they_begin",
     "privacy/test_correlation.py::test_noise_that_begins_anew_is_charged_as_another_release",
     "training/test_correlated_noise.py"),
    ("noise of those who drop out counts", "a rounded update may be longer", "clients bring the same noise",
     "too few shares are shown", "shares are counted as gaussian noise"):
    ("privacy/test_distributed.py",),
    ("views are clipped one by one",):
    ("training/test_views.py::test_the_gradients_of_a_sample_s_views_are_averaged_and_then_clipped",
     "training/test_views.py::test_one_record_moves_the_sum_by_at_most_c_whatever_the_number_of_views"),
}  # fmt: skip


class _Failures:
    """A plugin that keeps the names of the tests that failed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            file, _, name = report.nodeid.partition("::")
            self.names.append(f"{Path(file).stem}::{name.partition('[')[0]}")


def failures(mutant: str, tests: Sequence[str]) -> list[str]:
    """Names of the tests that fail in a package with this mutant ('' for the sound one)."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_session, args=(mutant, tests, sender))
    process.start()
    sender.close()
    try:
        return list(dict.fromkeys(receiver.recv()))
    except EOFError:
        raise RuntimeError(f"the test session of {mutant or 'the sound package'!r} ended without a result") from None
    finally:
        process.join()


def _session(mutant: str, tests: Sequence[str], sender: Connection) -> None:
    os.environ["FFALORA_MUTANT"] = mutant
    found = _Failures()
    options = ["-qq", "--tb=no", "--no-summary", "-p", "mutants", "-p", "no:cacheprovider", "-m", "not slow"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", *(str(ROOT / "tests" / name) for name in tests)]
    done = pytest.main(options, plugins=[found])
    if done in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sender.send(found.names)
    sender.close()


def main() -> None:
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT / "tests/audits"))
    import mutants  # what all sessions need is imported once  # noqa: F401

    wanted = sys.argv[1:] or [mutant for group in MUTANTS for mutant in group]
    with open(TABLE, newline="", encoding="utf-8") as file:
        rows = {row["broken"]: row for row in csv.DictReader(file)}
    for group, tests in MUTANTS.items():
        if not set(group) & set(wanted):
            continue
        if unwell := failures("", tests):
            sys.exit(f"the package is not sound without mutants: {unwell}")
        for mutant in (each for each in group if each in wanted):
            found = failures(mutant, tests)
            rows[mutant] = {"broken": mutant, "tests that notice": len(found), "which": " ".join(found)}
            print(f"{mutant:<40} {len(found):>3}  {', '.join(found[:4])}{', …' if len(found) > 4 else ''}", flush=True)
    with open(TABLE, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["broken", "tests that notice", "which"])
        writer.writeheader()
        writer.writerows(rows[mutant] for group in MUTANTS for mutant in group if mutant in rows)
    if survivors := [mutant for mutant in wanted if not int(rows[mutant]["tests that notice"])]:
        sys.exit(f"no test notices: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
