"""TRL's DPOTrainer with DP-SGD through PrivateDPOTrainer."""

import json

import numpy as np
import peft
import pytest
import torch
from adapter_cases import relative_error
from datasets import Dataset
from language_cases import LORA, language_model, load_tokenizer, made_factors, text

from ffalora.privacy.sampling import poisson_draw
from ffalora.trainer import LEDGER_FILE, PrivacyArguments
from ffalora.training.gradients import segment_gradients

trl = pytest.importorskip("trl")

from ffalora.trainer import PrivateDPOTrainer  # noqa: E402
from ffalora.trainer.preferences import LOSSES, pair_losses  # noqa: E402

N = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def preferences(n=N):
    rows = [
        {"prompt": text(i, 2 + i % 4) + " ", "chosen": text(i + 3, 1 + i % 3), "rejected": text(i + 5, 2 + i % 2)}
        for i in range(n)
    ]
    return Dataset.from_list(rows)


def chats(n=N):
    def said(role, content):
        return [{"role": role, "content": content}]

    return Dataset.from_list(
        [
            {
                "prompt": said("user", row["prompt"].strip()),
                "chosen": said("assistant", row["chosen"]),
                "rejected": said("assistant", row["rejected"]),
            }
            for row in preferences(n)
        ]
    )


def config(folder, **changes):
    defaults = dict(
        output_dir=str(folder), per_device_train_batch_size=3, gradient_accumulation_steps=2, max_steps=2, bf16=False,
        learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
        seed=7, use_cpu=True, disable_tqdm=True, max_length=None, label_smoothing=0.1, gradient_checkpointing=False,
    )  # fmt: skip
    return trl.DPOConfig(**(defaults | changes))


def trainer(folder, tokenizer, dataset=None, privacy=None, kind=PrivateDPOTrainer, **changes):
    arguments = {name: changes.pop(name) for name in ("data_collator", "eval_dataset", "ref_model") if name in changes}
    if kind is PrivateDPOTrainer:
        privacy = privacy or PrivacyArguments(noise_multiplier=1.0, max_grad_norm=0.1, noise="seeded")
        arguments["privacy"] = privacy
    adapter = changes.pop("peft_config", peft.LoraConfig(**LORA))
    return kind(
        changes.pop("model", None) or language_model(), args=config(folder, **changes),
        train_dataset=preferences() if dataset is None else dataset, processing_class=tokenizer,
        peft_config=adapter, **arguments,
    )  # fmt: skip


def ordinary(folder, tokenizer, run):
    """TRL's own trainer, of a model with the same adapters that PEFT computes."""
    theirs = trainer(folder, tokenizer, kind=trl.DPOTrainer)
    theirs.model.load_state_dict(run.model.state_dict())
    return theirs


def one_pair(theirs, run, row):
    """TRL's loss of one pair, and its gradient by ordinary autograd where ``run`` trains, ``[P]``."""
    theirs.model.zero_grad(set_to_none=True)
    loss = theirs.compute_loss(theirs.model, theirs.data_collator([theirs.train_dataset[int(row)]]))
    loss.backward()
    trained = [name for name, p in run.model.named_parameters() if p.requires_grad]
    return loss.detach(), torch.cat([theirs.model.get_parameter(name).grad.flatten() for name in trained])


def test_losses_and_gradients_of_pairs_are_trl_s_of_each_pair_alone(tmp_path, tokenizer):
    kinds = {name: pair_losses(config(tmp_path, loss_type=[name])) for name in LOSSES}
    run = trainer(tmp_path / "ours", tokenizer)
    run.adapters.load_state_(0.5 * torch.randn(run.adapters.layout.width, generator=torch.Generator().manual_seed(1)))
    theirs = ordinary(tmp_path / "theirs", tokenizer, run)
    [(rows, inputs, targets)] = run._physical(np.arange(3))
    assert len({int(n) for n in inputs["attention_mask"].sum(-1).flatten()}) > 2
    for name, losses in kinds.items():
        theirs.loss_types = [name]
        found = segment_gradients(*run._trained(), losses, inputs, targets)
        expected = [torch.stack(each) for each in zip(*(one_pair(theirs, run, row) for row in rows), strict=True)]
        assert relative_error(found.losses, expected[0]) < 1e-5, name
        assert relative_error(found.gradients, expected[1]) < 1e-5, name


def test_losses_add_up_by_their_weights():
    ratios, reference = torch.tensor([[1.0, -2.0]]), torch.tensor([[[0.5, 3.0], [-1.0, 2.0]]])

    def loss(**kinds):
        return pair_losses(config("out", **kinds))(ratios, reference)

    both = loss(loss_type=["sigmoid", "sft"], loss_weights=[0.5, 2.0])
    torch.testing.assert_close(both, 0.5 * loss(loss_type="sigmoid") + 2.0 * loss(loss_type="sft"))


@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"precompute_ref_log_probs": True}])
def test_an_update_is_the_mean_of_clipped_gradients_of_pairs(tmp_path, tokenizer, changes):
    privacy = PrivacyArguments(noise_multiplier=0.0, max_grad_norm=0.1, noise="seeded")
    run = trainer(tmp_path / "ours", tokenizer, privacy=privacy, max_steps=1, **changes)
    theirs = ordinary(tmp_path / "theirs", tokenizer, run)
    drawn = poisson_draw(7, 0, 0, N, 6 / N)
    gradients = torch.stack([one_pair(theirs, run, row)[1] for row in drawn])
    factor = (0.1 / gradients.norm(dim=1)).clamp(max=1.0)
    assert len(drawn) > 1 and (factor < 1).any()
    run.train()
    moved = torch.cat([p.detach().flatten() for p in run.model.parameters() if p.requires_grad])
    torch.testing.assert_close(moved, -0.1 * (factor[:, None] * gradients).sum(0) / 6, rtol=1e-4, atol=1e-7)


def test_steps_are_charged_and_no_private_number_is_logged_with_secure_noise(tmp_path, tokenizer):
    privacy = PrivacyArguments(noise_multiplier=1.0, max_grad_norm=0.1)
    run = trainer(
        tmp_path, tokenizer, chats(), privacy, eval_dataset=chats(4), eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    result = run.train()
    assert run.ledger.dataset_size == N
    assert json.loads((tmp_path / LEDGER_FILE).read_text())["steps_taken"] == 2
    training = [row for row in run.state.log_history if not any(name.startswith("eval") for name in row)]
    assert any("epsilon" in row for row in training)
    told = {name for row in training for name in row} | set(result.metrics)
    assert not told & {"loss", "train_loss", "entropy"} and not any("/" in name for name in told)
    assert any("eval_rewards/margins" in row for row in run.state.log_history)
    again = peft.PeftModel.from_pretrained(language_model(), tmp_path / "checkpoint-2")
    for name, value in again.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name


def test_a_peft_model_trains_and_no_pair_moves_the_clipped_sum_by_more_than_its_bound(tmp_path, tokenizer):
    net = peft.get_peft_model(language_model(), peft.LoraConfig(**LORA))
    run = trainer(tmp_path, tokenizer, model=net, peft_config=None)
    assert list(net.peft_config) == ["default"] and run.audit(records=1).holds
    run.train()
    assert run.adapters.state().any()


def test_the_records_of_a_data_set_are_known_again_whatever_reference_was_computed_for_them(tmp_path, tokenizer):
    computed = trainer(tmp_path / "computed", tokenizer, precompute_ref_log_probs=True)
    assert "ref_chosen_logps" in computed.train_dataset.column_names
    assert computed._new_ledger(()).fingerprint == trainer(tmp_path, tokenizer)._new_ledger(()).fingerprint


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"loss_type": "aot"}, "loss_type='aot', which compares the pairs of a batch.*sigmoid"),
        ({"loss_type": ["sigmoid", "aot_unpaired"]}, "loss_type='aot_unpaired'"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type='js_divergence'"),
        ({"ld_alpha": 0.5}, "ld_alpha=0.5"),
        ({"use_weighting": True}, "use_weighting=True"),
        ({"sync_ref_model": True}, "sync_ref_model=True"),
        ({"ref_model": language_model()}, "ref_model"),
        ({"padding_free": True}, "padding_free=True lays several samples"),
        ({"activation_offloading": True}, "activation_offloading"),
        ({"fp16": True}, "fp16=True"),
    ],
)
def test_settings_of_trl_that_mix_pairs_or_move_the_reference_are_refused(tmp_path, tokenizer, changes, said):
    with pytest.raises(ValueError, match=f"cannot keep its promise with .*{said}"):
        trainer(tmp_path, tokenizer, **changes)


def test_an_adapter_that_is_trained_already_is_refused_for_its_reference(tmp_path, tokenizer):
    net = peft.get_peft_model(language_model(), peft.LoraConfig(**LORA, init_lora_weights=False))
    with pytest.raises(ValueError, match=r"lora_B is not zero.*merge_and_unload"):
        trainer(tmp_path, tokenizer, model=net, peft_config=None)
    with pytest.raises(ValueError, match="give peft_config"):
        trainer(tmp_path, tokenizer, peft_config=None)


def test_a_pair_that_does_not_fit_is_refused_where_trl_would_cut_it(tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"max_length=4 would cut answers in \d+ of 16 pairs of the train dataset"):
        trainer(tmp_path, tokenizer, max_length=4)


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda made: made | {"input_ids": made["input_ids"].roll(1, 0)}, r"another 'input_ids \(chosen\)' of sample"),
        (lambda made: made | {"completion_mask": 1 - made["completion_mask"].flip(0)}, "another 'completion_mask"),
        (lambda made: {name: value[:-1] for name, value in made.items()}, "one row a sample"),
    ],
)
def test_a_collator_that_mixes_pairs_is_refused(tmp_path, tokenizer, change, said):
    def collate(rows):
        made = trl.trainer.dpo_trainer.DataCollatorForPreference(pad_token_id=0)(rows)
        return change(made) if len(rows) > 1 else made

    with pytest.raises(ValueError, match=said):
        trainer(tmp_path, tokenizer, data_collator=collate)


def test_adapters_that_are_made_follow_from_the_seed_alone(tmp_path, tokenizer):
    def factors(seed, drawn_before):
        return made_factors(lambda model: trainer(tmp_path, tokenizer, model=model, seed=seed), drawn_before)

    assert torch.equal(factors(7, 1), factors(7, 2)) and not torch.equal(factors(7, 1), factors(8, 1))
