"""The configuration: one meaning for YAML, flags and Python; every mistake is answered with its key and the remedy."""

import json

import pytest
import yaml

from ffalora.config import Config, ConfigError, fields, from_mapping, load_config, merge, to_yaml
from ffalora.config.messages import near_keys
from ffalora.config.values import NAMED_ELSEWHERE


def message(overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    return str(caught.value)


def test_a_resolved_configuration_reads_back_as_itself(tmp_path):
    config = load_config(
        None, {"optimizer.lr": 0.25, "adapter.target_modules": ["query"], "methods": {"x": {"seed": 3}}}
    )
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "c.yaml") == config


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("optimizer:\n  lr: 2\n  momentum: 0.5\nprivacy.delta: 1e-6\n")
    config = load_config(tmp_path / "c.yaml", {"optimizer.lr": 3})
    assert (config.optimizer.lr, config.optimizer.momentum, config.privacy.delta) == (3.0, 0.5, 1e-6)
    assert config.optimizer.batch_size == Config().optimizer.batch_size


MIXED = {
    "optimizer.lr": "optimizer:\n  momentum: 0.5\noptimizer.lr: 2\n",
    "privacy.target_epsilon": "privacy:\n  noise: secure\nprivacy.target_epsilon: 8\nprivacy.unit: sample\n",
    "methods.a.optimizer.lr": "methods:\n  a:\n    optimizer:\n      momentum: 0.5\n    optimizer.lr: 2\n",
}


@pytest.mark.parametrize("key", MIXED)
def test_flags_win_over_a_file_that_mixes_nested_and_dotted_keys(key, tmp_path):
    (tmp_path / "c.yaml").write_text(MIXED[key])
    config = load_config(tmp_path / "c.yaml", {key: 0.25})
    found = next(iter(config.runs().values())).model_dump()
    section, name = key.split(".")[-2:]
    assert found[section][name] == 0.25
    assert found["optimizer"]["momentum"] == 0.5 or found["privacy"]["noise"] == "secure"


@pytest.mark.parametrize(
    "layer", [{"optimizer": {"lr": 1}, "optimizer.lr": 2}, {"optimizer.lr": 1, "optimizer": {"lr": 2}}]
)
def test_a_key_that_one_layer_gives_twice_is_refused(layer):
    assert "optimizer.lr is 1 and 2; give one of them" in message(layer)


def test_two_names_nested_and_dotted_are_refused():
    assert "adapter.rank is 8 and 4" in message({"adapter": {"rank": 8}, "adapter.r": 4})


def test_every_method_differs_from_the_base_in_its_own_keys_alone():
    methods = {"a": {"optimizer.lr": 8, "federation.strategy": "ffa"}, "b": {"optimizer": {"lr": 2}}}
    runs = load_config(None, {"methods": methods, "federation.strategy": "lora"}).runs()
    assert {n: (r.optimizer.lr, r.federation.strategy) for n, r in runs.items()} == {
        "a": (8.0, "ffa"),
        "b": (2.0, "lora"),
    }
    assert all(not run.methods for run in runs.values())


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ({"b": {"seeds": 3}}, "methods.b.seeds: all methods are repeated alike"),
        ({"seed-free": {}}, "'seed-free' is named as folders of seeds are"),
    ],
)
def test_repeats_are_those_of_all_methods_and_their_folders_no_method_s(methods, said):
    assert said in message({"methods": methods})


def test_a_flag_changes_one_method_beside_what_the_file_says_of_it():
    base = {"methods": {"a": {"optimizer.lr": 8, "seed": 1}, "b": {"seed": 2}}}
    runs = from_mapping(merge(base, {"methods.a.optimizer.lr": 4})).runs()
    assert (runs["a"].optimizer.lr, runs["a"].seed, runs["b"].optimizer.lr) == (4.0, 1, Config().optimizer.lr)


@pytest.mark.parametrize("key", ["seed", "adapter.seed", "model.head_seed"])
def test_a_seed_is_of_64_bits_as_generators_take_it(key):
    assert f"{key}={2**64}: must be below {2**64}" in message({key: 2**64})
    assert load_config(None, {key: 2**64 - 1})


@pytest.mark.parametrize("rank", [-1, 0])
def test_a_rank_of_some_layers_is_one(rank):
    assert f"adapter.rank_pattern={rank}: must be at least 1" in message({"adapter.rank_pattern": {"query": rank}})


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("optimizer.lrr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("optimiser.lr", "optimizer"),
        ("adapter.ranks", "adapter.rank"),
        ("privacy.target_epsilom", "privacy.target_epsilon"),
        ("federation.epochs_local", None),
    ],
)
def test_a_misspelt_key_is_refused_and_the_right_one_proposed(wrong, meant):
    said = message({wrong: 1})
    assert wrong.partition(".")[0] in said and "there is no such key" in said
    assert meant is None or meant in said.partition("did you mean")[2]


def test_a_misspelt_key_inside_a_method_names_the_method():
    assert message({"methods": {"ffa": {"optimizer.lrr": 1}}}).startswith("methods.ffa: optimizer.lrr")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"adapter.rank": 0}, ["adapter.rank=0", "at least 1"]),
        ({"adapter.rank": 2.5}, ["adapter.rank=2.5", "whole number"]),
        ({"optimizer.lr": "fast"}, ["optimizer.lr='fast'", "a number"]),
        ({"optimizer.lr": float("inf")}, ["optimizer.lr=inf", "finite"]),
        ({"privacy.delta": 1.0}, ["privacy.delta=1.0", "below 1"]),
        ({"privacy.accountant": "rpd"}, ["privacy.accountant='rpd'", "'prv'", "did you mean rdp"]),
        ({"adapter.target_modules": 5}, ["adapter.target_modules=5", "text or a list"]),
        ({"data.text": 5}, ["data.text=5", "a list"]),
        ({"optimizer": 5}, ["optimizer=5", "section"]),
        ({"model.compile": "maybe"}, ["model.compile='maybe'", "true or false"]),
        ({"clients.proportions": [[0.1, "x"]]}, ["clients.proportions[0][1]='x'", "a number"]),
        ({"methods": {"a/b": {}}}, ["methods", "'a/b'", "letters"]),
    ],
)
def test_a_value_of_the_wrong_kind_is_answered_with_key_value_and_what_it_must_be(overrides, parts):
    said = message(overrides)
    assert all(part in said for part in parts), said
    assert "\n" not in said


def test_all_mistakes_are_told_at_once_one_line_each():
    assert len(message({"adapter.rank": 0, "optimizer.lr": -1, "seeds": 0}).splitlines()) == 3


@pytest.mark.parametrize(
    ("privacy", "part"),
    [
        ({"unit": "sample"}, "exactly one of"),
        ({"unit": "sample", "target_epsilon": 6, "noise_multiplier": 1}, "exactly one of"),
        ({"unit": "sample", "target_epsilon": 6, "noise_multiplier": 0}, "infinite ε"),
        ({"target_epsilon": 6}, "unit='none' adds no noise"),
        ({"noise_multiplier": 1.0}, "unit='none' adds no noise"),
    ],
)
def test_a_budget_that_would_not_be_kept_is_refused(privacy, part):
    assert part in message({"privacy": privacy})


@pytest.mark.parametrize(
    ("clients", "part"),
    [
        ({"partition": "labels"}, "needs clients.proportions"),
        ({"partition": "column"}, "needs clients.column"),
        ({"proportions": [[0.1, 0.9], [0.9, 0.1]]}, "set partition to 'labels'"),
        ({"quantities": [1, 2]}, "set partition to 'quantity'"),
        ({"partition": "labels", "proportions": [[0.1, 0.9]], "count": 3}, "count=3"),
    ],
)
def test_a_partition_that_lacks_or_ignores_its_key_is_refused(clients, part):
    assert part in message({"clients": clients})


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1, 2\n", "just text"])
def test_a_file_that_is_no_configuration_is_named(content, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="absent"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (
            "privacy:\n  unit: sample\n  target_epsilon: 6\nseed: 1\nprivacy:\n  delta: 1e-6\n",
            "privacy is given again in line 5",
        ),
        ("optimizer:\n  lr: 1\n  lr: 2\n", "lr is given again in line 3"),
        ("? [a, b]\n: 1\n", "a key in line 1 is no name"),
        ("data: &a {text: [x]}\nmodel: *a\n", "aliases"),
    ],
)
def test_what_would_be_lost_in_reading_is_refused(content, part, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=part):
        load_config(tmp_path / "c.yaml")


def test_classes_are_called_as_they_are_written(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "data:\n  label_texts: {no: [a], yes: [b], null: [c], 010: [d], 2024-01-01: [e]}\n"
    )
    assert list(load_config(tmp_path / "c.yaml").data.label_texts) == ["no", "yes", "null", "010", "2024-01-01"]


def test_every_key_is_described():
    assert [key for key, field in fields().items() if not field.description] == []


def test_near_matches_prefer_the_section_that_was_written():
    assert near_keys("optimizer.nam", fields())[0] == "optimizer.name"


@pytest.mark.parametrize(
    "key,meant",
    [
        ("learning_rate", "optimizer.lr"),
        ("model.lr", "optimizer.lr"),
        ("optimizer.text", "data.text"),
        ("data.file", "data.name"),
        ("data.label_column", "data.label"),
        ("lora", "adapter"),
        ("optimizer.lrr", "optimizer.lr"),
    ],
)
def test_a_key_is_found_in_whichever_section_it_is_and_under_other_tools_words(key, meant):
    assert message({key: 1}).endswith(f"did you mean {meant}?")


def test_every_way_to_check_values_answers_in_our_words():
    wrong = {"optimizer": {"lrr": 3}}
    for check in (
        lambda: Config.model_validate(wrong),
        lambda: Config.model_validate_json(json.dumps(wrong)),
        lambda: Config(**wrong),
        lambda: Config.read(wrong, "Config: "),
    ):
        with pytest.raises(
            ConfigError, match=r"^Config: optimizer.lrr: there is no such key; did you mean optimizer.lr"
        ):
            check()


def test_one_text_column_needs_no_list():
    assert load_config(None, {"data.text": "message"}).data.text == ["message"]


_DOTTED = {
    "adapter.rank_pattern": {"layer.0.query": 4, r"^a.*\.b$": 3},
    "adapter.alpha_pattern": {"layer.1": 2.0},
    "data.label_texts": {"v1.0": ["the first version"], "v2.0": ["the second version"]},
    "data.splits": {"train": "train.csv", "test": "v1.test.csv"},
}


def test_the_keys_whose_names_may_hold_dots_are_all_that_take_names():
    of_names = {key for key, field in fields().items() if "dict[" in str(field.annotation)}
    assert of_names - {"methods"} == NAMED_ELSEWHERE == _DOTTED.keys()


@pytest.mark.parametrize("key", sorted(_DOTTED))
def test_names_of_modules_and_classes_may_hold_dots(key, tmp_path):
    section, name = key.split(".")
    nested, method = {section: {name: _DOTTED[key]}}, {"adapter": {"rank": 2}, section: {name: _DOTTED[key]}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(nested), encoding="utf-8")
    read = [load_config(tmp_path / "run.yaml"), load_config(overrides={key: _DOTTED[key]})]
    read += [load_config(overrides={"methods.a": method}).runs()["a"]]
    read += [load_config(overrides={"methods": {"a": {}}, f"methods.a.{key}": _DOTTED[key]}).runs()["a"]]
    read += [from_mapping(yaml.safe_load(to_yaml(read[0])))]
    assert [one.model_dump()[section][name] for one in read] == [_DOTTED[key]] * 5


def test_later_layers_add_names_and_replace_them():
    first = {"adapter": {"rank_pattern": {"layer.0": 4, "layer.1": 2}}}
    read = from_mapping(merge(first, {"adapter.rank_pattern": {"layer.1": 3, "x.y": 1}}))
    assert read.adapter.rank_pattern == {"layer.0": 4, "layer.1": 3, "x.y": 1}
