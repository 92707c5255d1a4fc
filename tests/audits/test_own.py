"""The audit of one's own run: a sound one holds, a broken one is caught, and nothing is written or charged."""

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from mutants import MUTANTS
from small_runs import CLIENT_LEVEL, PRIVATE

from ffalora.audits.canaries import guess
from ffalora.audits.mechanism import probe_mechanism
from ffalora.audits.own import audit_own
from ffalora.cli.audit import command
from ffalora.config import ConfigError
from ffalora.federated.experiment import build
from ffalora.privacy.correlation import Correlation


def test_a_sound_run_holds_and_the_power_of_its_canaries_is_stated(small):
    found = audit_own(small(**PRIVATE), canaries=100)
    assert found.holds and found.steps == 6
    assert {test.kind for test in found.tests} == {"one direction", "mislabelled", "random words"}
    assert all(test.epsilon_lower <= test.ceiling for test in found.tests)
    assert "could show" in str(found)


def test_a_single_canary_can_show_nothing_and_is_no_error():
    found = guess("client", "every round", np.array([1.0]), np.array([True]), 1e-5, 0.05)
    assert found.trials == 1 and found.epsilon_lower == found.ceiling == 0.0


def test_canaries_that_make_a_delta_too_large_are_judged_at_a_smaller_one(small):
    config = small(**PRIVATE | {"privacy__delta": 0.02})
    found = audit_own(config, canaries=100)
    assert found.delta < config.privacy.delta and found.holds


def test_canaries_disprove_a_run_that_does_not_clip(small, monkeypatch):
    strong = PRIVATE | {"privacy__noise_multiplier": 3.0, "optimizer__batch_size": 1000}
    MUTANTS["clipping removed"](monkeypatch)
    found = audit_own(small(**strong), canaries=1000)
    assert not found.sensitivity.holds
    assert found.tests[0].correct == found.tests[0].guesses


@pytest.mark.long
@pytest.mark.parametrize(
    "noise", [{"privacy__mechanism": "blt"}, {"privacy__mechanism": "banded-mf", "privacy__band": 2}]
)
def test_noise_that_is_correlated_holds_and_less_of_it_is_disproved(noise, small, monkeypatch):
    terms = {"privacy__unit": "sample", "privacy__target_epsilon": 1.0, "privacy__delta": 1e-3, "adapter__rank": 8}
    config = small(**terms, **noise, optimizer__batch_size=16)
    found = audit_own(config, canaries=100)
    assert found.holds and [test.kind for test in found.tests] == ["one direction"]
    monkeypatch.setattr(Correlation, "sensitivity", property(lambda self: 0.1))
    assert not audit_own(config, canaries=100).holds


def test_whole_clients_have_canaries_that_a_missing_clip_betrays(small, monkeypatch):
    strong = CLIENT_LEVEL | {"privacy__noise_multiplier": 3.0, "federation__participation": 1.0}
    found = audit_own(small(**strong), canaries=400)
    assert found.holds and found.steps == found.planned and [test.sees for test in found.tests] == ["every round"]
    assert found.tests[0].guesses and "real clients" in str(found)
    MUTANTS["updates are not clipped"](monkeypatch)
    found = audit_own(small(**strong), canaries=400)
    assert not found.holds and found.tests[0].correct == found.tests[0].guesses


@pytest.mark.long
@pytest.mark.parametrize("terms", [PRIVATE, CLIENT_LEVEL | {"federation__one_pass": "always"}])
def test_the_probe_of_a_run_catches_masks_by_position(terms, small, monkeypatch):
    config = small(**terms, adapter__dropout=0.2)
    assert probe_mechanism(build(config), 3).holds
    MUTANTS["dropout masks by position"](monkeypatch)
    assert not probe_mechanism(build(config), 3).holds


def test_nothing_protected_is_nothing_to_audit(small):
    with pytest.raises(ConfigError, match="nothing to audit"):
        audit_own(small())


def test_a_secure_run_is_audited_for_its_owner_alone(small, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(small(**PRIVATE, privacy__noise="secure").model_dump(mode="json")))
    refused = CliRunner().invoke(command, [str(path), "--canaries", "0"])
    assert refused.exit_code != 0
    found = CliRunner().invoke(command, [str(path), "--canaries", "0", "--private-to-me"])
    assert found.exit_code == 0 and "for the owner of the data alone" in found.output
    assert list(tmp_path.iterdir()) == [path]
