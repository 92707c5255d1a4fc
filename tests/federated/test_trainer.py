"""The process of a site that stays: who may ask it, what it keeps from round to round, and when it starts anew."""

import json
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import numpy as np
import pytest
from small_runs import PRIVATE

from ffalora.config import to_yaml
from ffalora.federated.experiment import build
from ffalora.federated.flower import trainer as module
from ffalora.federated.flower.door import SiteAway, ask, open_door, receive, send
from ffalora.federated.flower.keeper import SiteTerms
from ffalora.federated.flower.processes import Processes
from ffalora.federated.flower.terms import Terms
from ffalora.federated.flower.trainer import Trainer

SEEDED = "unit: none\nnoise: seeded\nmax_epsilon: null\n"


@pytest.fixture
def asked(small, tmp_path):
    """A trainer of client 1, what a round asks of it, and the file of its policy."""
    config = small(federation__rounds=5, federation__local_steps=3, federation__weighting="uniform", **PRIVATE)
    experiment = build(config)
    numbers = experiment.strategy.wire.download(experiment.strategy.begin()).numpy()
    task = {"ffalora": to_yaml(config), "round": 0, "terms": Terms.of(experiment).to_text()}
    policy = tmp_path / "policy.yaml"
    policy.write_text(SEEDED)
    return Trainer(SiteTerms(1, str(tmp_path), policy=str(policy))), task, [numbers], policy


def test_a_site_stays_from_round_to_round_and_is_made_anew_for_another_policy_or_after_an_error(asked, monkeypatch):
    trainer, task, numbers, policy = asked
    made, real = [], module.Site
    monkeypatch.setattr(module, "Site", lambda *args, **options: made.append(1) or real(*args, **options))
    for number in range(2):
        report, (sent,) = trainer.answer(task | {"round": number}, numbers, lambda: True)
    assert len(made) == 1 and report["client"] == 1 and sent.dtype == np.float32
    policy.write_text(SEEDED + "reports: []\n")
    assert "epsilon" not in trainer.answer(task | {"round": 2}, numbers, lambda: True)[0] and len(made) == 2
    with pytest.raises(RuntimeError, match="has gone"):
        trainer.answer(task | {"round": 3}, numbers, lambda: False)
    _, (masked,) = trainer.answer(task | {"round": 3, "limit": 100.0}, numbers, lambda: True)
    assert len(made) == 3 and masked.dtype == np.float64
    with pytest.raises(ValueError, match="outside the quantised range"):
        trainer.answer(task | {"round": 3, "limit": 1e-9}, numbers, lambda: True)


def served(folder, answer):
    """A door at which one caller after another gets what ``answer(connection)`` sends."""
    door = open_door(folder)

    def serve():
        while True:
            try:
                with door.accept() as connection:
                    answer(connection)
            except AuthenticationError:
                continue
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    return door


def test_values_and_arrays_pass_the_door_as_they_are(tmp_path):
    def echo(connection):
        values, arrays = receive(connection)
        send(connection, values, arrays[::-1])

    with served(tmp_path, echo):
        arrays = [np.arange(6, dtype=np.int8).reshape(2, 3), np.array([np.nan, 1.5], dtype=np.float32)]
        values, got = ask(tmp_path, {"ε": 0.1 + 0.2, "none": None}, arrays)
    assert values == {"ε": 0.1 + 0.2, "none": None}
    for sent, back in zip(arrays[::-1], got, strict=True):
        np.testing.assert_array_equal(sent, back)
        assert sent.dtype == back.dtype


def test_the_door_is_shut_to_whoever_cannot_read_the_folder(tmp_path):
    with served(tmp_path, lambda connection: send(connection, {}, [])):
        door = json.loads((tmp_path / "door.json").read_text())
        with pytest.raises(AuthenticationError):
            Client(("127.0.0.1", door["port"]), authkey=b"guessed")
        assert (tmp_path / "door.json").stat().st_mode & 0o077 == 0
        assert ask(tmp_path, {}, []) == ({}, [])


@pytest.mark.parametrize(
    "answer,said",
    [
        (lambda connection: connection.recv_bytes(), "ended in the middle of its work; what it began is charged"),
        (lambda connection: send(connection, {"refused": "client 3: no"}), "client 3: no"),
    ],
)
def test_a_site_that_ends_or_refuses_is_named(tmp_path, answer, said):
    with served(tmp_path, answer), pytest.raises(SiteAway, match=said):
        ask(tmp_path, {}, [])


def test_a_folder_where_no_site_listens_is_named_with_the_remedy(tmp_path):
    with pytest.raises(SiteAway, match=r"no site listens in .* ffalora site"):
        ask(tmp_path, {}, [], patience=0.0)


def test_whoever_asked_and_is_gone_is_noticed_before_the_next_step(asked, tmp_path):
    trainer, task, numbers, _ = asked
    seen = []

    class Watched(Trainer):
        def answer(self, task, arrays, is_wanted):
            seen.append(is_wanted())
            caller.close()
            while is_wanted():
                pass
            return super().answer(task, arrays, is_wanted)

    with open_door(tmp_path) as door:
        address = json.loads((tmp_path / "door.json").read_text())
        box = []
        thread = threading.Thread(target=lambda: box.append(door.accept()))
        thread.start()
        caller = Client(("127.0.0.1", address["port"]), authkey=bytes.fromhex(address["key"]))
        thread.join()
        send(caller, task, numbers)
        with box[0] as connection, pytest.raises((EOFError, OSError)):
            module._answer(Watched(trainer.terms), connection)
            module._answer(Watched(trainer.terms), connection)  # what is written to nobody may be taken at first
    assert seen == [True] and not (tmp_path / "1.json").exists(), "nothing was charged"


def test_a_process_that_ends_is_started_again_later_and_later(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr("ffalora.federated.flower.processes.time.sleep", waited.append)
    processes = Processes(tmp_path, {"PATH": "/usr/bin:/bin"})
    with processes:
        processes.start("short", ["sh", "-c", "echo started"])
        for _ in range(3):
            processes.processes["short"].wait(20)
            processes.bring_back()
        processes.processes["short"].wait(20)
    waited = [seconds for seconds in waited if seconds >= 1]  # subprocess polls by shorter ones
    assert waited == [1.0, 2.0, 4.0] and (tmp_path / "short.log").read_text() == "started\n" * 4
