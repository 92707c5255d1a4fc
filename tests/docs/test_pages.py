"""The pages are true: what they show runs, the site has no page without a way to it, and the reference every name."""

import re
import shlex
import sys

import numpy as np
import pandas
import pytest
import yaml
from pages import PAGES, ROOT, blocks
from small_runs import WORDS

import ffalora
from ffalora.cli import main
from ffalora.config import from_mapping
from ffalora.planning import starter
from ffalora.runs import trackers
from ffalora.studies.study import study_names

#: Written by `make results`: its commands take hours.
WRITTEN = ROOT / "docs" / "results.md"
RUN = [page for page in PAGES if page != WRITTEN and any(block.reason is None for block in blocks(page))]
#: Blocks of Python that other tests run, with stand-ins for the names that they use.
ELSEWHERE = {"README.md": "tests/test_house.py"}
_TEST, _NAMED = re.compile(r"def test_(\w+)"), re.compile(r"`(\w+(?:_\w+){4,})`")


class _Silent:
    """A tracker that tells nobody."""

    def __init__(self, *_):
        pass

    def log(self, *_):
        pass

    def close(self):
        pass


@pytest.fixture
def desk(small, tmp_path, monkeypatch):
    """A folder with a table of one's own and one to predict, where `init` proposes a tiny model and a single round."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 40, (120, 8))
    rows = pandas.DataFrame(
        {
            "subject": [" ".join(WORDS[i] for i in row[:3]) for row in drawn],
            "message": [" ".join(WORDS[i] for i in row[3:]) for row in drawn],
            "verdict": [("bad", "good")[int((row < 20).sum() > 3)] for row in drawn],
            "hospital": [("north", "south")[row % 2] for row in range(120)],
        }
    )
    rows.to_csv(tmp_path / "feedback.csv", index=False, sep=";")
    rows.head(10).to_csv(tmp_path / "new.csv", index=False)
    for name, value in (("MODEL", small().model.name), ("TOP_LAYER", 1), ("ROUNDS", 1)):
        monkeypatch.setattr(starter, name, value)
    monkeypatch.setitem(trackers._TRACKERS, "tensorboard", _Silent)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)


def run_line(line):
    """A line of a shell block: a command of ours, its output thrown away; nothing else may stand there."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    assert words[0] == "ffalora", f"no test knows how to run {line!r}; mark its block with <!-- not run here: why -->"
    arguments = words[1 : words.index(">")] if ">" in words else words[1:]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0, line


@pytest.mark.long
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_every_block_of_a_page_runs_or_says_why_it_does_not(page, desk, capsys):
    shown = [block for block in blocks(page) if block.reason is None]
    text = "".join(block.text for block in shown)
    if "runs/feedback" in text or "feedback.yaml" in text:
        if "ffalora init" not in text:
            run_line("ffalora init feedback.csv")
        if "ffalora simulate feedback.yaml\n" not in text and "runs/feedback" in text:
            run_line("ffalora simulate feedback.yaml --no-progress")
    for block in shown:
        if block.language in ("sh", "bash"):
            for line in block.text.splitlines():
                run_line(line)
        elif block.language == "yaml":
            from_mapping(yaml.safe_load(block.text))
        else:
            assert block.language == "python", f"{page.name}: a block of {block.language or 'no language'}"
            if page.name not in ELSEWHERE:
                exec(compile(block.text, page.name, "exec"), {})


def test_the_commands_of_the_results_name_studies_that_there_are():
    pages = sorted((ROOT / "docs" / "results").glob("*.md"))
    lines = [line for page in pages for block in blocks(page) for line in block.text.splitlines()]
    assert lines and all(re.match(r"ffalora study (\w+) ", line)[1] in (*study_names(), "theory") for line in lines)


def test_blocks_that_are_not_run_say_why():
    reasons = [block.reason for page in PAGES for block in blocks(page) if block.reason is not None]
    assert reasons and all(len(reason) > 10 for reason in reasons)


def navigation(entries):
    for entry in entries:
        for value in entry.values():
            yield from navigation(value) if isinstance(value, list) else [value]


def site_config():
    class Loader(yaml.SafeLoader):
        """Reads over what only the site's own tools understand."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    return yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=Loader)


def test_every_page_has_its_place_on_the_site():
    listed = list(navigation(site_config()["nav"]))
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_reference_has_every_public_name_where_it_lives():
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    own = [getattr(ffalora, name) for name in set(ffalora.__all__) - {"__version__"}]
    assert sorted(named) == sorted(f"{found.__module__}.{found.__qualname__}" for found in own)


@pytest.mark.long
def test_the_site_is_built_without_a_complaint(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    import subprocess

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "privacy.target_epsilon" in (tmp_path / "site" / "configuration.html").read_text()


def test_the_tests_that_the_page_on_privacy_names_exist():
    tests = {name for file in (ROOT / "tests").rglob("test_*.py") for name in _TEST.findall(file.read_text("utf-8"))}
    named = set(_NAMED.findall((ROOT / "docs" / "privacy.md").read_text("utf-8")))
    assert len(named) > 50
    assert named - tests == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_can_be_run_stands_in_fences_where_it_is_seen(page):
    outside = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert (
        re.findall(r"^(?: {4}|\t)(?:\$ )?(?:ffalora|flwr|pip|python|make|git|from|import) .*", outside, re.MULTILINE)
        == []
    )
