"""Every task from files to a private adapter and back: texts, pairs, numbers, images, prompts with answers."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from small_runs import PRIVATE, WORDS, save_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from ffalora.config import ConfigError
from ffalora.data.errors import DataError
from ffalora.federated.experiment import build
from ffalora.federated.simulate import evaluate_views, simulate
from ffalora.report import read_runs, what_was_learned
from ffalora.runs.bundle import evaluate, predict
from ffalora.runs.export import export
from ffalora.training.rates import language_rate, noise_variance


def words(rng, count):
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count))


def save_csv(path, columns, rows):
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def pairs(folder):
    rng = np.random.default_rng(1)
    texts = [(words(rng, 4), words(rng, 4)) for _ in range(120)]
    rows = [(a, b, int(np.mean([WORDS.index(w) < 20 for w in f"{a} {b}".split()]) > 0.5)) for a, b in texts]
    return {
        "data__name": save_csv(folder / "pairs.csv", ("premise", "hypothesis", "label"), rows),
        "data__text": ["premise", "hypothesis"],
        "adapter__target_modules": "all-linear",
        "adapter__exclude_modules": ".*pooler.*",
        "federation__local_steps": 6,
    }


def numbers(folder):
    rng = np.random.default_rng(1)
    texts = [words(rng, 5) for _ in range(120)]
    rows = [(text, sum(WORDS.index(w) < 20 for w in text.split()) / 5) for text in texts]
    return {"data__name": save_csv(folder / "numbers.csv", ("text", "label"), rows), "data__task": "regression"}


def prompts(folder):
    rng = np.random.default_rng(1)
    model = folder / "llama"
    save_model(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(model)
    rows = [(text := words(rng, 3), text.split()[0]) for _ in range(90)]
    return {
        "data__name": save_csv(folder / "prompts.csv", ("prompt", "answer"), rows),
        "data__task": "causal-lm",
        "model__name": str(model),
        "adapter__target_modules": "all-linear",
    }


def images(folder):
    rng = np.random.default_rng(1)
    model = folder / "vit"
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, num_labels=2, initializer_range=0.3,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(model)
    labels = rng.integers(0, 2, 120)
    pixels = rng.integers(0, 100, (120, 8, 8))
    pixels[labels == 1, :4] += 150
    Dataset.from_dict({"image": pixels.tolist(), "label": labels.tolist()}).save_to_disk(str(folder / "images"))
    return {
        "data__name": str(folder / "images"),
        "data__task": "image-classification",
        "model__name": str(model),
        "adapter__target_modules": "auto",
    }


TASKS = {
    "pairs": (pairs, "accuracy"),
    "numbers": (numbers, "pearson"),
    "prompts": (prompts, "perplexity"),
    "images": (images, "accuracy"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
def test_a_task_trains_and_its_saved_adapter_gives_its_metrics(small, tmp_path, name, private):
    make, metric = TASKS[name]
    changes = {
        "optimizer__lr": 0.5,
        "federation__rounds": 6,
        "federation__evaluate_every": 1,
        "optimizer__batch_size": 16,
    }
    config = small(**(changes | make(tmp_path) | (PRIVATE if private else {})))
    result = simulate(config, tmp_path / "run", progress=False)
    assert metric in result.rounds[-1]["metrics"]
    if not private:
        untrained = build(config)
        before = evaluate_views(untrained, untrained.strategy.begin())["loss"]
        assert min(row["metrics"]["loss"] for row in result.rounds) < before
    else:
        assert result.rounds[-1]["epsilon"] > 0
    assert evaluate(tmp_path / "run") == pytest.approx(result.rounds[-1]["metrics"], rel=1e-4, abs=1e-5)


def test_generated_answers_of_a_language_model_are_scored_in_its_run_and_again_from_its_adapter(small, tmp_path):
    changes = prompts(tmp_path)
    rng = np.random.default_rng(1)
    rows = [(f"{words(rng, 3)} {i}", f"word1 #### {i % 2 + 1}") for i in range(90)]
    save_csv(tmp_path / "prompts.csv", ("question", "answer"), rows)
    config = small(
        **changes, data__answer_tokens=3, data__max_evaluation_samples=6, federation__rounds=1, optimizer__lr=0.5
    )
    metrics = simulate(config, tmp_path / "run", progress=False).rounds[-1]["metrics"]
    assert metrics["exact_match"] == 0  # a model of 40 words cannot write a number
    experiment = build(config)
    answered = dict(zip(experiment.data.test["question"], experiment.data.test["answer"], strict=True))
    asked = []

    def answer(model, tokenizer, questions, **options):
        asked.extend(questions)
        assert options["max_new_tokens"] == 3
        return [answered[question] if i % 2 else "none" for i, question in enumerate(questions)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ffalora.runs.answers.generate_answers", answer)
        assert evaluate(tmp_path / "run")["exact_match"] == 0.5
        assert evaluate_views(experiment, experiment.strategy.begin())["exact_match"] == 0.5
    assert asked == list(experiment.data.test["question"])[:6] * 2


def test_the_auto_rate_of_a_language_model_follows_from_noise_steps_and_numbers_alone(small, tmp_path):
    auto = {"optimizer__lr": "auto", "optimizer__normalize": True}
    experiment = build(small(**prompts(tmp_path), **auto, **PRIVATE))
    ledgers, config = [client.ledger for client in experiment.participants], experiment.config
    sizes = [ledger.dataset_size for ledger in ledgers]
    variance = noise_variance(ledgers, [size / sum(sizes) for size in sizes])
    wanted = language_rate(config.optimizer, variance, experiment.adapters.layout.size, [1.0] * 6)
    assert [client.lr for client in experiment.participants] == pytest.approx([wanted] * 3)


def test_numbers_in_units_of_their_own_are_learned_with_their_range_and_answered_in_them(small, tmp_path, caplog):
    """The same labels, from 0 to 1 and as prices from 5,000 to 9,000: what is learned is the same."""
    changes = numbers(tmp_path) | {"optimizer__lr": 0.5, "federation__rounds": 2, "baselines": True}
    lines = [line.split(",") for line in (tmp_path / "numbers.csv").read_text().splitlines()[1:]]
    (tmp_path / "prices").mkdir()
    prices = [(text, 5000 + 4000 * float(label)) for text, label in lines]
    own = {"data__name": save_csv(tmp_path / "prices" / "numbers.csv", ("text", "label"), prices)}
    shares = simulate(small(**changes, data__label_range=[0, 1]), tmp_path / "shares", progress=False)
    assert "label_range" not in caplog.text
    found = simulate(small(**changes | own, data__label_range=[5000, 9000]), tmp_path / "run", progress=False)
    metrics, same = found.summary["metrics"], shares.summary["metrics"]
    assert "label_range" not in caplog.text
    assert metrics["mse"] == pytest.approx(4000**2 * same["mse"], rel=1e-3)
    assert (metrics["loss"], metrics["pearson"]) == pytest.approx((same["loss"], same["pearson"]), rel=1e-3)
    assert evaluate(tmp_path / "run") == pytest.approx(metrics, rel=1e-4, abs=1e-5)
    (answer,), (share,) = (predict(tmp_path / name, [lines[0][0]]) for name in ("run", "shares"))
    assert answer["value"] == pytest.approx(5000 + 4000 * share["value"], rel=1e-3)
    card = (export(tmp_path / "run", tmp_path / "shared").folder / "README.md").read_text()
    assert "logits * 2000.0 + 7000.0)" in card and "Logits of -1 and 1 are the numbers 5000 and 9000." in card
    (constant,) = found.summary["baselines"]
    held_out = np.asarray(build(small(**changes | own)).data.test["label"])
    assert constant["name"] == "best constant" and constant["metrics"]["mse"] == pytest.approx(held_out.var())
    assert "data.label_range=null: training labels are more than 10 times as far away" in caplog.text
    (sentence,) = what_was_learned(read_runs([tmp_path / "run"]))
    assert f"mse {metrics['mse']:.3f}, " in sentence and "below the best constant's" in sentence
    wrong = build(small(**changes | own, data__label_range=[0, 9]))
    assert wrong and "data.label_range=[0.0, 9.0]: training labels are more than 10" in caplog.text


def test_a_range_of_numbers_is_one_and_of_numbers(small):
    with pytest.raises(ConfigError, match=r"label_range=\[0.0, 5.0\] is given, but task='classification'"):
        small(data__label_range=[0, 5])
    with pytest.raises(ConfigError, match=r"label_range=\[5.0, 0.0\]: give the least and then the greatest"):
        small(data__label_range=[5, 0], data__task="regression")


def test_answers_are_not_asked_of_a_classifier(small):
    with pytest.raises(ConfigError, match=r"answer_tokens=8"):
        small(data__answer_tokens=8)


def test_a_split_of_the_source_plays_the_role_that_the_configuration_gives_it(small, tmp_path):
    rng, folder = np.random.default_rng(1), tmp_path / "splits"
    folder.mkdir()
    for name, rows in (("train", 60), ("validation", 20), ("test", 10)):
        lines = [(f"{words(rng, 4)} {name}{i}", i % 2) for i in range(rows)]
        save_csv(folder / f"{name}.csv", ("text", "label"), [*lines, ("", 1)] if name == "train" else lines)
    changes = {"data__name": str(folder), "data__splits": {"train": "train", "test": "validation"}}
    with pytest.raises(DataError, match=r"data\.drop_empty=true"):
        build(small(**changes))
    data = build(small(**changes, data__drop_empty=True)).data
    assert all("validation" in text for text in data.test["text"]) and len(data.test) == 20
    assert all("train" in text for text in [*data.train["text"], *data.validation["text"]])
    with pytest.raises(DataError, match=r"data\.splits\.test='unknown'.*test, train, validation"):
        build(small(**changes | {"data__splits": {"train": "train", "test": "unknown"}}))


def test_the_privacy_unit_of_causal_text_is_a_whole_sequence_with_its_own_tokens_only(small, tmp_path):
    experiment = build(small(**prompts(tmp_path), **PRIVATE))
    batch = np.arange(6)

    def losses(rows):
        inputs, targets = experiment.train.collate(rows)
        with torch.no_grad():
            return experiment.task.losses(experiment.engine.model(**inputs), targets)

    together = losses(batch)
    assert together.shape == (6,)
    for i in batch:
        torch.testing.assert_close(losses(np.array([i]))[0], together[i], rtol=1e-4, atol=1e-5)
    assert math.isfinite(float(together.sum()))


def test_a_vision_model_without_patches_is_refused_by_name(small, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    changes = images(tmp_path)
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    with pytest.raises(ConfigError, match=r"model\.name=.*resnet.*image_size"):
        build(small(**changes | {"model__name": str(tmp_path / "resnet"), "adapter__target_modules": "all-linear"}))
