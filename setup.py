"""Build of ffalora: two Python packages from two roots, and one optional C++ extension that needs pybind11 only.

A missing or failing compiler is no error: the package then answers with its plain-torch reference, and `ffalora info`
says so. Set FFALORA_NO_EXTENSION=1 to leave the extension out on purpose.
"""

import os
import shutil
import subprocess
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

# No -fopenmp at link time: torch has loaded an OpenMP runtime already; a second one would fight it for cores.
WANTED_FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wno-psabi"]


CUDA_FLAGS = [
    "-O3",
    "--fmad=false",
    "-std=c++17",
    "-shared",
    "-Xcompiler",
    "-fPIC",
    "-cudart",
    "static",
    "-arch=all-major",
]


class PortableBuild(build_ext):
    """Leaves out the flags that the compiler does not know (Apple's has no -fopenmp: one thread then).

    Builds the CUDA library too where nvcc and a torch with CUDA are there (that is, without build isolation).
    """

    def run(self):
        super().run()
        if shutil.which("nvcc") and torch_has_cuda():
            target = Path(self.get_ext_fullpath("ffalora_kernels._cpu")).parent / "_cuda_noise.so"
            target.parent.mkdir(parents=True, exist_ok=True)
            built = subprocess.run(["nvcc", *CUDA_FLAGS, "-o", target, "csrc/cuda/secure_noise.cu"])
            if built.returncode != 0:
                print("nvcc failed: secure noise for CUDA tensors will be drawn on the processor")

    def build_extension(self, extension):
        from pybind11.setup_helpers import has_flag

        extension.extra_compile_args += [flag for flag in WANTED_FLAGS if has_flag(self.compiler, flag)]
        super().build_extension(extension)


def torch_has_cuda():
    try:
        import torch
    except ImportError:
        return False
    return torch.version.cuda is not None


def extensions():
    sources = sorted(glob("csrc/*.cpp"))
    if not sources or os.environ.get("FFALORA_NO_EXTENSION"):
        return []
    from pybind11.setup_helpers import Pybind11Extension

    extension = Pybind11Extension(
        "ffalora_kernels._cpu",
        sources=sources,
        depends=sorted(glob("csrc/*.h")),
        cxx_std=17,
    )
    extension.optional = True
    return [extension]


setup(
    packages=[*find_packages(include=["ffalora", "ffalora.*"]), *find_packages("kernels")],
    package_dir={"": ".", "ffalora_kernels": "kernels/ffalora_kernels"},
    package_data={
        "ffalora": [
            "configs/*.yaml",
            "report/*.html",
            "runs/*.md",
            "studies/grids/*.yaml",
            "studies/bases/*.yaml",
            "studies/protocols/*.yaml",
            "studies/theory/*.yaml",
            "py.typed",
        ],
        "ffalora_kernels": ["py.typed", "*.pyi", "*.csv"],
    },
    include_package_data=False,
    ext_modules=extensions(),
    cmdclass={"build_ext": PortableBuild},
)
