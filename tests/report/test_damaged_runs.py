"""Damaged run folders: what can be read is shown, and what cannot is named."""

import json

import pytest
from fabricated import write_run

from ffalora.cli import main
from ffalora.config import ConfigError, from_mapping, load_config, to_yaml
from ffalora.report import ReportError, read_runs, run_page, table_text
from ffalora.report.live import live_state, shown
from ffalora.runs.folder import completed_rows

PRIVATE = {"privacy": {"unit": "sample", "target_epsilon": 6, "noise": "seeded"}, "federation": {"rounds": 4}}
BASELINE = {"name": "largest class", "accuracy": 0.5, "epsilon": None, "about": "always one", "is_bound": False}
ANSWER = {"prompt": "Who?", "answer": "You", "reference": "I"}
READ = {
    "summary.json": {"epsilon": 6.0, "evaluated": {"split": "test", "rows": 2000}},
    "baselines.json": [BASELINE],
    "answers.json": [ANSWER],
    "answers-untrained.json": [ANSWER],
}
DAMAGE = {
    "half": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "another kind": lambda content: b"[]" if content.startswith(b"{") else b"{}",
    "null": lambda content: b"null\n",
    "a number": lambda content: b"5\n",
    "of numbers": lambda content: b"[5]\n",
    "not text": lambda content: b"\xff\xfe" + content,
    "deep": lambda content: b"[" * 100_000 + b"\n",
}


@pytest.fixture
def run(tmp_path):
    """A finished run with every file that a report reads."""
    write_run(from_mapping(PRIVATE), tmp_path / "run")
    for name, content in READ.items():
        (tmp_path / "run" / name).write_text(json.dumps(content))
    return tmp_path / "run"


def said_of(folder):
    """What the page and the live page say of a run, and what each leaves out."""
    runs = read_runs([folder])
    assert run_page(runs).tables
    state = live_state(folder)
    assert json.dumps(shown(state))
    return table_text(runs), runs[0].unreadable, state["runs"][0]["unreadable"]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["partition.json", "environment.json", "privacy.txt", *READ])
def test_a_damaged_file_is_left_out_and_named(name, damage, run):
    content = (run / name).read_bytes()
    (run / name).write_bytes(DAMAGE[damage](content))
    text, of_report, of_watch = said_of(run)
    if name == "privacy.txt" and damage != "not text":
        return  # any text is one
    assert of_report == [f"run/{name}"] and f"Left out, for it is damaged: run/{name}." in text
    assert of_watch == (["summary.json"] if name == "summary.json" else [])


@pytest.mark.parametrize("name", ["partition.json", "environment.json", "privacy.txt", *READ])
def test_a_file_that_is_not_there_is_not_missed(name, run):
    (run / name).unlink()
    text, of_report, of_watch = said_of(run)
    assert of_report == of_watch == [] and "damaged" not in text


@pytest.mark.parametrize(
    ("bad", "line"),
    [(b'{"round": 2, "met', 2), (b"[]", 2), (b"null", 2), (b"5", 2), (b"{}", 2), (b"\0\0\0", 2), (b"\xff", 4)],
)
def test_of_damaged_rows_the_others_are_shown_and_no_sum_is_made(bad, line, run):
    rows = (run / "metrics.jsonl").read_bytes().splitlines()
    rows[line - 1] = bad
    (run / "metrics.jsonl").write_bytes(b"\n".join(rows) + b"\n")
    text, of_report, of_watch = said_of(run)
    assert of_report == [f"run/metrics.jsonl (line {line})"] and of_watch == [f"metrics.jsonl (line {line})"]
    one = live_state(run)["runs"][0]
    assert one["round"] == (4 if line == 2 else 3) and (line == 4 or one["bytes"] is None)
    assert ("only 3 of 4" in text) == (line == 4) and one["epsilon"] == 6.0, "the summary's"
    if line == 2:
        assert read_runs([run])[0].total("seconds") is None and "traffic" not in [
            p.name for p in run_page(read_runs([run])).plots
        ]
    (run / "summary.json").unlink()
    assert read_runs([run])[0].epsilon is None, "what was spent last may be in the line that is lost"


def test_a_row_that_is_there_twice_counts_once(run):
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(content + content)
    found = read_runs([run])[0]
    assert found.unreadable == ["run/metrics.jsonl (lines 5, 6, 7, 8)"] and found.total("seconds") == 10.0


def test_a_last_row_that_is_being_written_is_no_damage(run):
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(content[:-30])
    (run / "summary.json").unlink()
    text, of_report, of_watch = said_of(run)
    assert of_report == of_watch == [] and "only 3 of 4" in text and read_runs([run])[0].epsilon is not None


def test_where_no_row_can_be_read_the_error_names_the_file(run, capsys):
    (run / "metrics.jsonl").write_bytes(b"[]\n")
    with pytest.raises(ReportError, match=r"holds no completed round; run/metrics.jsonl \(line 1\) is damaged; give"):
        read_runs([run])
    assert live_state(run)["runs"][0]["round"] == 0
    for command in ("report", "watch"):
        (run / "config.yaml").write_bytes(b"[]")
        with pytest.raises(SystemExit) as done:
            main([command, str(run)])
        assert (
            done.value.code == 2
            and "config.yaml is damaged, or of another version (it is not whole); put" in capsys.readouterr().err
        )


@pytest.mark.parametrize("damage", [None, *DAMAGE])
def test_a_run_whose_configuration_is_lost_has_that_of_the_folder_above(damage, tmp_path):
    config = load_config(None, PRIVATE | {"seeds": 2, "methods": {"ffa": {}, "lora": {"federation.strategy": "lora"}}})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    for name, one in config.runs().items():
        for seed in range(2):
            own = one.model_dump() | {"seed": seed, "seeds": 1}
            write_run(from_mapping(own), tmp_path / name / f"seed-{seed}")
    lost = tmp_path / "lora" / "seed-1" / "config.yaml"
    content = lost.read_bytes()
    lost.unlink()
    if damage is not None:
        lost.write_bytes(DAMAGE[damage](content))
    runs = read_runs([tmp_path])
    assert runs[3].unreadable == ([] if damage is None else [f"{tmp_path.name}/lora/seed-1/config.yaml"])
    assert [run.config["seed"] for run in runs] == [0, 1, 0, 1] and runs[3].config["federation"]["strategy"] == "lora"
    assert len(live_state(tmp_path)["runs"]) == 4
    (tmp_path / "config.yaml").write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"lora/seed-1/config.yaml"):
        read_runs([tmp_path])
    lost.write_bytes(content)
    page = run_page(read_runs([tmp_path]))
    assert len(page.configs) == 2, "each method's own, where that of all together is damaged"


def test_runs_that_have_no_completed_round_are_named_beside_the_others(tmp_path):
    config = load_config(None, PRIVATE | {"seeds": 2, "methods": {"ffa": {}, "lora": {"federation.strategy": "lora"}}})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    write_run(config.runs()["ffa"].model_copy(update={"seeds": 1}), tmp_path / "ffa" / "seed-0")
    write_run(config.runs()["lora"].model_copy(update={"seeds": 1}), tmp_path / "lora" / "seed-0", rounds=0)
    top = tmp_path.name
    said = f"Not here, for no round is completed: {top}/lora/seed-0, {top}/ffa/seed-1, {top}/lora/seed-1."
    assert said in table_text(read_runs([tmp_path]))


def test_a_run_is_not_continued_over_rows_that_are_damaged(run):
    content = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(b"[]\n" + content)
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 1 is no row of a round; put a copy"):
        completed_rows(run, 4)
