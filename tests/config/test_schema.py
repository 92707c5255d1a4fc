"""The schema for editors: it accepts what the configuration accepts, and marks what it refuses."""

import json

import pytest
import yaml

from ffalora.cli import main
from ffalora.config import ConfigError, fields, load_config, to_yaml
from ffalora.config.names import dotted_names
from ffalora.config.schema import json_schema


@pytest.fixture
def jsonschema():
    """A library that checks values against schemas, where there is one."""
    return pytest.importorskip("jsonschema")


def test_every_key_and_every_second_name_is_in_the_schema():
    schema = json_schema()

    def has(key):
        section, _, name = key.rpartition(".")
        properties = schema["properties"]
        if section:
            properties = schema["$defs"][properties[section]["$ref"].rpartition("/")[2]]["properties"]
        return name in properties and (key not in fields() or properties[name].get("description"))

    assert [key for key in (*fields(), *dotted_names()) if not has(key)] == []


@pytest.mark.parametrize("path", [None, "ffalora/configs/demo.yaml"])
def test_resolved_configurations_fit_the_schema(path, jsonschema):
    jsonschema.validate(yaml.safe_load(to_yaml(load_config(path))), json_schema())


RIGHT = [
    {"data": {"text": "review"}, "privacy": {"prior": "runs/a"}, "report_to": "wandb"},
    {"data": {"text": ["a", "b"]}, "privacy.prior": ["runs/a"], "report_to": []},
    {"optimizer.lr": 0.5, "adapter.r": 4, "privacy.target_delta": 1e-6, "data.text": None},
]


@pytest.mark.parametrize("right", RIGHT)
def test_what_is_accepted_fits(right, jsonschema):
    load_config(overrides=right)
    jsonschema.validate(right, json_schema())


WRONG = [
    {"optimizer": {"lrr": 1}}, {"adapter": {"r": 0}}, {"data": {"task": "guess"}},
    {"optimizer.lrr": 1}, {"adapter.r": 0}, {"report_to": "paper"}, {"data.text": 3},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_refused_does_not_fit(wrong, jsonschema):
    with pytest.raises(ConfigError):
        load_config(overrides=wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json_schema())


def test_the_command_prints_it(capsys):
    with pytest.raises(SystemExit):
        main(["schema"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema()))
