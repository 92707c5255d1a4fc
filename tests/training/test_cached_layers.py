"""Frozen layers computed once: results, files, ledgers and resumed runs stay what they are, and samples stay apart."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import PRIVATE, save_model, save_texts
from test_tasks import prompts
from transformers import AutoConfig, AutoModel

from ffalora.config import ConfigError
from ffalora.data.examples import fingerprint
from ffalora.federated import experiment as room
from ffalora.federated import simulate as rounds
from ffalora.federated.experiment import build
from ffalora.federated.simulate import run_round, simulate
from ffalora.runs.bundle import evaluate, predict
from ffalora.runs.evaluation import predict_examples
from ffalora.runs.folder import METRICS
from ffalora.training import cached_layers
from ffalora.training.independence import SamplesNotIndependent


@pytest.fixture(scope="session")
def upper(small, tmp_path_factory):
    """A function from changes to a configuration that adapts the upper two of four layers."""
    model = save_model(tmp_path_factory.mktemp("deep") / "model", layers=4)

    def config(**changes):
        base = {"model__name": str(model), "adapter__layers_to_transform": [2, 3], "federation__rounds": 6}
        return small(**base | changes)

    return config


@pytest.fixture(autouse=True)
def forgotten():
    """No test finds the table of another."""
    cached_layers._kept.clear()


@pytest.fixture
def meddled(monkeypatch):
    """A function that has layers of every model loaded from now on followed by ``change(states)``."""

    def follow(change, layer=0):
        load = room.load_model

        def loaded(*arguments):
            found = load(*arguments)
            found.model.encoder.encoder.layer[layer].register_forward_hook(lambda m, a, states: change(states))
            return found

        monkeypatch.setattr(room, "load_model", loaded)

    return follow


def rms(tensor):
    return float(tensor.double().square().mean().sqrt())


def logits_of(experiment):
    engine = experiment.engine
    return predict_examples(engine.model, experiment.evaluation, engine.device)


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {},
        PRIVATE,
        {**PRIVATE, "model__packed": True, "federation__one_pass": "never"},
        {"adapter__head": "trained", "federation__strategy": "lora"},
        {"federation__strategy": "fedex"},
        {"model__pooling": "model", "adapter__dropout": 0.2, "data__views": 2, "adapter__target_modules": "all-linear"},
    ],
    ids=["plain", "private", "private-packed", "head", "residuals", "own-head-dropout"],
)
def test_results_and_files_are_those_of_the_whole_model(upper, tmp_path, changes):
    results = {}
    for choice in ("never", "always"):
        config = upper(model__cache_frozen_layers=choice, federation__rounds=2, **changes)
        results[choice] = simulate(config, tmp_path / choice, progress=False)
    without, cached = adapter_of(tmp_path / "never"), adapter_of(tmp_path / "always")
    assert cached.keys() == without.keys()
    for name in without:  # products: factors of a residual are unique to signs only
        each = [tensors[name] for tensors in (cached, without)]
        if "lora_A" in name:
            each = [tensors[name.replace("lora_A", "lora_B")] @ tensors[name] for tensors in (cached, without)]
        if "lora_B" not in name:
            assert rms(each[0] - each[1]) <= 1e-4 * rms(each[1]), name
    metrics = results["always"].rounds[-1]["metrics"]
    assert metrics == pytest.approx(results["never"].rounds[-1]["metrics"], rel=1e-4)
    assert evaluate(tmp_path / "always") == pytest.approx(metrics, rel=1e-4)
    told = [predict(tmp_path / choice, ["word1 word2"])[0]["probabilities"] for choice in results]
    assert told[0] == pytest.approx(told[1], rel=1e-4)
    layers = [json.loads((tmp_path / c / "environment.json").read_text())["cached_layers"] for c in results]
    assert layers == [0, 2]


def test_cached_layers_are_not_computed_again(upper, meddled):
    calls = []
    meddled(lambda states: calls.append(len(states)), layer=1)
    experiment = build(upper())
    assert experiment.cached_layers == 2 and calls
    assert not any(module.training for module in experiment.engine.model.modules())  # nothing drops out
    calls.clear()
    run_round(experiment, experiment.strategy.begin())
    assert not calls


def test_every_layer_is_cached_where_the_head_alone_is_trained(small, tmp_path):
    changes = {"model__pooling": "model", "adapter__target_modules": ["pooler.dense"], "federation__rounds": 6}
    losses = []
    for choice in ("always", "never"):
        config = small(model__cache_frozen_layers=choice, **changes)
        experiment = build(config)
        assert experiment.cached_layers == (2 if choice == "always" else 0)
        losses.append(rounds.evaluate_views(experiment, experiment.strategy.begin())["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("changes", [{}, PRIVATE], ids=["plain", "private"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(upper, tmp_path, monkeypatch, changes):
    simulate(upper(**changes), tmp_path / "whole", progress=False)
    taken = []

    def interrupted(*arguments):
        taken.append(0)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return run_round(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "run_round", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulate(upper(**changes), tmp_path / "cut", progress=False)
    cached_layers._kept.clear()
    # what may change on resume changes no bit of what is trained
    other = {"federation__evaluate_every": 2, "data__max_evaluation_samples": 5}
    simulate(upper(**changes | other), tmp_path / "cut", resume=True, progress=False)
    whole, cut = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert rows_of(tmp_path / "whole")[2] == rows_of(tmp_path / "cut")[2]


def test_ledgers_are_keyed_to_the_texts_and_not_to_rows_of_a_table(upper):
    prints = []
    for choice in ("always", "never"):
        experiment = build(upper(model__cache_frozen_layers=choice, **PRIVATE))
        prints.append([p.ledger.fingerprint for p in experiment.participants])
        assert fingerprint(experiment.train, [0, 1]) == fingerprint(build(upper()).train, [0, 1])
    assert prints[0] == prints[1]


def test_evaluation_is_limited_to_the_samples_asked_for(upper):
    experiment = build(upper(data__max_evaluation_samples=7))
    whole = build(upper(model__cache_frozen_layers="never"))
    assert experiment.cached_layers == 2 and len(experiment.evaluation) == 7
    torch.testing.assert_close(logits_of(experiment), logits_of(whole)[:7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 3], ids=["cached", "above"])
def test_a_layer_that_mixes_samples_is_refused_although_it_is_cached(upper, meddled, layer):
    meddled(lambda states: states + states.mean((0, 1)), layer)
    with pytest.raises(SamplesNotIndependent):
        experiment = build(upper(**PRIVATE))
        run_round(experiment, experiment.strategy.begin())
    assert build(upper()).cached_layers == 0  # without privacy it may train, on its whole


def test_mixing_that_only_large_batches_show_keeps_layers_out_of_the_table(upper, meddled):
    meddled(lambda states: states + states.mean((0, 1)) * (len(states) > cached_layers._PROBED))
    experiment = build(upper(**PRIVATE))
    assert experiment.cached_layers == 0 and type(experiment.engine.data).__name__ == "TokenizedDataset"
    assert logits_of(experiment).isfinite().all()  # the layers are back
    with pytest.raises(ConfigError, match="or they look at other samples"):
        build(upper(model__cache_frozen_layers="always", **PRIVATE))


def test_runs_that_cannot_be_cached_say_so_when_it_is_asked_for(upper, tmp_path):
    for changes, said in (
        ({"adapter__layers_to_transform": None}, "training begins in its first layer"),
        ({"data__augment": "word-dropout"}, r"data\.augment changes samples in every step"),
        (prompts(tmp_path) | {"adapter__layers_to_transform": None}, "no encoder of the kind of BERT"),
    ):
        assert build(upper(**changes)).cached_layers == 0
        with pytest.raises(ConfigError, match=rf"model\.cache_frozen_layers='always' cannot be .*{said}"):
            build(upper(model__cache_frozen_layers="always", **changes))


def test_auto_takes_no_time_or_memory_that_it_cannot_win_back(upper, monkeypatch):
    assert build(upper(federation__rounds=1)).cached_layers == 0
    assert build(upper()).cached_layers == 2
    monkeypatch.setattr(cached_layers, "AUTO_BYTES", 1000)
    assert build(upper()).cached_layers == 0
    assert build(upper(model__cache_frozen_layers="always")).cached_layers == 2


@pytest.mark.parametrize(
    "kind,more,layers",
    [
        ("roberta", {"pad_token_id": 0}, 2),
        ("mpnet", {"pad_token_id": 1}, 2),
        ("electra", {"embedding_size": 16}, 2),
        ("electra", {"embedding_size": 8}, 0),  # a projection stands between embeddings and layers
    ],
)
def test_other_encoders_are_cached_where_that_changes_nothing(upper, tmp_path, kind, more, layers):
    base = Path(upper().model.name)
    sizes = {"vocab_size": 44, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 40, "initializer_range": 0.2}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **sizes | more)).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((base / name).read_bytes())
    changes = {"model__name": str(tmp_path / "model"), "adapter__target_modules": ["q" if kind == "mpnet" else "query"]}
    cached, whole = (build(upper(model__cache_frozen_layers=c, **changes)) for c in ("auto", "never"))
    assert cached.cached_layers == layers
    torch.testing.assert_close(logits_of(cached), logits_of(whole), rtol=1e-4, atol=1e-5)


def test_methods_share_a_table_and_other_texts_do_not(upper, tmp_path):
    def table(**changes):
        return build(upper(**changes)).engine.model.encoder.embeddings.table

    first = table()
    assert table(seed=1, federation__strategy="lora").data_ptr() == first.data_ptr()
    other = table(data__name=str(save_texts(tmp_path / "texts.csv", rows=150)))
    assert other.data_ptr() != first.data_ptr() and len(other) != len(first)


def test_a_table_of_another_attention_is_not_taken(upper):
    tables = []
    for attention in ("eager", "sdpa"):
        build(upper(model__attention=attention))
        tables += cached_layers._kept.values()
    cached_layers._kept.clear()
    build(upper(model__attention="sdpa"))
    (alone,) = cached_layers._kept.values()
    assert tables[0] is not tables[1] and torch.equal(tables[1].states, alone.states)
