"""Whether an installed ffalora is whole: run by the interpreter it was installed for, from any other folder.

    cd / && python CHECKOUT/release/installed.py

Compares the C++ kernels with their definition, reads every file that travels as data, and asks the command line.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib import resources
from pathlib import Path

import torch

import ffalora
import ffalora_kernels
from ffalora.cli import VERBS
from ffalora.config import load_config
from ffalora.studies.grid import load_grid
from ffalora.studies.study import study_names
from ffalora.studies.theory import theory_config

CHECKOUT = Path(__file__).resolve().parents[1]


def check_place() -> None:
    """The packages come from the installation."""
    for package in (ffalora, ffalora_kernels):
        place = Path(str(package.__file__)).resolve()
        if CHECKOUT in place.parents and Path(sysconfig.get_path("purelib")).resolve() not in place.parents:
            raise RuntimeError(f"{place} is the checkout's; install the wheel and run this from another folder")


def check_kernels() -> None:
    """The C++ extension is there and computes what its definition computes."""
    results = []
    for backend in ("cpp", "reference"):
        with ffalora_kernels.use_backend(backend):
            y = torch.zeros(5, 7)
            generator = torch.Generator().manual_seed(0)
            h, b = torch.randn(5, 3, generator=generator), torch.randn(1, 7, 3, generator=generator)
            ffalora_kernels.expand_(y, h, b, ffalora_kernels.Segments.from_lengths([2, 3]), 2.0)
            results.append(y)
    torch.testing.assert_close(*results)


def check_data() -> None:
    """Configurations, grids, templates and the marks for type checkers came along."""
    with resources.as_file(resources.files("ffalora") / "configs" / "demo.yaml") as path:
        load_config(path)
    for name in study_names():
        load_grid(name, "laptop", "smoke", {}, None)
    theory_config(True, {})
    for package, name in (
        ("ffalora", "report/base.html"),
        ("ffalora", "report/page.html"),
        ("ffalora", "runs/card.md"),
        ("ffalora_kernels", "py.typed"),
    ):
        if not resources.files(package).joinpath(name).is_file():
            raise RuntimeError(f"{package}/{name} was not installed")


def check_command() -> None:
    """The command line answers, and knows its version and its verbs."""
    command = str(Path(sysconfig.get_path("scripts")) / "ffalora")
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    if ffalora.__version__ not in said:
        raise RuntimeError(f"ffalora --version printed {said!r}, not {ffalora.__version__}")
    helped = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    missing = [verb for verb in VERBS if f"  {verb} " not in helped]
    if missing:
        raise RuntimeError(f"ffalora --help lacks {', '.join(missing)}")


if __name__ == "__main__":
    for check in (check_place, check_kernels, check_data, check_command):
        check()
    print(f"ffalora {ffalora.__version__} in {sys.prefix}: torch {torch.__version__}, {ffalora_kernels.explain()}")
