"""What leaves this repository is whole: wheels, the conda recipe, the container, the hub's kernels."""

import ast
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
#: Names of conda-forge where they differ.
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def script(name):
    """A module of the folder of scripts for releases."""
    spec = importlib.util.spec_from_file_location(f"release_{name}", ROOT / "release" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tracked():
    done = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("no git repository: nobody knows which files belong to the packages")
    return done.stdout.split()


def package_data():
    """The patterns of setup.py, by package."""
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.Call)]
    setup = next(call for call in calls if getattr(call.func, "id", "") == "setup")
    return ast.literal_eval(next(word.value for word in setup.keywords if word.arg == "package_data"))


def test_every_file_of_the_packages_that_is_no_module_is_packaged():
    others = [name for name in script("contents").packaged(tracked()) if not name.endswith(".py")]
    patterns = [f"{package}/{pattern}" for package, found in package_data().items() for pattern in found]
    assert [name for name in others if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in others)] == []


def wheel_of(names, folder, demanded=()):
    path = folder / "ffalora-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
        archive.writestr("ffalora-0.dist-info/METADATA", "".join(f"Requires-Dist: {line}\n" for line in demanded))
    return path


def test_a_wheel_with_a_file_too_few_or_too_many_or_a_demand_for_gpus_is_noticed(tmp_path):
    contents, names = script("contents"), tracked()
    whole = {*contents.packaged(names), "ffalora_kernels/_cpu.cpython-311-x86_64-linux-gnu.so"}
    extra = ["torch>=2.6", "triton>=3; extra == 'triton'"]
    assert contents.wheel_problems(wheel_of(whole, tmp_path, extra), names) == []
    without = whole - {"ffalora/studies/theory/base.yaml", "ffalora_kernels/triton/clip.py"}
    assert contents.wheel_problems(wheel_of(without, tmp_path), names) == [
        "lacks ffalora/studies/theory/base.yaml",
        "lacks ffalora_kernels/triton/clip.py",
    ]
    assert contents.wheel_problems(wheel_of({*whole, "tests/x.py"}, tmp_path), names) == ["holds tests/x.py"]
    plain = {name for name in whole if not name.endswith(".so")}
    assert "lacks the C++ extension" in contents.wheel_problems(wheel_of(plain, tmp_path), names)[0]
    assert contents.wheel_problems(wheel_of(whole, tmp_path, ["triton>=3"]), names) == ["demands triton>=3"]


def test_an_sdist_without_a_header_is_noticed(tmp_path):
    contents, names = script("contents"), tracked()
    path = tmp_path / "ffalora-0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in contents.sources(names) - {"csrc/tile.h"} | {"PKG-INFO"}:
            archive.addfile(tarfile.TarInfo(f"ffalora-0/{name}"))
    assert contents.sdist_problems(path, names) == ["lacks csrc/tile.h"]


def test_the_conda_recipe_demands_what_the_package_demands():
    recipe = yaml.safe_load((ROOT / "release" / "recipe.yaml").read_text())
    demanded = [re.match(r"([\w-]+)(.*)", line).groups() for line in PROJECT["project"]["dependencies"]]
    expected = [f"python {PROJECT['project']['requires-python']}"]
    expected += [f"{CONDA.get(name, name)} {version}" for name, version in demanded]
    assert recipe["requirements"]["run"] == expected
    host = [re.sub(r"(>=)", r" \1", line) for line in PROJECT["build-system"]["requires"]]
    assert recipe["requirements"]["host"] == ["python", "pip", *host]
    version = re.search(r'"(.+)"', (ROOT / "ffalora" / "_version.py").read_text())[1]
    assert recipe["package"] == {"name": "ffalora", "version": version}


def test_wheels_are_built_and_tried_for_every_system_and_nothing_else_is_published():
    build = PROJECT["tool"]["cibuildwheel"]
    assert build["test-command"] == "python {project}/release/installed.py"
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    systems = jobs["wheels"]["strategy"]["matrix"]["system"]
    assert [name.partition("-")[0] for name in systems] == ["ubuntu", "ubuntu", "macos", "windows"]
    assert jobs["publish"]["needs"] == ["wheels", "sdist"] and "startsWith(github.ref" in jobs["publish"]["if"]


def test_a_container_keeps_its_ledgers_in_the_mounted_folder():
    text = (ROOT / "release" / "Containerfile").read_text()
    folder = re.search(r"^VOLUME (\S+)", text, re.MULTILINE)[1]
    assert f"FFALORA_LEDGERS={folder}/" in text
    for name in re.findall(r"/source/(\S+\.py)", text):
        assert (ROOT / name).is_file()


@pytest.fixture
def hub(tmp_path):
    return script("hub_kernels").write_repository(tmp_path / "hub")


def test_kernels_of_the_hub_work_beside_the_installed_package_and_import_nothing_of_it(hub):
    import ffalora_kernels

    for variant in hub:
        described = json.loads((variant / "metadata.json").read_text())
        assert described["backend"]["type"] == variant.name.removeprefix("torch-")
        identity = described["id"]
        spec = importlib.util.spec_from_file_location(
            identity, variant / "__init__.py", submodule_search_locations=[str(variant)]
        )
        module = sys.modules[identity] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        results = []
        for library in (module, ffalora_kernels):
            with library.use_backend("reference"):
                y = torch.zeros(5, 7)
                h, b = torch.arange(15.0).reshape(5, 3), torch.arange(21.0).reshape(1, 7, 3)
                library.expand_(y, h, b, library.Segments.from_lengths([2, 3]), 2.0)
            results.append(y)
        assert torch.equal(*results) and results[0].abs().sum() > 0
        assert module.expand_.__module__.startswith(identity) and module.explain()["cpp"] != "available"
        for name in [name for name in sys.modules if name.partition(".")[0] == identity]:
            del sys.modules[name]


def test_the_loader_of_the_hub_takes_its_kernels_from_disk(hub):
    kernels = pytest.importorskip("kernels", reason="the package `kernels` is not installed")
    if not hasattr(kernels, "get_local_kernel"):
        pytest.skip("the folder called kernels is in the package's place")
    module = kernels.get_local_kernel(hub[0].parent, backend="cpu")
    assert module.explain()["reference"] == "available"


def test_the_hub_s_folder_is_not_written_over(hub):
    with pytest.raises(FileExistsError, match="holds something already"):
        script("hub_kernels").write_repository(hub[0].parents[1])
