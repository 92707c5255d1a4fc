"""The house: folders that shadow nothing, imports that go one way, files that reach the user, true documents."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ffalora
from ffalora.cli import VERBS
from ffalora.config import fields

ROOT = Path(__file__).resolve().parents[1]
#: The rooms of ``ffalora/``: each may import itself and those before it. ``privacy`` stands aside (see MECHANISM).
ROOMS = (
    "files", "config", "data", "adapters", "models", "training", "runs", "baselines", "federated", "trainer", "report",
    "audits", "planning", "studies", "cli",
)  # fmt: skip
#: What the mechanism may import, and which rooms may import it.
MECHANISM = ("files", "config")
AROUND_IT = ROOMS[ROOMS.index("training") :]
#: Of files that hold text, the ends of their names.
TEXTS = set(
    ".py .pyi .ipynb .md .yaml .yml .cff .toml .json .txt .html .css .js .svg .cpp .h .c .cu .sh .csv".split()
) | {""}


def tracked():
    """Text files of the repository (of the folder, where it is no repository)."""
    done = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False)
    names = done.stdout.split("\n") if done.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.glob("**/*.*")]
    return [ROOT / name for name in names if name and (ROOT / name).is_file() and (ROOT / name).suffix in TEXTS]


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(file):
    """Absolute names of the modules that a file of the package imports, also inside functions."""
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from names if names and all(is_module(name) for name in names) else [module, *names]


@pytest.mark.long
def test_transformers_works_from_the_root_beside_the_folder_called_kernels():
    code = """
import transformers, torch
from transformers.utils import is_kernels_available
import importlib.metadata
try:
    importlib.metadata.version("kernels"); installed = True
except importlib.metadata.PackageNotFoundError:
    installed = False
assert is_kernels_available() == installed, "the folder kernels/ is taken for the package of that name"
sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
config = transformers.BertConfig(**sizes)
model = transformers.AutoModelForSequenceClassification.from_config(config)
assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 2)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (ROOT / "kernels" / "__init__.py").exists()


def modules():
    """Every module of the package by its dotted name; a package by its own."""
    names = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in (ROOT / "ffalora").rglob("*.py")}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def imported_modules():
    """Which modules of the package each of its modules imports."""
    known = modules()

    def module_of(name):
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    return {name: {module_of(n) for n in imports(file)} - {"", name} for name, file in known.items()}


def room_of(name):
    """The room that a module lies in; '' for the public face, the version and the way in."""
    found = name.split(".")[1:2]
    return found[0] if found and found[0] in (*ROOMS, "privacy") else ""


def circles(arrows):
    """Groups of nodes from each of which every other can be reached."""
    reach = {node: set(targets) for node, targets in arrows.items()}
    for middle in reach:
        for node in reach:
            if middle in reach[node]:
                reach[node] |= reach[middle]
    return sorted({tuple(sorted(n for n in reach[node] if node in reach[n])) for node in reach if node in reach[node]})


def test_every_file_lies_in_a_room_but_the_face_and_the_way_in():
    corridor = {file.name for file in (ROOT / "ffalora").glob("*.py")}
    assert corridor == {"__init__.py", "__main__.py", "_version.py"}
    folders = {f.name for f in (ROOT / "ffalora").iterdir() if f.is_dir() and any(f.glob("*.py"))}
    assert folders <= {*ROOMS, "privacy"}


def test_imports_go_one_way():
    order = {room: i for i, room in enumerate(ROOMS)}
    upward = []
    for name, targets in imported_modules().items():
        room = room_of(name)
        for other in {room_of(target) for target in targets} - {room, ""} if room else ():
            if room == "privacy":
                allowed = other in MECHANISM
            elif other == "privacy":
                allowed = room in AROUND_IT
            else:
                allowed = order[other] < order[room]
            if not allowed:
                upward.append(f"{name} imports from {other}")
    assert upward == []


def test_no_rooms_and_no_files_import_each_other_in_a_circle():
    arrows = imported_modules()
    assert circles(arrows) == []
    rooms = {room: set() for room in (*ROOMS, "privacy")}
    for name, targets in arrows.items():
        if room_of(name):
            rooms[room_of(name)] |= {room_of(target) for target in targets} - {"", room_of(name)}
    assert circles(rooms) == []


def code_lines(function):
    """Lines of a function without its signature and its docstring."""
    first = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - first[0].lineno + 1 if first else 0


def test_files_and_functions_stay_of_a_size_that_can_be_read_at_once():
    files, functions = [], []
    for file in [
        *(ROOT / "ffalora").rglob("*.py"),
        *(ROOT / "kernels").rglob("*.py"),
        *(ROOT / "csrc").rglob("*.[ch]*"),
    ]:
        text = file.read_text()
        if text.count("\n") > 320:
            files.append(str(file.relative_to(ROOT)))
        for node in ast.walk(ast.parse(text)) if file.suffix == ".py" else ():
            if isinstance(node, ast.FunctionDef) and code_lines(node) > 60:
                functions.append(f"{file.relative_to(ROOT)}:{node.name}")
    assert (files, functions) == ([], [])


def test_no_two_test_files_have_one_name():
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))  # pytest knows a file of tests by its name alone


def test_the_operations_know_nothing_of_the_layer_above_and_cpp_nothing_of_torch():
    own = (ROOT / "kernels").rglob("*.py")
    assert [(f.name, n) for f in own for n in imports(f) if n == "ffalora" or n.startswith("ffalora.")] == []
    included = [
        (f.name, line) for f in (ROOT / "csrc").rglob("*.[ch]*") for line in re.findall(r"#include.*", f.read_text())
    ]
    assert [pair for pair in included if re.search(r"torch|ATen|c10", pair[1])] == []


def test_nothing_tells_of_the_machine_it_was_written_on():
    # written so that this file does not find itself
    tells = re.compile(r"/wor[k]/|/roo[t]/|/hom[e]/\w|file[:]///|pypi[.]org|download[.]pytorch[.]org")
    found = [f"{f.relative_to(ROOT)}: {m[0]}" for f in tracked() for m in tells.finditer(f.read_text(errors="replace"))]
    assert found == []


def test_text_files_are_read_and_written_in_utf_8_whatever_the_machine_takes_by_default():
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / "ffalora").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") in ("read_text", "write_text")
        and "encoding" not in [keyword.arg for keyword in node.keywords]
    ]
    assert found == []


def test_no_work_is_left_as_a_note():
    notes = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b")
    assert [
        f"{f.relative_to(ROOT)}: {m[0]}" for f in tracked() for m in notes.finditer(f.read_text(errors="replace"))
    ] == []


def test_makefile_targets_that_documents_name_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"(?:^|`)(?:\w+=\S+ )*make ([\w-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert named and named <= targets, (name, named - targets)


def test_hooks_and_hosted_runs_use_what_make_and_ci_use():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    linted = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    tools = re.findall(r"\$\(BIN\)/(\S+(?: check| format)?)", linted)
    assert [re.match(r"\.venv/bin/(\S+(?: check| format)?)", hook["entry"])[1] for hook in hooks] == tools
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert [step["run"] for step in jobs["linux"]["steps"] if "run" in step] == [".ci/run"]
    said = "\n".join(step.get("run", "") for step in jobs["without-triton"]["steps"])
    assert all(tool in said for tool in tools) and "pytest tests" in said


def test_the_citation_names_this_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == ffalora.__version__ and cited["references"][0]["year"] == 2024


def test_verbs_and_keys_that_documents_name_exist():
    text = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    assert set(re.findall(r"`ffalora (\w+)", text)) <= set(VERBS)
    sections = {key.partition(".")[0] for key in fields() if "." in key}
    named = {key for key in re.findall(r'[`"-]((?:\w+)\.(?:\w+))[`" =]', text) if key.partition(".")[0] in sections}
    assert named and named <= set(fields()), named - set(fields())


def test_links_and_files_that_documents_name_exist():
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        linked = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        scripts = re.findall(r"python (benchmarks/\w+\.py)", text)
        assert [path for path in linked + scripts if not (ROOT / path).exists()] == []


def readme_examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_loop_of_ones_own_in_the_readme_runs_and_spends_what_it_says(small, capsys):
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from ffalora.data.tasks import classification_losses

    folder = small().model.name
    texts = [f"word{i % 40} word{(7 * i) % 40} word{(3 * i) % 40}" for i in range(200)]
    config = BertConfig.from_pretrained(folder, num_labels=2)
    names = {
        "model": BertForSequenceClassification(config).eval(),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "texts": texts,
        "labels": torch.arange(200) % 40 // 20,
        "losses": classification_losses,
    }
    shorter = readme_examples()[1].replace("len(texts), 64, 30", "len(texts), 64, 3")
    exec(compile(shorter, "README.md", "exec"), names)
    assert names["ledger"].steps_taken == 3 and 1.0 < names["ledger"].epsilon() <= 3.0
    assert "ε = " in capsys.readouterr().out
    assert not torch.equal(names["adapters"].state(), torch.zeros_like(names["adapters"].state()))


def test_the_readme_example_runs(monkeypatch, tmp_path, minilm_folder, movie_reviews_folder, capsys):
    from ffalora.config import from_mapping, merge
    from ffalora.federated import simulate as module

    real = module.simulate
    small = {
        "federation.rounds": 1,
        "federation.local_steps": 1,
        "data.max_samples": 300,
        "data.max_evaluation_samples": 20,
    }
    monkeypatch.setattr(
        module,
        "simulate",
        lambda config, folder: real(from_mapping(merge(config.model_dump(), small)), folder, progress=False),
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(readme_examples()[0], "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "accuracy" in shown and shown.count("label") == 2
