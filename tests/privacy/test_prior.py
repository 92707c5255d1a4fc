"""What earlier runs spent keeps everything that its ε depends on, and refuses what does not compose."""

import json

import pytest

from ffalora.files.numbers import to_json
from ffalora.privacy.accountants import epsilon, noise_multiplier_for
from ffalora.privacy.accounting import LedgerMismatch, PrivacyLedger
from ffalora.privacy.prior import read_prior
from ffalora.privacy.spent import Spent, joint_adjacency, largest
from ffalora.privacy.statement import PrivacyStatement

DELTA = 1e-5


def ledger(**terms) -> PrivacyLedger:
    return PrivacyLedger(
        **dict(client_id=0, dataset_size=100, sample_rate=0.1, noise_multiplier=1.0, delta=DELTA, max_steps=50) | terms
    )


def run(folder, noise="secure", **terms):
    """The statement of a run of two clients that took 10 and 20 steps."""
    books = [ledger(client_id=i, **terms) for i in range(2)]
    for i, book in enumerate(books):
        book.charge(10 + 10 * i)
    folder.mkdir()
    (folder / "privacy.json").write_text(to_json(PrivacyStatement.from_ledgers(books, noise, 1.0).as_dict()))
    return folder


def test_a_shuffled_prior_is_not_amplified(tmp_path):
    shuffled = ledger(sampling="shuffled", noise_multiplier=2.0)
    shuffled.charge(50)
    shuffled.save(tmp_path / "before.json")
    total = ledger(prior=read_prior([tmp_path / "before.json"]))
    assert total.epsilon() == shuffled.epsilon() > 5 * epsilon(2.0, 0.1, 50, DELTA)
    total.charge()
    assert total.epsilon() > shuffled.epsilon() and total.adjacency == "zero-out one sample"
    (stated,) = read_prior([run(tmp_path / "run", sampling="shuffled")])
    assert (stated.sampling, stated.adjacency, stated.steps) == ("shuffled", "replace", 20)


def test_a_prior_of_whole_clients_is_refused_for_samples():
    client_level = Spent(1.0, 0.1, 10, unit="client")
    with pytest.raises(LedgerMismatch, match="client and sample do not compose"):
        ledger(prior=(client_level,))
    with pytest.raises(LedgerMismatch, match="client and sample do not compose"):
        ledger(unit="client", prior=(Spent(1.0, 0.1, 10),))
    assert ledger(unit="client", prior=(client_level,)).epsilon() > 0


def test_a_run_of_several_clients_counts_as_the_one_that_spent_most(tmp_path):
    folder = run(tmp_path / "run")
    for path in (folder, folder / "privacy.json"):
        assert read_prior([path], is_secure=True) == (Spent(1.0, 0.1, 20),)
    assert read_prior([folder, folder]) == (Spent(1.0, 0.1, 20),) * 2


def test_what_a_prior_had_as_prior_is_kept(tmp_path):
    folder = run(tmp_path / "second", prior=read_prior([run(tmp_path / "first")]))
    assert sum(part.steps for part in read_prior([folder])) == 40


def test_ledgers_of_a_run_without_a_statement_are_read(tmp_path):
    ledgers = tmp_path / "run" / "checkpoint" / "ledgers"
    ledgers.mkdir(parents=True)
    for i, steps in enumerate((3, 7)):
        ledger(client_id=i, steps_taken=steps).save(ledgers / f"{i}.json")
    (tmp_path / "run" / "partition.json").write_text("[]")  # as a run leaves beside them from its beginning
    assert read_prior([tmp_path / "run"]) == read_prior([ledgers]) == (Spent(1.0, 0.1, 7),)


def test_the_ledger_of_a_training_is_found_beside_the_adapter_that_it_saved(tmp_path):
    ledger(steps_taken=7).save(tmp_path / "privacy_ledger.json")
    for other in ("adapter_config.json", "trainer_state.json"):
        (tmp_path / other).write_text("{}")
    assert read_prior([tmp_path]) == (Spent(1.0, 0.1, 7),)


def test_a_simulation_before_a_secure_run_is_refused(tmp_path):
    folder = run(tmp_path / "run", noise="seeded")
    assert read_prior([folder]) == (Spent(1.0, 0.1, 20),)
    with pytest.raises(LedgerMismatch, match="of a simulation"):
        read_prior([folder], is_secure=True)


def test_the_ledger_of_a_simulation_is_refused_before_a_secure_run_wherever_it_lies(tmp_path):
    folder = tmp_path / "run" / "checkpoint" / "ledgers"
    folder.mkdir(parents=True)
    book = ledger()
    book.charge(5, noise="seeded")
    book.save(folder / "0.json")
    for path in (folder / "0.json", folder, tmp_path / "run"):
        assert read_prior([path]) == (Spent(1.0, 0.1, 5),)
        with pytest.raises(LedgerMismatch, match=r"0\.json is of a simulation"):
            read_prior([path], is_secure=True)


def test_a_ledger_that_does_not_say_its_noise_counts_as_secure_with_a_warning(tmp_path, caplog):
    for noise in (None, "secure"):
        book = ledger()
        book.charge(5, noise=noise)
        book.save(tmp_path / f"{noise}.json")
        assert read_prior([tmp_path / f"{noise}.json"], is_secure=True) == (Spent(1.0, 0.1, 5),)
    assert [record.getMessage().count("None.json does not say") for record in caplog.records] == [1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"clients": [{"epsilon": 1}], "simulation": false}'])
def test_a_file_that_does_not_say_what_was_spent_is_refused(tmp_path, content):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(LedgerMismatch, match=r"file\.json"):
        read_prior([tmp_path / "file.json"])


def test_a_run_without_privacy_and_an_empty_folder_are_refused(tmp_path):
    (tmp_path / "privacy.json").write_text(json.dumps(PrivacyStatement.not_private().as_dict()))
    with pytest.raises(LedgerMismatch, match="without privacy"):
        read_prior([tmp_path / "privacy.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(LedgerMismatch, match=r"neither privacy\.json nor ledgers"):
        read_prior([tmp_path / "empty"])


def test_noise_calibrated_after_earlier_runs_keeps_the_target():
    prior = (Spent(1.0, 0.1, 10),)
    sigma = noise_multiplier_for(4.0, DELTA, 0.1, 50, prior=prior)
    assert 0.999 * 4.0 <= ledger(noise_multiplier=sigma, prior=prior).final_epsilon() <= 4.0
    with pytest.raises(ValueError, match="target_epsilon=1 is spent"):
        noise_multiplier_for(1.0, DELTA, 0.1, 50, prior=prior)


def test_parts_of_one_adjacency_keep_it_and_others_meet_under_zero_out():
    secret, shuffled = Spent(1.0, 0.1, 1, adjacency="add/remove"), Spent(1.0, 0.1, 1, "shuffled", adjacency="replace")
    assert joint_adjacency([secret, secret]) == "add/remove" and joint_adjacency([shuffled]) == "replace"
    assert joint_adjacency([secret, shuffled]) == joint_adjacency([Spent(1.0, 0.1, 1), secret]) == "zero-out"


def test_the_largest_of_disjoint_histories_bounds_each():
    histories = [[Spent(1.0, 0.1, 5), Spent(1.0, 0.1, 5)], [Spent(1.0, 0.1, 7), Spent(2.0, 0.1, 3)]]
    assert largest(histories) == (Spent(1.0, 0.1, 10), Spent(2.0, 0.1, 3))


def test_delta_above_one_over_the_samples_is_refused_and_a_large_one_is_remarked():
    with pytest.raises(ValueError, match=r"delta=0\.2 is above one over its 37 samples"):
        ledger(dataset_size=37, delta=0.2)
    near = PrivacyStatement.from_ledgers([ledger(delta=5e-3)], "secure", 1.0)
    far = PrivacyStatement.from_ledgers([ledger(delta=1e-3)], "secure", 1.0)
    assert "is large for 100 samples" in near.to_text() and "is large" not in far.to_text()


def test_a_secret_size_is_add_remove_and_never_said(tmp_path):
    said = PrivacyStatement.from_ledgers([ledger(size_is_public=False)], "secure", 1.0)
    assert said.adjacency.startswith("add/remove one sample") and "stays secret" in said.to_text()
    public = PrivacyStatement.from_ledgers([ledger()], "secure", 1.0)
    assert public.adjacency.startswith("zero-out one sample") and "public" in public.adjacency
    with pytest.raises(ValueError, match="needs sampling='poisson'"):
        ledger(size_is_public=False, sampling="shuffled", noise_multiplier=9.0)
    assert ledger(size_is_public=False).covers(99) and not ledger(size_is_public=False).covers(101)
    assert not ledger().covers(99)


def test_a_simulations_first_line_says_that_nothing_is_protected():
    said = PrivacyStatement.from_ledgers([ledger(steps_taken=5)], "seeded", 1.0)
    first = said.to_text().splitlines()[0]
    assert first.startswith("SIMULATION, nothing is protected") and said.simulation
    secure = PrivacyStatement.from_ledgers([ledger(steps_taken=5)], "secure", 1.0)
    assert secure.to_text().startswith("Privacy of this run: ε = ") and not secure.simulation


def test_clients_are_called_by_their_names():
    said = PrivacyStatement.from_ledgers(
        [ledger(label="St. Mary's", steps_taken=1), ledger(client_id=1)], "secure", 1.0
    )
    assert [client.name for client in said.clients] == ["St. Mary's", "1"] and "\n  St. Mary's" in said.to_text()
