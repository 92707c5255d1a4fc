"""Heads start where their classes' texts are, and runs are compared with what needs no fine-tuning."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_runs import PRIVATE

from ffalora.baselines import LinearClassifier
from ffalora.config import ConfigError
from ffalora.federated import compared
from ffalora.federated.experiment import build
from ffalora.federated.simulate import simulate

TEXTS = {"0": ["word30 word31 word35"], "1": ["word1 word2 word5", "word3"]}
TRAINED = {"adapter__head": "auto", "baselines": True}


def _head(experiment):
    return experiment.loaded.model.classifier.base_layer


def test_a_trained_head_starts_at_the_texts_of_its_classes(small):
    experiment = build(small(data__label_texts=TEXTS, model__head_temperature=5.0, **TRAINED))
    head, labels = _head(experiment), experiment.labels
    assert experiment.head_start == "labels" and experiment.adapters.heads
    wanted = 5.0 / labels.length * (labels.directions - labels.directions.mean(0))
    assert (head.weight - wanted).abs().max() < 1e-6 and bool((head.bias == 0).all())


def test_states_are_centred_by_public_texts_and_not_by_the_clients_data(small):
    texts = ["word1 word2 word3", "word4"]
    experiment = build(small(data__public_texts=texts, **TRAINED))
    model, tokenizer = experiment.loaded.model, experiment.loaded.tokenizer
    with torch.no_grad():
        means = torch.cat([model.means(**tokenizer(text, return_tensors="pt")) for text in texts])
    assert model.center.norm() > 0 and (model.center - means.mean(0)).abs().max() < 1e-5
    alone = build(small(data__public_texts=texts, model__pooled_layers=1, **TRAINED)).loaded.model
    assert bool((alone.center == 0).all())


def test_a_head_starts_at_class_texts_in_the_columns_of_the_last_layer(small):
    experiment = build(small(data__label_texts=TEXTS, **TRAINED))
    width = experiment.loaded.model.center.shape[1]
    weight = _head(experiment).weight
    assert bool((weight[:, :-width] == 0).all()) and bool((weight[:, -width:] != 0).all())


def test_a_head_whose_classes_have_no_words_starts_at_zero(small):
    experiment = build(small(**TRAINED))
    assert experiment.head_start == "zero" and bool((_head(experiment).weight == 0).all())


def test_a_frozen_head_stays_random(small):
    experiment = build(small(adapter__head="frozen", data__label_texts=TEXTS))
    assert experiment.head_start == "random" and not experiment.adapters.heads


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"data__label_texts": {"2": ["x"]}}, "data.label_texts"), ({}, "the classes' names")],
)
def test_labels_that_cannot_start_a_head_are_refused(small, changes, said):
    with pytest.raises(ConfigError, match=said):
        build(small(model__head_start="labels", adapter__head="trained", **changes))


def test_a_private_run_is_compared_with_all_baselines_at_its_own_epsilon(small, tmp_path):
    config = small(data__label_texts=TEXTS, optimizer__lr="auto", optimizer__normalize=True, **TRAINED, **PRIVATE)
    result = simulate(config, tmp_path, progress=False)
    rows = {row["name"]: row for row in result.summary["baselines"]}
    assert list(rows) == [
        "largest class", "class texts, no training", "private class means", "private probe", "probe without privacy",
    ]  # fmt: skip
    assert rows["private probe"]["epsilon"] == pytest.approx(result.summary["epsilon"], rel=1e-6)
    assert rows["private class means"]["epsilon"] <= result.summary["epsilon"] * 1.01
    assert [name for name, row in rows.items() if row["is_bound"]] == ["probe without privacy"]
    assert json.loads((tmp_path / "baselines.json").read_text()) == result.summary["baselines"]
    assert result.summary["lr"] > 0


def test_the_bound_without_privacy_is_of_features_as_long_as_those_it_is_fitted_to(small, monkeypatch):
    """A probe whose bias decides at length 1, and does not at the length that the head reads."""
    experiment = build(small(model__head_scale=10.0, **TRAINED))
    first = compared.features_of(experiment, experiment.evaluation, np.arange(1))[0]
    probe = LinearClassifier(torch.stack([torch.zeros_like(first), first / first.norm()]), torch.tensor([0.0, -1.5]))
    monkeypatch.setattr(compared, "plain_probe", lambda *_: probe)
    bound = compared.compare(experiment)[-1]
    assert bound["is_bound"] and bound["accuracy"] == pytest.approx(
        (experiment.evaluation.labels == 0).mean(), abs=1e-6
    )


def test_a_run_that_spends_nothing_has_no_private_baselines(small, tmp_path):
    """With so much noise ε is 0 at this δ, which no noise of a baseline meets."""
    silent = {"privacy__noise_multiplier": 1e5, "privacy__accountant": "pld", "privacy__delta": 1e-3}
    short = {"federation__rounds": 1, "federation__local_steps": 1, "optimizer__lr": 1e-9}
    result = simulate(small(**TRAINED, **PRIVATE | silent | short), tmp_path, False, False)
    assert result.summary["epsilon"] == 0.0
    assert [row["name"] for row in result.summary["baselines"]] == ["largest class", "probe without privacy"]


def test_a_secure_run_computes_no_baseline_on_the_clients_data(small, tmp_path):
    secure = PRIVATE | {"privacy__noise": "secure"}
    result = simulate(small(data__label_texts=TEXTS, **TRAINED, **secure), tmp_path, progress=False)
    assert [row["name"] for row in result.summary["baselines"]] == ["largest class", "class texts, no training"]


def test_baselines_do_not_change_the_run(small, tmp_path):
    first, second = (
        simulate(
            small(data__label_texts=TEXTS, **TRAINED | {"baselines": on}, **PRIVATE), tmp_path / str(on), False, False
        )
        for on in (True, False)
    )
    assert first.rounds[-1]["metrics"] == second.rounds[-1]["metrics"] and second.summary["baselines"] == []


def test_baselines_that_were_kept_and_are_damaged_are_named(small, tmp_path):
    config = small(baselines=True, **PRIVATE, federation__rounds=1)
    simulate(config, tmp_path, progress=False)
    (tmp_path / "baselines.json").write_text('[{"name"')
    with pytest.raises(
        ConfigError, match=r"baselines\.json is damaged .*; remove it, and baselines are computed again"
    ):
        compared.compared(build(config), tmp_path)
