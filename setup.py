"""Build of ffalora: two Python packages from two roots, and one optional C++ extension that needs pybind11 only.

A missing or failing compiler is no error: the package then answers with its plain-torch reference, and `ffalora info`
says so. Set FFALORA_NO_EXTENSION=1 to leave the extension out on purpose.
"""

import os
from glob import glob

from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext

# No -fopenmp at link time: torch has loaded an OpenMP runtime already; a second one would fight it for cores.
WANTED_FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-ffp-contract=off", "-Wall", "-Wno-psabi"]


class PortableBuild(build_ext):
    """Leaves out the flags that the compiler does not know (Apple's has no -fopenmp: one thread then)."""

    def build_extension(self, extension):
        from pybind11.setup_helpers import has_flag

        extension.extra_compile_args += [flag for flag in WANTED_FLAGS if has_flag(self.compiler, flag)]
        super().build_extension(extension)


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
        "ffalora": ["configs/*.yaml", "report/*.html", "studies/*.yaml", "py.typed"],
        "ffalora_kernels": ["py.typed", "*.pyi"],
    },
    ext_modules=extensions(),
    cmdclass={"build_ext": PortableBuild},
)
