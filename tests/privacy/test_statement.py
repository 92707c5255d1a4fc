"""The privacy statement says what it must, in words and as JSON."""

import json
import math

import pytest

from ffalora.files.numbers import rounded_up
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.statement import PrivacyStatement


def ledgers(**changes) -> list[PrivacyLedger]:
    books = []
    for client_id, size in enumerate((2700, 500)):
        terms = {
            "sample_rate": 64 / size,
            "noise_multiplier": 1.0,
            "delta": 1e-5,
            "max_steps": 20,
            "accountant": "rdp",
            **changes,
        }
        books.append(PrivacyLedger(client_id=client_id, dataset_size=size, **terms))
        books[-1].charge(10)
    return books


def test_statement_holds_every_term():
    books = ledgers()
    said = PrivacyStatement.from_ledgers(books, noise="seeded", max_grad_norm=1.0)
    text, record = said.to_text(), json.loads(json.dumps(said.as_dict(), allow_nan=False))
    for word in (
        "unit",
        "sample",
        "zero-out one sample",
        "Poisson",
        "DP-SGD",
        "rdp",
        "1e-05",
        "simulation",
        "subtract",
    ):
        assert word in text, word
    for word in (
        "hyper-parameters",
        "number of records",
        "expected batch",
        "weights",
        "Metrics computed on private data",
    ):
        assert word in text, word
    assert record["max_epsilon"] == max(book.epsilon() for book in books) == books[1].epsilon()
    assert [c["epsilon"] for c in record["clients"]] == [book.epsilon() for book in books]
    assert record["clients"][0]["final_epsilon"] > record["clients"][0]["epsilon"]
    assert f"{rounded_up(record['max_epsilon']):.4g}" in text


def test_shuffled_loader_is_stated_without_amplification():
    said = PrivacyStatement.from_ledgers(
        ledgers(sampling="shuffled", noise_multiplier=30.0), noise="secure", max_grad_norm=1.0
    )
    assert "no amplification" in said.to_text() and "replace one sample" in said.to_text()
    assert "subtract" not in said.to_text() and "cryptographic" in said.to_text()


def test_client_level_statement_claims_client_level_alone():
    book = PrivacyLedger(0, 100, 0.1, 2.0, 1e-3, 50, unit="client", accountant="rdp")
    said = PrivacyStatement.from_ledgers([book], noise="seeded", max_grad_norm=0.5)
    assert said.unit == "client" and said.adjacency.startswith("zero-out one client")
    assert "DP-FedAvg" in said.to_text() and "whether or not a client was drawn" in said.to_text()


def test_run_without_noise_says_that_it_is_not_private():
    said = PrivacyStatement.not_private()
    assert "NOT private" in said.to_text() and not said.private
    assert json.loads(json.dumps(said.as_dict(), allow_nan=False))["max_epsilon"] == "infinity"
    silent = PrivacyStatement.from_ledgers(ledgers(noise_multiplier=0.0), noise="seeded", max_grad_norm=1.0)
    assert math.isinf(silent.max_epsilon) and "NOT private" in silent.to_text() and not silent.private


def test_unlike_ledgers_never_share_a_statement():
    with pytest.raises(ValueError, match="delta"):
        PrivacyStatement.from_ledgers([*ledgers(), *ledgers(delta=1e-6)], noise="seeded", max_grad_norm=1.0)
    with pytest.raises(ValueError, match="ledgers is empty"):
        PrivacyStatement.from_ledgers([], noise="seeded", max_grad_norm=1.0)
    with pytest.raises(ValueError, match="noise"):
        PrivacyStatement.from_ledgers(ledgers(), noise="white", max_grad_norm=1.0)


def test_printed_epsilon_is_never_below_the_spent_one():
    for sigma in (0.7, 0.9, 1.0, 1.3, 2.0, 3.1):
        books = ledgers(noise_multiplier=sigma)
        said = PrivacyStatement.from_ledgers(books, noise="seeded", max_grad_norm=1.0)
        text = said.to_text()
        assert float(text.split("ε = ")[1].split()[0]) >= said.max_epsilon
        rows = [line.split() for line in text.splitlines() if line.split()[:1] in (["0"], ["1"])]
        for row, client in zip(rows, said.clients, strict=True):
            assert float(row[7]) >= client.own_epsilon and float(row[8]) >= client.epsilon
            assert float(row[9]) >= client.final_epsilon


@pytest.mark.parametrize(("group", "drawn"), [(1, "users drawn"), (4, "ε of groups of 4 samples")])
def test_users_are_stated_with_what_is_drawn_and_what_is_public(group, drawn):
    said = PrivacyStatement.from_ledgers(ledgers(unit="user", group=group), noise="secure", max_grad_norm=1.0)
    text = said.to_text()
    for word in ("zero-out one user", drawn, "who owns how many records", "two names of one person", "ε compose"):
        assert word in text
    assert "The unit is one sample" not in text
