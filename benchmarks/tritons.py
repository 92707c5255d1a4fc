"""Versions of Triton beside the installed one: fetched by pip into a folder, unpacked there, put first on the path.

Nothing is installed: a version is a wheel unpacked into ``FOLDER/VERSION``, which a process of its own imports from.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

#: Oldest to newest: what the metadata claims is what is tried.
CLAIMED = ("3.5.1", "3.6.0", "3.7.1")


def default_folder() -> Path:
    """Where wheels are kept between calls: ``FFALORA_TRITONS``, or the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("FFALORA_TRITONS", cache / "ffalora" / "tritons"))


def package(version: str, folder: Path) -> Path:
    """The folder to put on the path for ``version``; fetched with ``pip download`` where it is not there yet.

    Raises:
        RuntimeError: pip cannot fetch it for this Python, or what it fetched is another version.
    """
    target = folder / version
    if not (target / "triton").is_dir():
        _unpack(_fetch(version, folder), target)
    found = re.search(r"__version__ = '([^']+)'", (target / "triton" / "__init__.py").read_text())
    if found is None or found[1] != version:
        raise RuntimeError(
            f"{target} holds triton {found and found[1]}, not {version}; remove the folder to have it fetched again"
        )
    return target


def _fetch(version: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, "--dest", str(folder), f"triton=={version}"], capture_output=True, text=True)
    wheels = sorted(folder.glob(f"triton-{version}-*.whl"))
    if done.returncode or not wheels:
        raise RuntimeError(f"pip cannot fetch triton=={version} into {folder}: {done.stderr.strip()[-300:]}")
    return wheels[-1]


def _unpack(wheel: Path, target: Path) -> None:
    """Unpacks into ``target``, with the permission to run compilers and assemblers, and removes the wheel."""
    partial = target.with_name(target.name + ".partial")
    with ZipFile(wheel) as archive:
        archive.extractall(partial)
        for member in archive.infolist():
            if member.external_attr >> 16 & 0o111:
                (partial / member.filename).chmod(0o755)
    partial.rename(target)
    wheel.unlink()


def run_with(version: str, folder: Path, command: list[str]) -> int:
    """Runs a Python command in a process that imports this version of Triton; its exit status."""
    paths = [str(package(version, folder)), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run([sys.executable, *command], env=environment).returncode
