"""The process of a site that stays: who may ask it, what it keeps from round to round, and when it starts anew."""

import json
import socket
import threading
import time
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import numpy as np
import pytest
import yaml
from small_runs import CLIENT_LEVEL, PRIVATE

from ffalora.config import ConfigError, to_yaml
from ffalora.data import DataError
from ffalora.federated.experiment import build
from ffalora.federated.flower import door as door_module
from ffalora.federated.flower import trainer as module
from ffalora.federated.flower.asked import brings_noise, config_of, is_masked, task_of
from ffalora.federated.flower.door import SiteAway, ask, callers, send
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


SHARES = CLIENT_LEVEL | {"privacy__noise_at": "clients", "federation__participation": 1.0}


def spelt(config, how):
    """The configuration as YAML with ``privacy.noise_at`` nested as usual, dotted, or in a dotted section."""
    values = yaml.safe_load(to_yaml(config))
    if how == "dotted":
        values["privacy.noise_at"] = values["privacy"].pop("noise_at")
    elif how == "all dotted":
        values |= {f"privacy.{key}": value for key, value in values.pop("privacy").items()}
    assert config_of(yaml.safe_dump(values)) == config
    return yaml.safe_dump(values)


@pytest.mark.parametrize("how", ["nested", "dotted", "all dotted"])
def test_a_share_of_the_noise_is_masked_however_the_configuration_spells_it(small, how):
    run = {"ffalora": spelt(small(**SHARES), how), "secagg": False, "secagg-range": 4.0}
    assert brings_noise(run) and is_masked(run)
    open_run = run | {"ffalora": spelt(small(**CLIENT_LEVEL), how)}
    assert not is_masked(open_run) and is_masked(open_run | {"secagg": True})


def test_no_server_can_say_that_a_task_is_masked(small):
    run = {"ffalora": to_yaml(small()), "secagg": False, "secagg-range": 4.0}
    given = {"round": 0, "terms": "{}", "masked": True, "limit": 9.0, "ffalora": "seed: 1"}
    assert task_of(run, given, masked=False) == {"round": 0, "terms": "{}", "ffalora": run["ffalora"], "masked": False}
    assert task_of(run | {"secagg": True}, given, masked=True)["limit"] == 4.0


@pytest.mark.parametrize("how", ["nested", "dotted"])
def test_a_site_sends_no_share_of_the_noise_without_a_mask_and_charges_nothing(small, tmp_path, how):
    config = small(**SHARES, federation__rounds=1)
    experiment = build(config)
    numbers = experiment.strategy.wire.download(experiment.strategy.begin()).numpy()
    task = {"ffalora": spelt(config, how), "round": 0, "terms": Terms.of(experiment).to_text()}
    policy = tmp_path / "policy.yaml"
    policy.write_text(SEEDED)
    trainer = Trainer(SiteTerms(0, str(tmp_path), policy=str(policy)))
    for words in ({}, {"masked": False}, {"masked": "yes"}):
        with pytest.raises(ConfigError, match=r"privacy\.noise_at='clients': a share .* without a mask"):
            trainer.answer(task | words, [numbers], lambda: True)
    assert not list(tmp_path.glob("**/population.json"))
    run = {"ffalora": task["ffalora"], "secagg": how == "nested", "secagg-range": 4.0}  # --secagg says nothing new here
    _, (sent,) = trainer.answer(task_of(run, task, masked=True), [numbers], lambda: True)
    assert sent.dtype == np.int64 and list(tmp_path.glob("**/population.json"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("label column 'verdict' holds the class relapsed"), "client 1: DataError; the site's log says why"),
        (ValueError("delta=0.1 is above one over its 37 samples"), "client 1: ValueError; the site's log says why"),
        (ConfigError("privacy.unit='none': this site's policy"), "client 1: ConfigError: privacy.unit='none': this"),
    ],
)
def test_errors_that_may_quote_a_site_s_rows_or_count_them_stay_in_its_log(tmp_path, monkeypatch, caplog, error, said):
    trainer, told = Trainer(SiteTerms(1, str(tmp_path))), []

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(trainer, "answer", fail)
    monkeypatch.setattr(module, "send", lambda connection, values: told.append(values["refused"]))
    module._answer(trainer, None, {}, [])
    assert told[0].startswith(said) and (isinstance(error, ConfigError) or str(error) not in told[0])
    assert str(error) in caplog.text


def served(folder, answer):
    """A site whose caller, one after another, gets what ``answer(connection, values, arrays)`` sends."""

    def serve():
        for connection, values, arrays in callers(folder):
            with connection:
                answer(connection, values, arrays)

    (folder / "door.json").unlink(missing_ok=True)
    threading.Thread(target=serve, daemon=True).start()


def door_of(folder):
    """Port and key of a site that is about to listen."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            door = json.loads((folder / "door.json").read_text())
            return door["port"], bytes.fromhex(door["key"])
        except (OSError, ValueError):
            time.sleep(0.01)
    raise TimeoutError(folder)


def test_values_and_arrays_pass_the_door_as_they_are(tmp_path):
    served(tmp_path, lambda connection, values, arrays: send(connection, values, arrays[::-1]))
    arrays = [np.arange(6, dtype=np.int8).reshape(2, 3), np.array([np.nan, 1.5], dtype=np.float32)]
    values, got = ask(tmp_path, {"ε": 0.1 + 0.2, "none": None}, arrays)
    assert values == {"ε": 0.1 + 0.2, "none": None}
    for sent, back in zip(arrays[::-1], got, strict=True):
        np.testing.assert_array_equal(sent, back)
        assert sent.dtype == back.dtype


def test_the_door_is_shut_to_whoever_cannot_read_the_folder(tmp_path):
    served(tmp_path, lambda connection, values, arrays: send(connection, {}, []))
    port, _ = door_of(tmp_path)
    with pytest.raises(AuthenticationError):
        Client(("127.0.0.1", port), authkey=b"guessed")
    assert (tmp_path / "door.json").stat().st_mode & 0o077 == 0
    assert ask(tmp_path, {}, []) == ({}, [])


def test_callers_that_say_nothing_keep_nobody_waiting_and_are_let_go(tmp_path, monkeypatch):
    """With the key and without, at each point of what is said."""
    monkeypatch.setattr(door_module, "SILENCE", 0.5)
    served(tmp_path, lambda connection, values, arrays: send(connection, {}, []))
    port, key = door_of(tmp_path)
    silent = socket.create_connection(("127.0.0.1", port), timeout=20)
    proven, half, wrong = (Client(("127.0.0.1", port), authkey=key) for _ in range(3))
    half.send_bytes(json.dumps({"values": {}, "arrays": [["<f4", [3]]]}).encode())
    wrong.send_bytes(b"no JSON")
    assert ask(tmp_path, {}, []) == ({}, [])
    for caller in (proven, half, wrong):
        with caller, pytest.raises(EOFError):
            assert caller.poll(20) and caller.recv_bytes()
    with silent:
        while silent.recv(1000):  # the challenge, then the end
            pass


def test_whatever_else_listens_at_the_port_of_a_site_that_is_gone_keeps_no_message_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(door_module, "SILENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        (tmp_path / "door.json").write_text(json.dumps({"port": other.getsockname()[1], "key": "00"}))
        with pytest.raises(SiteAway, match="no site listens"):
            ask(tmp_path, {}, [], patience=0.0)


@pytest.mark.parametrize(
    "answer,said",
    [
        (lambda *call: None, "ended in the middle of its work; what it began is charged"),
        (lambda connection, *asked: send(connection, {"refused": "client 3: no"}), "client 3: no"),
    ],
)
def test_a_site_that_ends_or_refuses_is_named(tmp_path, answer, said):
    served(tmp_path, answer)
    with pytest.raises(SiteAway, match=said):
        ask(tmp_path, {}, [])


def test_a_folder_where_no_site_listens_is_named_with_the_remedy(tmp_path):
    with pytest.raises(SiteAway, match=r"no site listens in .* ffalora site"):
        ask(tmp_path, {}, [], patience=0.0)


def test_whoever_asked_and_is_gone_is_noticed_before_the_next_step(asked, tmp_path):
    trainer, task, numbers, _ = asked
    seen, box = [], []

    class Watched(Trainer):
        def answer(self, task, arrays, is_wanted):
            seen.append(is_wanted())
            caller.close()
            while is_wanted():
                pass
            return super().answer(task, arrays, is_wanted)

    calls = callers(tmp_path)
    threading.Thread(target=lambda: box.append(next(calls)), daemon=True).start()
    port, key = door_of(tmp_path)
    caller = Client(("127.0.0.1", port), authkey=key)
    send(caller, task, numbers)
    while not box:
        time.sleep(0.01)
    ((connection, *asked),) = box
    with connection, suppress(OSError):  # what is written to nobody may be taken at first
        module._answer(Watched(trainer.terms), connection, *asked)
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
