"""The public face: the names that are guessed are there, known to type checkers, and listed on their page."""

import ast
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import ffalora
from ffalora.config.names import OTHER_NAMES

ROOT = Path(__file__).resolve().parents[1]
GUESSED = (
    "simulate train predict evaluate load_config Config attach AdapterConfig convert get_peft_model load_adapters "
    "PrivateTrainer PrivacyArguments PrivacyLedger"
).split()


def names_for_type_checkers():
    """What ``ffalora/__init__.py`` imports, under TYPE_CHECKING or always."""
    tree = ast.parse(Path(ffalora.__file__).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return {alias.name for node in nodes for alias in node.names}


def test_guessed_names_are_listed():
    assert set(GUESSED) <= set(dir(ffalora))
    assert dir(ffalora) == sorted(ffalora.__all__)


def test_every_name_is_what_it_says_and_no_module():
    for name in ffalora.__all__:
        found = getattr(ffalora, name)
        assert not isinstance(found, types.ModuleType), name
        assert name == "__version__" or found.__name__ == name
    assert ffalora.simulate.__module__ == "ffalora.federated.simulate"


def test_type_checkers_know_every_name():
    assert names_for_type_checkers() == set(ffalora.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="simulator"):
        ffalora.simulator  # noqa: B018


def test_neither_the_package_nor_its_configuration_imports_torch():
    code = (
        "import sys, ffalora; dir(ffalora); ffalora.AdapterConfig(r=4); ffalora.load_config(); "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_the_page_lists_every_name_once():
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)", page, re.MULTILINE)) == sorted(set(ffalora.__all__) - {"__version__"})


def test_the_page_lists_every_second_name():
    page = (ROOT / "docs" / "api.md").read_text()
    rows = [f"| {s}.{key} | `{s}.{other}` |" for s, names in OTHER_NAMES.items() for other, key in names.items()]
    assert [row for row in rows if row not in page] == []
