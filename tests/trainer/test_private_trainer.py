"""transformers' Trainer unchanged without privacy, and with DP-SGD through PrivateTrainer."""

import json
import math
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from adapter_cases import one_at_a_time, tiny_bert, tiny_llama
from datasets import Dataset
from PIL import Image
from transformers import Trainer, TrainerCallback, TrainingArguments

import ffalora
from ffalora.data.tasks import classification_losses, regression_losses
from ffalora.privacy.accounting import LedgerMismatch, PrivacyBudgetSpent, PrivacyLedger
from ffalora.privacy.data_ledger import find_data_ledger
from ffalora.privacy.noise import SeededNoise
from ffalora.privacy.sampling import poisson_draw
from ffalora.trainer import LEDGER_FILE, PrivacyArguments, PrivateTrainer, default_losses, private_trainer
from ffalora.trainer.terms import feature_digests
from ffalora.training.independence import SamplesNotIndependent
from ffalora.training.private_gradient import PrivateGradient

N = 24


class Padding:
    """A collator that needs no tokenizer."""

    def __call__(self, features):
        longest = max(len(f["input_ids"]) for f in features)
        ids = torch.tensor([f["input_ids"] + [0] * (longest - len(f["input_ids"])) for f in features])
        mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (longest - len(f["input_ids"])) for f in features])
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([f["label"] for f in features])}


def data(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        label = int(torch.randint(3, (1,), generator=generator))
        length = int(torch.randint(3, 9, (1,), generator=generator))
        ids = torch.randint(5 + 10 * label, 15 + 10 * label, (length,), generator=generator)
        rows.append({"input_ids": ids.tolist(), "label": label})
    return Dataset.from_list(rows)


def arguments(folder, **changes):
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=3, gradient_accumulation_steps=2, max_steps=4,
        learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
        seed=7, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    return TrainingArguments(**(defaults | changes))


def model(**config):
    wrapped = ffalora.get_peft_model(tiny_bert(), peft.LoraConfig(r=3, target_modules=["query", "value"], **config))
    for module in wrapped.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return wrapped


def trainer(folder, privacy=None, net=None, **changes):
    privacy = privacy or PrivacyArguments(noise_multiplier=1.0, max_grad_norm=0.5, noise="seeded")
    return PrivateTrainer(
        net if net is not None else model(), arguments(folder, **changes), privacy, train_dataset=data(),
        eval_dataset=data(8, 1), data_collator=Padding(),
    )  # fmt: skip


def state(net):
    return ffalora.convert(net).state()


def test_the_plain_trainer_trains_a_converted_model_as_it_trains_peft_s(tmp_path):
    results = []
    for convert in (False, True):
        torch.manual_seed(0)
        net = peft.get_peft_model(tiny_bert(), peft.LoraConfig(r=3, target_modules=["query", "value"]))
        if convert:
            ffalora.convert(net, trained="both")
        run = Trainer(net, arguments(tmp_path), train_dataset=data(), eval_dataset=data(8, 1), data_collator=Padding())
        run.train()
        results.append(
            (run.evaluate()["eval_loss"], torch.cat([p.flatten() for p in net.parameters() if p.requires_grad]))
        )
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_an_update_is_the_mean_of_clipped_sample_gradients_over_the_expected_batch(tmp_path):
    net = model(modules_to_save=["classifier"])
    adapters = ffalora.convert(net)
    before = adapters.state()
    drawn = poisson_draw(7, 0, 0, N, 6 / N)
    assert len(drawn) > 1
    rows = torch.zeros(0, adapters.layout.width)
    for i in drawn:
        batch = Padding()([data()[int(i)]])
        rows = torch.cat([rows, one_at_a_time(adapters, batch)[1]])
    factor = (0.5 / rows.norm(dim=1)).clamp(max=1.0)
    assert (factor < 1).any()
    expected = before - 0.1 * (factor[:, None] * rows).sum(0) / 6
    run = trainer(tmp_path, PrivacyArguments(noise_multiplier=0.0, max_grad_norm=0.5, noise="seeded"), net, max_steps=1)
    run.train()
    torch.testing.assert_close(adapters.state(), expected, rtol=1e-4, atol=1e-6)


def test_noise_has_the_stated_standard_deviation(tmp_path):
    nets = [model(), model()]
    for sigma, net in zip((0.0, 3.0), nets, strict=True):
        trainer(
            tmp_path, PrivacyArguments(noise_multiplier=sigma, max_grad_norm=0.5, noise="seeded"), net, max_steps=1
        ).train()
    noise = (state(nets[1]) - state(nets[0])) / 0.1 * 6
    assert noise.numel() == 192
    assert noise.std().item() == pytest.approx(3.0 * 0.5, rel=0.2)


def test_an_empty_sample_still_adds_noise_and_counts(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run._draw = lambda *_: torch.zeros(0).long().numpy()
    before = state(run.model)
    run.train()
    assert run.ledger.steps_taken == 1
    assert (state(run.model) != before).all()


def test_epsilon_is_logged_and_meets_the_target(tmp_path):
    run = trainer(tmp_path, PrivacyArguments(target_epsilon=3.0, accountant="rdp", noise="seeded"))
    run.train()
    logged = [entry["epsilon"] for entry in run.state.log_history if "epsilon" in entry]
    assert logged == sorted(logged) and 2.9 < logged[-1] <= 3.0
    assert "3" in run.statement().to_text()


def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    whole = trainer(tmp_path / "whole", save_strategy="steps", save_steps=2)
    whole.train()
    halted = trainer(tmp_path / "halted", save_strategy="steps", save_steps=2)
    halted.add_callback(StopAt(2))
    halted.train()
    resumed = trainer(tmp_path / "halted", save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "halted" / "checkpoint-2"))
    assert torch.equal(state(resumed.model), state(whole.model))
    assert resumed.ledger.steps_taken == whole.ledger.steps_taken == 4
    assert not any(p.requires_grad for n, p in resumed.model.named_parameters() if "lora_A" in n)


@pytest.mark.parametrize("noise", ["seeded", "secure"])
def test_a_finished_run_is_resumed_to_what_was_there_and_charges_nothing(tmp_path, noise):
    privacy = PrivacyArguments(noise_multiplier=1.0, noise=noise)
    whole = trainer(tmp_path, privacy, save_strategy="steps", save_steps=2)
    whole.train()
    resumed = trainer(tmp_path, privacy, save_strategy="steps", save_steps=2)
    result = resumed.train(resume_from_checkpoint=True)
    assert result.global_step == 4 and torch.equal(state(resumed.model), state(whole.model))
    assert resumed.ledger.steps_taken == whole.ledger.steps_taken == 4
    assert resumed.statement().to_text() == whole.statement().to_text()


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **others):
        control.should_training_stop = state.global_step >= self.step
        return control


def test_a_checkpoint_without_its_ledger_or_under_other_terms_is_refused(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    run.train()
    folder = tmp_path / "checkpoint-2"
    other = trainer(tmp_path, PrivacyArguments(noise_multiplier=0.5, noise="seeded"))
    with pytest.raises(LedgerMismatch, match="noise_multiplier"):
        other.train(resume_from_checkpoint=str(folder))
    (folder / LEDGER_FILE).unlink()
    with pytest.raises(ValueError, match="ledger"):
        trainer(tmp_path).train(resume_from_checkpoint=str(folder))


def test_secure_noise_charges_on_disk_before_the_result_exists(tmp_path, monkeypatch):
    privacy = PrivacyArguments(noise_multiplier=1.0, noise="secure")
    run = trainer(tmp_path, privacy)
    original, calls = PrivateGradient._clipped_sum, []

    def clipped_sum(private, *given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(private, *given)

    monkeypatch.setattr(PrivateGradient, "_clipped_sum", clipped_sum)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert json.loads((tmp_path / LEDGER_FILE).read_text())["steps_taken"] == 2
    with pytest.raises(ValueError, match="trained on already"):
        trainer(tmp_path, privacy).train()


def test_a_secure_run_that_was_killed_ends_with_the_steps_that_its_ledger_allows(tmp_path, caplog):
    privacy, saving = PrivacyArguments(noise_multiplier=1.0, noise="secure"), dict(save_strategy="steps", save_steps=2)
    killed = trainer(tmp_path, privacy, max_steps=6, **saving)
    killed.add_callback(KillAt(3))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer(tmp_path, privacy, max_steps=6, **saving)
    assert resumed.train(resume_from_checkpoint=True).global_step == 5
    assert resumed.ledger.steps_taken == 6 and "ends after step 5 of 6" in caplog.text
    assert (tmp_path / "checkpoint-5" / LEDGER_FILE).exists()
    again = trainer(tmp_path, privacy, max_steps=6, **saving)
    assert again.train(resume_from_checkpoint=True).global_step == 5
    assert again.ledger.steps_taken == 6 and torch.equal(state(again.model), state(resumed.model))


def test_a_training_ends_with_what_it_learned_where_the_budget_of_its_data_is_spent(tmp_path, caplog):
    three = PrivacyLedger(0, N, 6 / N, 1.0, 1e-5, 3, accountant="rdp").final_epsilon()
    find_data_ledger(str(tmp_path / "book"), "").set_budget(three, 1e-5)
    privacy = PrivacyArguments(noise_multiplier=1.0, accountant="rdp", noise="secure", ledger=str(tmp_path / "book"))
    run = trainer(tmp_path / "run", privacy, save_strategy="steps", save_steps=2)
    assert run.train().global_step == 3 and "ends after step 3 of 4" in caplog.text
    assert (tmp_path / "run" / "checkpoint-3" / LEDGER_FILE).exists() and run.ledger.epsilon() <= three


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **others):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_first_step_that_is_refused_is_charged_nowhere_and_leaves_the_folder_to_the_next_run(tmp_path):
    privacy, mixing = PrivacyArguments(noise_multiplier=1.0, noise="secure"), model()
    mixing.base_model.model.classifier.register_forward_hook(lambda _, inputs, logits: logits + logits.mean(0))
    with pytest.raises(SamplesNotIndependent):
        trainer(tmp_path, privacy, mixing).train()
    assert not (tmp_path / LEDGER_FILE).exists()
    run = trainer(tmp_path, privacy)
    run.train()
    assert run.ledger.steps_taken == 4 and not run.ledger.others


def test_earlier_spending_is_added(tmp_path):
    PrivacyLedger(0, N, 0.25, 1.0, 1e-5, 10, steps_taken=10, accountant="rdp").save(tmp_path / "before.json")
    privacy = PrivacyArguments(noise_multiplier=1.0, accountant="rdp", noise="seeded")
    fresh = trainer(tmp_path / "a", privacy)
    fresh.train()
    again = trainer(
        tmp_path / "b",
        PrivacyArguments(noise_multiplier=1.0, accountant="rdp", prior=tmp_path / "before.json", noise="seeded"),
    )
    again.train()
    assert again.ledger.epsilon() > fresh.ledger.epsilon()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fp16": True, "use_cpu": True}, "fp16"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0"),
        ({"bf16_full_eval": True}, "bf16_full_eval=True: an evaluation would leave the trained tensors rounded"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True takes steps again"),
        ({"push_to_hub": True}, "push_to_hub=True: .* ledger with a hash of the data"),
    ],
)
def test_settings_that_break_the_promise_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **changes)


def test_fp16_that_accelerate_was_launched_with_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="mixed_precision fp16"):
        trainer(tmp_path)


def test_a_corrected_label_does_not_renew_what_was_spent_on_a_record(tmp_path):
    """In a column that the collator renames."""
    right = data(12).map(lambda row: {"label": (row["label"] + 1) % 3})
    for folder, rows in (("first", data(12)), ("second", right)):
        privacy = PrivacyArguments(noise_multiplier=1.0, delta=1e-3, accountant="rdp", ledger=str(tmp_path / "book"))
        run = PrivateTrainer(
            model(), arguments(tmp_path / folder), privacy, train_dataset=rows, data_collator=Padding()
        )
        run.train()
    first, second = find_data_ledger(str(tmp_path / "book"), "").entries
    assert first.records == second.records
    assert [part.steps for part in run.ledger.others] == [4]


def augmented(rows):
    """As a transform: other tokens in every reading."""
    drawn = np.random.default_rng().integers
    return {**rows, "input_ids": [drawn(5, 35, len(ids)).tolist() for ids in rows["input_ids"]]}


class AugmentedItems:
    def __len__(self):
        return N

    def __getitem__(self, i):
        return {name: value[0] for name, value in augmented(data()[i : i + 1]).items()}


@pytest.mark.long
@pytest.mark.parametrize("rows", [data().with_transform(augmented), AugmentedItems()], ids=["transform", "items"])
def test_runs_on_samples_that_are_augmented_at_random_compose(tmp_path, rows):
    stated = []
    for folder in ("first", "second"):
        run = trainer(tmp_path / folder, PrivacyArguments(noise_multiplier=1.0), remove_unused_columns=False)
        run.train_dataset = rows
        run.train()
        stated.append(run.statement().max_epsilon)
    both = PrivacyLedger(0, N, 6 / N, 1.0, 1e-5, 8, steps_taken=8).epsilon()
    assert stated[0] < stated[1] == pytest.approx(both)


def test_records_are_known_again_by_what_they_hold_and_not_by_where_it_lies():
    class Sound:
        """Keeps its samples to itself, as decoders do."""

    def digests(length):
        turns = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": "this one"}]
        picture = Image.fromarray(np.zeros((2, length, 3), dtype=np.uint8))
        items = [{"turns": turns, "ragged": [[1], [2, 3]], "pictures": [picture, picture.copy()], "sound": Sound()}]
        return feature_digests(items, ["label"])

    assert digests(3) == digests(3) != digests(4)


def test_an_output_folder_with_its_ledger_does_not_go_to_the_hub(tmp_path):
    with pytest.raises(ValueError, match=r"PrivateTrainer\.push_to_hub: .* push the adapter alone"):
        trainer(tmp_path).push_to_hub()


def test_trainable_tensors_outside_the_adapters_are_refused(tmp_path):
    net = model()
    net.base_model.model.bert.pooler.dense.bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"pooler\.dense\.bias"):
        trainer(tmp_path, net=net)


def test_causal_models_train_on_their_own_next_tokens(tmp_path):
    net = ffalora.get_peft_model(tiny_llama(), peft.LoraConfig(r=2, target_modules="all-linear"))
    rows = Dataset.from_list([{"input_ids": r["input_ids"], "labels": r["input_ids"]} for r in data()])

    def collate(features):
        longest = max(len(f["input_ids"]) for f in features)
        pad = [longest - len(f["input_ids"]) for f in features]
        ids = torch.tensor([f["input_ids"] + [0] * p for f, p in zip(features, pad, strict=True)])
        labels = torch.tensor([f["labels"] + [-100] * p for f, p in zip(features, pad, strict=True)])
        return {"input_ids": ids, "labels": labels}

    run = PrivateTrainer(
        net,
        arguments(tmp_path, bf16=True),
        PrivacyArguments(noise_multiplier=0.3, noise="seeded"),
        train_dataset=rows,
        data_collator=collate,
    )
    assert math.isfinite(run.train().training_loss)


def test_an_unknown_task_asks_for_its_losses():
    with pytest.raises(ValueError, match="losses="):
        default_losses(tiny_bert().bert)


def test_embedding_adapters_are_refused_for_they_have_no_sample_gradients(tmp_path):
    net = ffalora.get_peft_model(tiny_bert(), peft.LoraConfig(r=2, target_modules=["query", "word_embeddings"]))
    with pytest.raises(ValueError, match="lora_embedding_A"):
        trainer(tmp_path, net=net)


def test_evaluation_callbacks_and_checkpointing_of_activations_go_on_as_before(tmp_path):
    plain = trainer(tmp_path / "a", eval_strategy="steps", eval_steps=2)
    plain.train()
    assert len([entry for entry in plain.state.log_history if "eval_loss" in entry]) == 2
    saving = trainer(
        tmp_path / "b", gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    saving.train()
    torch.testing.assert_close(state(saving.model), state(plain.model), rtol=0, atol=1e-6)


class CapacityLimited(torch.nn.Module):
    """The first two tokens of a batch that ask for the expert get it, whoever they belong to."""

    def __init__(self):
        super().__init__()
        self.router, self.query = torch.nn.Linear(4, 1), torch.nn.Linear(4, 3)

    def forward(self, x):
        asked = (self.router(x) > 0).float().flatten()
        served = (asked.cumsum(0) <= 2).float() * asked
        return SimpleNamespace(logits=(self.query(x) * served.view(*x.shape[:2], 1)).sum(1))


class Averaging(torch.optim.SGD):
    """Steps in its training mode alone, as schedule-free optimisers do; the Trainer evaluates in the other."""

    is_training = False

    def train(self):
        self.is_training = True

    def eval(self):
        self.is_training = False

    def step(self, closure=None):
        assert self.is_training
        return super().step(closure)


def test_an_optimiser_with_a_training_mode_is_in_it_for_every_step(tmp_path):
    net = model()
    optimizer = Averaging([p for p in net.parameters() if p.requires_grad], lr=0.1)
    run = PrivateTrainer(
        net, arguments(tmp_path, eval_strategy="steps", eval_steps=1), noise_multiplier=1.0, noise="seeded",
        train_dataset=data(), eval_dataset=data(8, 1), data_collator=Padding(), optimizers=(optimizer, None),
    )  # fmt: skip
    assert run.train().global_step == 4


def test_routing_with_a_capacity_over_the_batch_is_refused():
    torch.manual_seed(0)
    net = CapacityLimited()
    adapters = ffalora.attach(net, ffalora.AdapterConfig(rank=2, target_modules=["query"]))
    adapters.load_state_(torch.randn(adapters.layout.width))
    private = PrivateGradient(
        net, adapters, classification_losses, PrivacyLedger(0, 9, 0.5, 1.0, 1e-5, 9), 1.0, SeededNoise(0)
    )
    with pytest.raises(SamplesNotIndependent, match="mixes samples"):
        private.step(0, [(range(6), {"x": torch.randn(6, 5, 4)}, torch.tensor([0, 1, 2, 0, 1, 2]))])
    assert private.ledger.steps_taken == 0


def test_a_sample_that_is_given_twice_is_refused_and_not_charged():
    net = tiny_bert()
    adapters = ffalora.attach(net, ffalora.AdapterConfig(rank=2, target_modules=["query"]))
    private = PrivateGradient(
        net, adapters, classification_losses, PrivacyLedger(0, 9, 0.5, 1.0, 1e-5, 9), 1.0, SeededNoise(0)
    )
    ids = torch.ones(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="sample 5 is 3 times in the batches of a step"):
        private.step(0, [(np.array([5, 5, 1]), {"input_ids": ids[:3]}, ids[:3, 0]), (np.array([5]), {}, ids[:1, 0])])
    assert private.ledger.steps_taken == 0


@pytest.mark.parametrize("graphs", [True, False])
def test_what_is_asked_of_recordings_reaches_the_gradient(tmp_path, monkeypatch, graphs):
    asked = []

    def made(*arguments, **named):
        asked.append(named["cuda_graphs"])
        return PrivateGradient(*arguments, **named)

    monkeypatch.setattr(private_trainer, "PrivateGradient", made)
    trainer(tmp_path, PrivacyArguments(noise_multiplier=1.0, noise="seeded", cuda_graphs=graphs)).train()
    assert asked == [graphs]


def test_secure_noise_is_the_default():
    assert PrivacyArguments(target_epsilon=1.0).noise == "secure"


def test_a_second_training_adds_to_what_the_first_one_spent(tmp_path):
    run = trainer(tmp_path, PrivacyArguments(noise_multiplier=1.0, accountant="rdp", noise="seeded"))
    run.train()
    first = run.ledger.epsilon()
    run.train()
    both = PrivacyLedger(0, N, 6 / N, 1.0, 1e-5, 8, accountant="rdp", steps_taken=8).epsilon()
    assert run.ledger.epsilon() == pytest.approx(both) and both > first


def test_a_second_training_draws_other_samples_and_other_noise(tmp_path, monkeypatch):
    seen, step = [], PrivateGradient.step

    def recorded(self, number, batches, model=None):
        seen.append((number, sorted(int(i) for samples, _, _ in batches for i in samples)))
        return step(self, number, batches, model)

    monkeypatch.setattr(PrivateGradient, "step", recorded)
    run = trainer(tmp_path)
    run.train()
    run.train()
    numbers, drawn = zip(*seen, strict=True)
    assert numbers == tuple(range(8)) and drawn[:4] != drawn[4:]


def test_a_second_training_can_be_resumed(tmp_path):
    run = trainer(tmp_path, save_strategy="steps", save_steps=2)
    run.train()
    run.train()
    fresh = trainer(tmp_path, save_strategy="steps", save_steps=2)
    fresh.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert fresh.ledger.epsilon() == run.ledger.epsilon() and torch.equal(state(fresh.model), state(run.model))


def test_what_an_early_stop_left_is_the_budget_of_the_next_training(tmp_path):
    run = trainer(tmp_path, PrivacyArguments(target_epsilon=3.0, accountant="rdp", noise="seeded"))
    run.add_callback(StopAt(2))
    run.train()
    before = run.ledger.noise_multiplier
    run.pop_callback(StopAt)
    run.train()
    assert run.ledger.noise_multiplier > before
    assert 2.99 < run.ledger.epsilon() <= 3.0 and run.ledger.steps_taken == 4


def test_a_second_training_stops_where_the_target_is_spent(tmp_path):
    run = trainer(tmp_path, PrivacyArguments(target_epsilon=3.0, accountant="rdp", noise="seeded"))
    run.train()
    with pytest.raises(PrivacyBudgetSpent, match="target_epsilon"):
        run.train()
    assert run.ledger.epsilon() <= 3.0


def test_a_run_on_other_data_of_the_same_size_is_not_resumed(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    other = trainer(tmp_path)
    other.train_dataset = data(seed=5)
    with pytest.raises(LedgerMismatch, match="fingerprint"):
        other.train(resume_from_checkpoint=True)


def with_dropout(p):
    net = model(lora_dropout=p)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p
    return net


def test_a_resumed_run_with_dropout_equals_one_that_never_stopped(tmp_path):
    saving = dict(save_strategy="steps", save_steps=2)
    whole = trainer(tmp_path / "whole", net=with_dropout(0.2), **saving)
    whole.train()
    halted = trainer(tmp_path / "halted", net=with_dropout(0.2), **saving)
    halted.add_callback(StopAt(2))
    halted.train()
    rest = trainer(tmp_path / "halted", net=with_dropout(0.2), **saving)
    rest.train(resume_from_checkpoint=str(tmp_path / "halted" / "checkpoint-2"))
    assert torch.equal(state(whole.model), state(rest.model))


def test_secure_runs_neither_log_nor_return_the_training_loss(tmp_path):
    run = trainer(tmp_path, PrivacyArguments(noise_multiplier=1.0, noise="secure"))
    result = run.train()
    assert math.isnan(result.training_loss) and "train_loss" not in result.metrics
    logged = {name for entry in run.state.log_history for name in entry}
    assert "epsilon" in logged and not logged & {"loss", "train_loss"}


class Flattening(Padding):
    """All samples of a batch in one row, as collators for packed language models make them."""

    def __call__(self, features):
        whole = super().__call__(features)
        return {name: value.reshape(1, -1) if value.dim() > 1 else value[:1] for name, value in whole.items()}


def test_a_collator_that_lays_samples_into_one_row_is_refused(tmp_path):
    run = trainer(tmp_path)
    run.data_collator = Flattening()
    with pytest.raises(ValueError, match="needs one row a sample"):
        run.train()


class Masking(Padding):
    """Leaves out tokens at random, by their place in the batch."""

    def __call__(self, features):
        batch = super().__call__(features)
        return batch | {"input_ids": torch.where(torch.rand(batch["input_ids"].shape) < 0.5, 4, batch["input_ids"])}


class Mixing(Padding):
    """Gives every sample the next one's first token."""

    def __call__(self, features):
        batch = super().__call__(features)
        batch["input_ids"][:, 0] = batch["input_ids"][:, 0].roll(1)
        return batch


@pytest.mark.parametrize("collator", [Masking(), Mixing()])
def test_a_collator_that_draws_by_position_or_mixes_samples_is_refused(tmp_path, collator):
    run = trainer(tmp_path)
    run.data_collator = collator
    with pytest.raises(ValueError, match="another 'input_ids' of sample 0 when others are beside it"):
        run.train()
    assert run.ledger is None


def test_batch_normalisation_is_refused(tmp_path):
    net = model()
    net.base_model.model.classifier.norm = torch.nn.BatchNorm1d(3, affine=False)
    with pytest.raises(SamplesNotIndependent, match="BatchNorm"):
        trainer(tmp_path, net=net).train()


def test_a_loss_that_the_script_or_the_model_defines_is_not_replaced_by_another(tmp_path):
    class Weighted(PrivateTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **others):
            raise AssertionError

    with pytest.raises(ValueError, match=r"Weighted\.compute_loss .* pass it as losses="):
        Weighted(model(), arguments(tmp_path), target_epsilon=3, train_dataset=data(), data_collator=Padding())

    net = model()
    own = net.get_base_model().forward

    def doubled(input_ids=None, attention_mask=None, labels=None, **others):
        outputs = own(input_ids, attention_mask, labels=labels, **others)
        if labels is not None:
            outputs.loss = 2 * outputs.loss
        return outputs

    net.get_base_model().forward = doubled
    with pytest.raises(ValueError, match=r"BertForSequenceClassification's own loss .* pass losses="):
        trainer(tmp_path, net=net).train()


def test_labels_of_several_classes_at_once_are_not_trained_as_probabilities(tmp_path):
    run = trainer(tmp_path)
    run.data_collator = lambda rows: {
        **(batch := Padding()(rows)), "labels": torch.nn.functional.one_hot(batch["labels"], 3).float()
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"the default per-sample loss \(classification_losses\)"):
        run.train()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"give model=model_init\(\)"):
        PrivateTrainer(None, arguments(tmp_path), target_epsilon=3, train_dataset=data(), model_init=model)
    with pytest.raises(ValueError, match="train_dataset=None"):
        PrivateTrainer(model(), arguments(tmp_path), target_epsilon=3, data_collator=Padding()).train()
    run = trainer(tmp_path)
    run.data_collator = lambda rows: {name: value for name, value in Padding()(rows).items() if name != "labels"}
    with pytest.raises(ValueError, match=r"no 'labels', the first of label_names"):
        run.train()


def test_a_column_of_numbers_is_a_target_too():
    logits, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])
    assert regression_losses(SimpleNamespace(logits=logits), targets).tolist() == [1.0, 4.0]
