"""Hostile files: a sample of the fuzzer's inputs on every run, all of them in the slow one; and the classic attacks."""

import json

import pytest
import yaml
from fuzz import TARGETS, AdapterFiles, Broken, fuzz, watched

from ffalora.adapters import CheckpointError
from ffalora.config import ConfigError, load_config
from ffalora.federated.checkpoint import read_checkpoint
from ffalora.privacy.accounting import LedgerMismatch, PrivacyLedger


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_does_no_more_than_raise_a_clear_error(name):
    found = fuzz(name, 500, seed=1)
    assert sum(count for key, count in found.items() if key.endswith(("Error", "Mismatch"))) > 250


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", TARGETS)
def test_none_of_a_hundred_thousand_damaged_files_does_more_than_raise_a_clear_error(name):
    fuzz(name, 25_000, seed=2)


def test_the_fuzzer_sees_a_reader_that_breaks(monkeypatch):
    monkeypatch.setattr(AdapterFiles, "errors", (ZeroDivisionError,))
    with pytest.raises(Broken, match="CheckpointError"):
        fuzz("adapter files", 100)


def test_the_fuzzer_sees_code_that_runs():
    import os

    with watched() as events:
        os.system("true")
    assert events == ["os.system"]


def test_a_pickle_is_never_opened(tmp_path):
    """A pickle that makes a file when it is opened, under the names of our files."""
    made = tmp_path / "made"
    attack = b"cos\nsystem\n(S'touch " + str(made).encode() + b"'\ntR."
    for name in ("checkpoint.safetensors", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(attack)
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        read_checkpoint(tmp_path / "checkpoint.safetensors")
    target = AdapterFiles(tmp_path / "files")
    (tmp_path / "files" / "adapter_model.safetensors").write_bytes(attack)
    with pytest.raises(CheckpointError, match="cannot read"):
        target.read()
    assert not made.exists()


def test_a_yaml_tag_runs_no_code(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"seed: !!python/object/apply:os.system ['touch {tmp_path / 'made'}']\n")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(path)
    assert not (tmp_path / "made").exists()


def test_a_few_lines_of_yaml_that_stand_for_gigabytes_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"aliases \(\*a0\) are not read"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000])
def test_deep_nesting_is_refused_before_the_stack_overflows(content, tmp_path):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "config.yaml")
    target = AdapterFiles(tmp_path / "files")
    (tmp_path / "files" / "ffalora_config.json").write_text(content)
    with pytest.raises(CheckpointError):
        target.read()


def test_a_header_that_claims_terabytes_is_refused(tmp_path):
    header = json.dumps({"row": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "checkpoint.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "checkpoint.safetensors")


@pytest.mark.parametrize("number", [10**400, float("nan"), float("inf"), -(10**30)])
def test_a_number_that_is_none_never_enters_the_ledger(number):
    state = PrivacyLedger(0, 10, 0.5, 1.0, 1e-5, max_steps=9).state_dict()
    for key in ("noise_multiplier", "delta", "target_epsilon", "max_steps", "steps_taken"):
        with pytest.raises(LedgerMismatch):
            PrivacyLedger.from_state_dict(state | {key: number})


def test_a_sound_configuration_that_looks_like_an_attack_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"seed": 3, "methods": {"a": {"optimizer.lr": 0.1}}}))
    assert load_config(path).seed == 3
