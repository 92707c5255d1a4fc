"""The live page: how far runs are, from their files alone, for this machine alone."""

import http.client
import json
import os
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager

import pytest
from browser import CHROMIUM
from fabricated import write_run

from ffalora.cli import main
from ffalora.config import from_mapping, load_config, to_yaml
from ffalora.federated.simulate import simulate
from ffalora.report import ReportError, read_runs
from ffalora.report.live import QUIET_SECONDS, duration_text, live_state, shown
from ffalora.report.tables import result_table
from ffalora.report.watch import watch_server

PRIVATE = {"privacy": {"unit": "sample", "target_epsilon": 6, "noise": "seeded"}, "federation": {"rounds": 4}}


@contextmanager
def watched(folder):
    """A function that asks the page's server: path and Host in, status, headers and text out."""
    with watch_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def ask(path, host=None, method="GET"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
            connection.request(method, path, headers={"Host": host} if host else {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read().decode()

        ask.port = server.server_port
        try:
            yield ask
        finally:
            server.shutdown()
            thread.join()


def test_the_state_is_what_the_rows_say(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path, rounds=3)
    state = live_state(tmp_path)
    run = state["runs"][0]
    assert (run["label"], run["status"], run["round"], run["rounds"]) == ("FFA-LoRA", "running", 3, 4)
    assert run["metric"] == "accuracy" and [at for at, _ in run["curve"]] == [1, 2, 3]
    assert run["curve"][-1][1] == pytest.approx(0.65) and run["epsilon"] == pytest.approx(6 * 0.75**0.5, abs=1e-4)
    assert run["bytes"] == 3 * (590_000 + 1_180_000) and state["seconds_left"] == pytest.approx(2.5)
    values = shown(state)["runs"][0]["values"]
    assert values["largest ε"] == "5.20 of 6" and values["sent"] == "5.31 MB" and "clipped" not in values


def test_numbers_that_are_none_are_said_and_not_drawn(tmp_path):
    write_run(from_mapping(PRIVATE | {"data": {"task": "causal-lm"}}), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    values = [3.5, "infinity", "nan", "nan"]
    rows = [row | {"metrics": {"perplexity": value}} for row, value in zip(rows, values, strict=True)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = shown(live_state(tmp_path))
    assert state["runs"][0]["curve"] == [[1, 3.5]] and state["runs"][0]["values"]["perplexity"] == "nan"
    assert state["runs"][0]["status"] == "running" and state["left"].startswith("all rounds are done")


def test_how_long_is_left_is_said_only_where_runs_write_down_what_rounds_take(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path, rounds=3)
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    secret = [json.dumps({name: value for name, value in row.items() if name != "seconds"}) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(secret))
    state = live_state(tmp_path)
    assert state["seconds_left"] is None and shown(state)["left"] == "what rounds take is secret"
    assert "a round takes" not in shown(state)["runs"][0]["values"]
    assert result_table(read_runs([tmp_path])).rows[0][-2] == "–"


def test_methods_and_seeds_that_have_not_begun_are_waited_for_and_counted(tmp_path):
    config = load_config(None, {"seeds": 2, "methods": {"ffa": {}, "lora": {"federation.strategy": "lora"}}})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert live_state(tmp_path)["seconds_left"] is None
    assert shown(live_state(tmp_path))["left"] == "no round is done yet"
    write_run(config.runs()["ffa"], tmp_path / "ffa" / "seed-0", rounds=1)
    state = live_state(tmp_path)
    assert [(run["label"], run["status"]) for run in state["runs"]] == [
        ("FFA-LoRA · seed 0", "running"), ("LoRA · seed 0", "waiting"), ("FFA-LoRA · seed 1", "waiting"),
        ("LoRA · seed 1", "waiting"),
    ]  # fmt: skip
    assert state["seconds_left"] == pytest.approx(2.5 * (4 * config.federation.rounds - 1))


def test_a_run_that_is_silent_for_long_and_one_that_is_over_are_told_apart(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path, rounds=2)
    past = time.time() - QUIET_SECONDS - 5
    for name in ("config.yaml", "metrics.jsonl"):
        os.utime(tmp_path / name, (past, past))
    assert live_state(tmp_path)["runs"][0]["status"] == "quiet"
    (tmp_path / "summary.json").write_text("{}")
    state = live_state(tmp_path)
    assert state["runs"][0]["status"] == "finished" and shown(state)["left"] == "finished"


def test_of_a_secure_run_nothing_is_shown_that_has_no_noise_but_what_it_wrote_down(small, tmp_path):
    private = {"privacy__unit": "sample", "privacy__noise_multiplier": 1.0, "privacy__accountant": "rdp"}
    for noise in ("seeded", "secure"):
        config = small(federation__rounds=1, privacy__noise=noise, privacy__ledger=noise, **private)
        simulate(config, tmp_path / noise, progress=False)
    seeded, secure = (live_state(tmp_path / noise)["runs"][0] for noise in ("seeded", "secure"))
    assert seeded["clipped"] is not None and "nothing is protected" in seeded["protection"]
    assert secure["clipped"] is None and "every sample is protected" in secure["protection"]
    text = json.dumps(shown(live_state(tmp_path / "secure")))
    assert "clipped" not in text and "norm" not in text and "loss" not in text
    client = {"privacy__unit": "client", "federation__weighting": "uniform", "federation__participation": 0.5}
    config = small(federation__rounds=1, privacy__noise="secure", privacy__ledger="c", **private | client)
    simulate(config, tmp_path / "clients", progress=False)
    assert live_state(tmp_path / "clients")["runs"][0]["bytes"] is None, "bytes of a round tell who was drawn"


def test_the_page_and_the_state_are_served_to_this_machine_and_nothing_else_is(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path / "run", rounds=1)
    (tmp_path / "run" / "secret.txt").write_text("x")
    with watched(tmp_path / "run") as ask:
        status, headers, page = ask("/")
        assert status == 200 and "<h1" in page and "NONCE" not in page
        policy = headers["Content-Security-Policy"]
        assert (
            "default-src 'none'" in policy
            and "unsafe" not in policy
            and "http" not in page.replace("http://www.w3.org/2000/svg", "")
        )
        assert page.count(f'nonce="{policy.partition("nonce-")[2].partition(chr(39))[0]}"') == 2
        status, headers, text = ask("/state.json")
        assert status == 200 and headers["Content-Type"].startswith("application/json")
        assert json.loads(text) == shown(live_state(tmp_path / "run"))
        assert "Access-Control-Allow-Origin" not in headers
        assert [ask(path)[0] for path in ("/secret.txt", "/../run/secret.txt", "/config.yaml")] == [404] * 3
        assert ask("/", method="POST")[0] == 501
        assert ask("/", host="elsewhere.example")[0] == 403 and ask("/state.json", host="a.test:80")[0] == 403
        assert ask("/", host=f"localhost:{ask.port}")[0] == 200 and ask("/", host="[::1]:9")[0] == 200


def test_rounds_that_are_done_later_are_served_and_a_run_that_goes_away_is_said(tmp_path):
    write_run(from_mapping(PRIVATE), tmp_path / "run", rounds=1)
    with watched(tmp_path / "run") as ask:
        assert json.loads(ask("/state.json")[2])["runs"][0]["round"] == 1
        write_run(from_mapping(PRIVATE), tmp_path / "run", rounds=4)
        assert json.loads(ask("/state.json")[2])["runs"][0]["round"] == 4
        shutil.rmtree(tmp_path / "run")
        status, _, text = ask("/state.json")
        assert status == 503 and "holds no run" in text
        write_run(from_mapping(PRIVATE), tmp_path / "run", rounds=2)
        assert ask("/state.json")[0] == 200


def test_folders_without_a_run_are_refused_with_what_to_give(tmp_path, capsys):
    with pytest.raises(ReportError, match=r"holds no run \(no config.yaml\)"):
        live_state(tmp_path)
    (tmp_path / "study.yaml").write_text("")
    with pytest.raises(ReportError, match=rf"holds a study; watch one of the folders in {tmp_path / 'cells'}$"):
        watch_server(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(["watch", str(tmp_path)])
    assert done.value.code == 2 and "holds a study" in capsys.readouterr().err


def test_the_command_prints_one_object(tmp_path, capsys):
    write_run(from_mapping(PRIVATE), tmp_path, rounds=1)
    with pytest.raises(SystemExit) as done:
        main(["watch", str(tmp_path), "--json"])
    assert done.value.code == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["round"] == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59.4, "59 s"), (200, "3 min 20 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration_text(seconds) == text


def test_a_browser_shows_the_runs(tmp_path):
    browser = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no browser on PATH: the page was not drawn")
    write_run(from_mapping(PRIVATE), tmp_path / "<b>run", rounds=2)
    with watched(tmp_path / "<b>run") as ask:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += [
            "--virtual-time-budget=3000",
            "--enable-logging=stderr",
            "--dump-dom",
            f"http://127.0.0.1:{ask.port}/",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    drawn = done.stdout
    assert "2 of 4" in drawn and "about 5.0 s left" in drawn and "<polyline" in drawn, done.stderr[-2000:]
    assert "&lt;b&gt;run</title>" in drawn and "CONSOLE" not in done.stderr
