"""TRL's SFTTrainer with DP-SGD through PrivateSFTTrainer."""

import json

import peft
import pytest
import torch
from datasets import Dataset, IterableDataset
from language_cases import LORA, language_model, load_tokenizer, made_factors, text

import ffalora
from ffalora.privacy.sampling import poisson_draw
from ffalora.trainer import LEDGER_FILE, PrivacyArguments

trl = pytest.importorskip("trl")

from ffalora.trainer import PrivateSFTTrainer  # noqa: E402

N = 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def pairs(n=N):
    return Dataset.from_list([{"prompt": text(i, 2 + i % 4) + " ", "completion": text(i, 1 + i % 3)} for i in range(n)])


def conversations(n=N):
    return Dataset.from_list(
        [
            {
                "messages": [
                    {"role": "user", "content": text(i, 3)},
                    {"role": "assistant", "content": text(i, 1 + i % 3)},
                ]
            }
            for i in range(n)
        ]
    )


def config(folder, **changes):
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=3, gradient_accumulation_steps=2, max_steps=2, bf16=False,
        learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
        seed=7, use_cpu=True, disable_tqdm=True, max_length=None, shuffle_dataset=False,
    )  # fmt: skip
    return trl.SFTConfig(**(defaults | changes))


def trainer(folder, tokenizer, dataset=None, privacy=None, **changes):
    arguments = {name: changes.pop(name) for name in ("data_collator", "losses", "eval_dataset") if name in changes}
    return PrivateSFTTrainer(
        changes.pop("model", None) or language_model(), config(folder, **changes),
        privacy or PrivacyArguments(noise_multiplier=1.0, max_grad_norm=0.1, noise="seeded"),
        train_dataset=pairs() if dataset is None else dataset, processing_class=tokenizer,
        peft_config=peft.LoraConfig(**LORA), **arguments,
    )  # fmt: skip


def own_losses(net, rows):
    """Of each row alone, by ordinary autograd: the mean cross-entropy of its counted tokens, and its gradient."""
    found = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        net.zero_grad(set_to_none=True)
        logits = net(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad]))
    return torch.stack(found)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_is_the_mean_of_clipped_gradients_of_completions_alone(tmp_path, tokenizer, checkpointing):
    privacy = PrivacyArguments(noise_multiplier=0.0, max_grad_norm=0.1, noise="seeded")
    run = trainer(tmp_path, tokenizer, privacy=privacy, max_steps=1, gradient_checkpointing=checkpointing)
    rows = [run.train_dataset[i] for i in range(N)]
    for row, pair in zip(rows, pairs(), strict=True):
        asked = len(tokenizer(pair["prompt"])["input_ids"])
        assert all(label == -100 for label in row["labels"][: asked - 1])
        assert row["labels"][-1] == row["input_ids"][-1]
    drawn = poisson_draw(7, 0, 0, N, 6 / N)
    assert len(drawn) > 1
    before = run.adapters.state()
    gradients = own_losses(run.model, [rows[i] for i in drawn])
    factor = (0.1 / gradients.norm(dim=1)).clamp(max=1.0)
    assert (factor < 1).any()
    run.train()
    moved = torch.cat([p.detach().flatten() for p in run.model.parameters() if p.requires_grad])
    torch.testing.assert_close(moved, -0.1 * (factor[:, None] * gradients).sum(0) / 6, rtol=1e-4, atol=1e-7)
    assert not torch.equal(run.adapters.state(), before)


def test_what_assistants_say_is_learned_alone_where_it_is_asked_for(tmp_path, tokenizer):
    run = trainer(tmp_path, tokenizer, conversations(), assistant_only_loss=True)
    for row, given in zip(run.train_dataset, conversations(), strict=True):
        said = [token for token in row["labels"] if token != -100]
        assert said == tokenizer(given["messages"][1]["content"] + " [SEP]", add_special_tokens=False)["input_ids"]
    run.train()
    assert run.ledger.steps_taken == 2


@pytest.mark.long
def test_epsilon_meets_the_target_and_no_private_number_is_logged_with_secure_noise(tmp_path, tokenizer):
    privacy = PrivacyArguments(target_epsilon=4.0, max_grad_norm=0.1)
    run = trainer(tmp_path, tokenizer, privacy=privacy, eval_dataset=pairs(6), eval_strategy="steps", eval_steps=1)
    result = run.train()
    assert 0 < run.ledger.epsilon() <= 4.0
    assert json.loads((tmp_path / LEDGER_FILE).read_text())["steps_taken"] == 2
    training = [row for row in run.state.log_history if not any(name.startswith("eval") for name in row)]
    assert any("epsilon" in row for row in training)
    private = {"loss", "train_loss", "entropy", "mean_token_accuracy", "num_tokens"}
    assert not any(private & set(row) for row in training) and not private & set(result.metrics)
    assert any("eval_loss" in row for row in run.state.log_history)


def test_an_attached_model_needs_no_peft(tmp_path, tokenizer):
    net = language_model()
    adapters = ffalora.attach(net, ffalora.AdapterConfig(rank=2, target_modules=["q_proj", "v_proj"]))
    run = PrivateSFTTrainer(
        net, config(tmp_path), adapters=adapters, noise_multiplier=1.0, noise="seeded", train_dataset=pairs(),
        processing_class=tokenizer,
    )  # fmt: skip
    before = adapters.state()
    run.train()
    assert not torch.equal(adapters.state(), before)
    run.save_model(tmp_path / "saved")
    inputs = tokenizer(text(0, 5), return_tensors="pt")
    loaded = peft.PeftModel.from_pretrained(language_model(), tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(**inputs).logits, net.eval()(**inputs).logits)
    assert (tmp_path / "saved" / "tokenizer_config.json").exists()


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"packing": True, "max_length": 32}, "packing=True lays several samples into one row"),
        ({"padding_free": True}, "padding_free=True lays several samples into one row"),
        ({"eval_packing": True}, "packing"),
        ({"loss_type": "dft"}, "loss_type='dft'.*losses="),
        ({"router_aux_loss_coef": 0.1}, "router_aux_loss_coef=0.1"),
        ({"activation_offloading": True}, "activation_offloading"),
        ({"fp16": True}, "fp16=True"),
    ],
)
def test_settings_of_trl_that_mix_samples_or_losses_are_refused(tmp_path, tokenizer, changes, said):
    with pytest.raises(ValueError, match=f"cannot keep its promise with .*{said}"):
        trainer(tmp_path, tokenizer, **changes)


def with_texts():
    return pairs().add_column("text", ["beside"] * N)


@pytest.mark.parametrize("dataset", [pairs, conversations, with_texts])
def test_an_answer_that_does_not_fit_is_refused_where_trl_would_drop_it(tmp_path, tokenizer, dataset):
    with pytest.raises(ValueError, match=r"max_length=4 would cut answers in \d+ of 20 rows of the train dataset"):
        trainer(tmp_path, tokenizer, dataset(), max_length=4)


def test_rows_to_evaluate_on_may_be_read_one_by_one(tmp_path, tokenizer):
    streamed, limit = IterableDataset.from_generator(lambda: iter(pairs(6))), {"max_length": 64}
    found = trainer(tmp_path, tokenizer, eval_dataset=streamed, **limit).evaluate()["eval_loss"]
    held = trainer(tmp_path, tokenizer, eval_dataset=pairs(6), **limit).evaluate()["eval_loss"]
    assert found == pytest.approx(held, rel=1e-5)


def test_plain_texts_are_cut_at_their_end(tmp_path, tokenizer):
    texts = Dataset.from_list([{"text": text(i, 9)} for i in range(N)])
    run = trainer(tmp_path, tokenizer, texts, max_length=4)
    assert {len(row["input_ids"]) for row in run.train_dataset} == {4}
    run.train()


def collator(change):
    """TRL's own, changed where there are several samples."""

    def collate(rows):
        made = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0)(rows)
        return change(made) if len(rows) > 1 else made

    return collate


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda made: made | {"input_ids": made["input_ids"].flatten()[None]}, "one row a sample"),
        (lambda made: made | {"input_ids": made["input_ids"].roll(1, 0)}, "another 'input_ids' of sample"),
        (lambda made: made | {"labels": made["labels"].clamp(max=int(made["labels"].max()) - 1)}, "another 'labels'"),
        (lambda made: made | {"lengths": [3]}, "into a list"),
    ],
)
def test_a_collator_that_mixes_samples_is_refused(tmp_path, tokenizer, change, said):
    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, tokenizer, data_collator=collator(change))


def test_a_collator_that_pads_on_the_left_is_taken(tmp_path, tokenizer):
    def flipped(rows):
        turned = [{name: values[::-1] for name, values in row.items()} for row in rows]
        made = trl.trainer.sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0)(turned)
        return {name: values.flip(1) for name, values in made.items()}

    trainer(tmp_path, tokenizer, data_collator=flipped).train()


def test_arguments_that_neither_trainer_has_and_models_by_name_are_refused(tmp_path, tokenizer):
    with pytest.raises(TypeError, match=r"PrivateSFTTrainer\(formating_func=…\).*formatting_func"):
        PrivateSFTTrainer(
            language_model(), config(tmp_path), noise_multiplier=1.0, formating_func=str, train_dataset=pairs()
        )
    with pytest.raises(ValueError, match="load it first"):
        PrivateSFTTrainer("a-model", config(tmp_path), noise_multiplier=1.0, train_dataset=pairs())


def test_adapters_that_are_made_follow_from_the_seed_alone(tmp_path, tokenizer):
    def factors(seed, drawn_before):
        return made_factors(lambda model: trainer(tmp_path, tokenizer, model=model, seed=seed), drawn_before)

    assert torch.equal(factors(7, 1), factors(7, 2)) and not torch.equal(factors(7, 1), factors(8, 1))
