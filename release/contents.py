"""What a built sdist and wheel hold, against what is tracked here.

    python release/contents.py dist/*

Exits with 1 and names every file that is missing or does not belong there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What of the tracked files goes into an sdist, beside the sources of both packages and of the extension.
BESIDES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt")
#: Packages that would make somebody without a GPU download libraries for one.
FOR_GPUS = re.compile(r"^(nvidia|triton|cuda|cupy|bitsandbytes)")


def packaged(tracked: Iterable[str]) -> set[str]:
    """Files of a wheel by their place in it."""
    names = {
        name.removeprefix("kernels/") for name in tracked if name.startswith(("ffalora/", "kernels/ffalora_kernels/"))
    }
    return names


def sources(tracked: Iterable[str]) -> set[str]:
    """Files of an sdist by their place in it."""
    folders = ("ffalora/", "kernels/ffalora_kernels/", "csrc/")
    return {name for name in tracked if name.startswith(folders) or name in BESIDES}


def tracked_files() -> list[str]:
    """Files of the checkout that git knows."""
    done = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def wheel_problems(wheel: Path, tracked: Iterable[str]) -> list[str]:
    """What a wheel lacks, holds beside its packages, or demands without need."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        described = next(name for name in names if name.endswith(".dist-info/METADATA"))
        demanded = message_from_bytes(archive.read(described)).get_all("Requires-Dist") or []
    compiled = {
        name for name in names if re.fullmatch(r"ffalora_kernels/_(cpu|cuda_noise)[.\w-]*\.(so|pyd|dylib)", name)
    }
    own = {name for name in names if ".dist-info/" not in name} - compiled
    found = [f"lacks {name}" for name in sorted(packaged(tracked) - own)]
    found += [f"holds {name}" for name in sorted(own - packaged(tracked))]
    if not any("/_cpu." in name for name in compiled):
        found.append("lacks the C++ extension ffalora_kernels/_cpu")
    found += [f"demands {line}" for line in demanded if "extra ==" not in line and FOR_GPUS.match(line)]
    return found


def sdist_problems(sdist: Path, tracked: Iterable[str]) -> list[str]:
    """What an sdist lacks of the sources."""
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    own = {"PKG-INFO", "setup.cfg"}
    found = [f"lacks {name}" for name in sorted(sources(tracked) - names)]
    return found + [
        f"holds {name}" for name in sorted(names - sources(tracked) - own) if not name.startswith("ffalora.egg-info/")
    ]


def main(archives: list[str]) -> int:
    tracked = tracked_files()
    if not archives:
        print("give the archives to look into, such as dist/*")
        return 2
    status = 0
    for path in map(Path, archives):
        problems = wheel_problems(path, tracked) if path.suffix == ".whl" else sdist_problems(path, tracked)
        print(f"{path.name}: {'; '.join(problems) or 'holds what it should'} ({path.stat().st_size / 1e6:.2f} MB)")
        status |= bool(problems)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
