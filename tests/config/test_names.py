"""PEFT's and Opacus's names stand for ours in Python, files and flags; two names of one key never disagree silently."""

import pytest
from peft import LoraConfig

from ffalora.cli import main
from ffalora.config import AdapterConfig, Config, ConfigError, PrivacyConfig, load_config, merge, to_yaml
from ffalora.config.adapter import RunAdapterConfig
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.trainer import PrivacyArguments, PrivateTrainer
from ffalora.trainer.terms import promised

THEIRS = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.05, "use_rslora": True, "target_modules": ["q", "v"]}
OURS = {"rank": 4, "alpha": 16, "dropout": 0.05, "use_rslora": True, "target_modules": ["q", "v"]}


def said(function, *positional, **named):
    """The one sentence that refuses a call: ours, without pydantic's words."""
    with pytest.raises(ConfigError) as caught:
        function(*positional, **named)
    message = str(caught.value)
    assert "pydantic" not in message and "http" not in message and "validation error" not in message
    return message


def test_an_adapter_in_pefts_words_is_the_same_in_ours():
    assert AdapterConfig(**THEIRS) == AdapterConfig(**OURS)
    assert AdapterConfig(**THEIRS, task_type="SEQ_CLS", bias="none", use_dora=False) == AdapterConfig(**OURS)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [(True, "kaiming"), ("gaussian", "gaussian"), ("orthogonal", "orthonormal"), ("pissa", "pissa"),
     ("pissa_niter_4", "pissa"), ("olora", "olora")],
)  # fmt: skip
def test_pefts_inits_have_our_names(theirs, ours):
    assert AdapterConfig(init_lora_weights=theirs).init == ours
    assert load_config(None, {"adapter.init_lora_weights": theirs}).adapter.init == ours


def test_a_lora_config_is_taken_where_an_adapter_is_configured():
    theirs = LoraConfig(**THEIRS)
    wanted = AdapterConfig(**OURS)
    assert AdapterConfig.from_peft(theirs) == AdapterConfig.model_validate(theirs) == wanted
    of_a_run = RunAdapterConfig(**{"init": "kaiming"} | OURS)
    assert Config(adapter=theirs).adapter == load_config(None, {"adapter": theirs}).adapter == of_a_run
    assert AdapterConfig.from_peft(theirs, trained="both").trained == "both"


def test_what_a_lora_config_asks_for_and_we_do_not_do_is_refused_by_name():
    assert "use_dora=True" in said(Config, adapter=LoraConfig(r=4, use_dora=True))
    assert "use_dora=True" in said(AdapterConfig, use_dora=True)
    assert "loftq" in said(AdapterConfig, init_lora_weights="loftq")
    assert "set head to 'trained'" in said(AdapterConfig, modules_to_save=["score"])


def test_delta_and_epsilon_have_opacus_names_everywhere():
    assert PrivacyConfig(unit="sample", epsilon=3, target_delta=1e-6) == PrivacyConfig(
        unit="sample", target_epsilon=3, delta=1e-6
    )
    assert PrivacyArguments(epsilon=3, target_delta=1e-6) == PrivacyArguments(target_epsilon=3, delta=1e-6)
    ledger = PrivacyLedger(0, 100, 0.1, 1.0, target_delta=1e-6, max_steps=3, epsilon=4.0)
    assert ledger == PrivacyLedger(0, 100, 0.1, 1.0, 1e-6, 3, 4.0)


def test_files_and_flags_take_either_name_and_the_later_layer_wins(tmp_path):
    (tmp_path / "c.yaml").write_text("adapter:\n  rank: 2\n  lora_alpha: 5\nprivacy.target_delta: 1e-6\n")
    config = load_config(tmp_path / "c.yaml", {"adapter.r": 16, "privacy.delta": 1e-4})
    assert (config.adapter.rank, config.adapter.alpha, config.privacy.delta) == (16, 5.0, 1e-4)
    assert "rank: 16" in to_yaml(config) and "lora_alpha" not in to_yaml(config)


def test_a_method_takes_either_name_too():
    methods = {"a": {"adapter.r": 2}, "b": {"adapter": {"r": 3}}, "c": {"adapter.rank": 4}}
    values = merge({"methods": methods, "adapter.rank": 8}, {"methods.c.adapter.r": 5})
    assert {name: run.adapter.rank for name, run in load_config(None, values).runs().items()} == {
        "a": 2,
        "b": 3,
        "c": 5,
    }


@pytest.mark.parametrize(
    ("function", "named", "both"),
    [
        (AdapterConfig, {"r": 8, "rank": 4}, ("r=8", "rank=4")),
        (PrivacyConfig, {"delta": 1e-5, "target_delta": 1e-6}, ("delta=1e-05", "target_delta=1e-06")),
        (PrivacyArguments, {"epsilon": 3, "target_epsilon": 4}, ("epsilon=3", "target_epsilon=4")),
        (load_config, {"overrides": {"adapter.r": 8, "adapter.rank": 4}}, ("adapter.r=8", "adapter.rank=4")),
        (load_config, {"overrides": {"adapter": {"r": 8, "rank": 4}}}, ("r=8", "rank=4")),
    ],
)
def test_two_names_with_different_values_are_refused_naming_both(function, named, both):
    message = said(function, **named)
    assert all(part in message for part in both), message


def test_two_names_with_one_value_agree():
    assert AdapterConfig(r=8, rank=8).rank == 8


@pytest.mark.parametrize(
    ("function", "named", "meant"),
    [
        (AdapterConfig, {"rnak": 8}, "did you mean rank?"),
        (AdapterConfig, {"lora_alhpa": 8}, "did you mean lora_alpha?"),
        (PrivacyConfig, {"epsilom": 8}, "did you mean epsilon?"),
        (PrivacyArguments, {"epsilom": 8}, "did you mean epsilon?"),
        (Config, {"sed": 1}, "did you mean seed"),
        (Config, {"adapter": {"r": 0}}, "adapter.rank=0: must be at least 1"),
        (load_config, {"overrides": {"text": ["a"]}}, "did you mean data.text?"),
    ],
)
def test_a_wrong_argument_is_answered_in_our_words(function, named, meant):
    assert meant in said(function, **named)


def test_a_value_without_its_name_is_refused():
    assert "AdapterConfig(method=…)" in said(AdapterConfig, 8)


@pytest.mark.parametrize(
    ("flag", "meant"), [("--text", "--data.text"), ("--lr", "--optimizer.lr"), ("--r", "--adapter.r")]
)
def test_a_flag_without_its_section_proposes_the_whole_one(flag, meant, capsys):
    with pytest.raises(SystemExit):
        main(["simulate", flag, "1"])
    assert f"'{meant}'" in capsys.readouterr().err


def test_flags_of_two_names_with_different_values_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["simulate", "--adapter.r", "4", "--adapter.rank", "8"])
    shown = capsys.readouterr().err
    assert "adapter.r=4" in shown and "adapter.rank=8" in shown


def test_the_trainer_takes_what_is_promised_as_one_object_or_by_name():
    others = {"epsilon": 3.0, "target_delta": 1e-6, "train_dataset": []}
    assert promised(None, others, PrivateTrainer) == PrivacyArguments(target_epsilon=3.0, delta=1e-6)
    assert others == {"train_dataset": []}
    with pytest.raises(ValueError, match=r"epsilon=2\.0 and privacy are both given"):
        promised(PrivacyArguments(target_epsilon=3.0), {"epsilon": 2.0}, PrivateTrainer)
    with pytest.raises(ValueError, match="not told what it promises"):
        promised(None, {}, PrivateTrainer)


def test_an_argument_that_no_trainer_has_is_a_type_error_with_the_name_that_was_meant():
    for wrong, meant in (({"epsilom": 3.0}, "epsilon"), ({"epsilon": 3.0, "train_datset": []}, "train_dataset")):
        with pytest.raises(TypeError, match=rf"PrivateTrainer\(\w+=…\): there is no .*; did you mean {meant}\?"):
            promised(None, wrong, PrivateTrainer)
