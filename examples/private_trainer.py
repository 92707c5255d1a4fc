"""The same training with differential privacy: PrivateTrainer in Trainer's place, and what is promised.

Without a network it trains a small random model: ``python examples/private_trainer.py``.
"""

from __future__ import annotations

import tempfile

from offline import classifier, pad, sentences
from peft import LoraConfig
from transformers import TrainingArguments

from ffalora import get_peft_model
from ffalora.trainer import PrivacyArguments, PrivateTrainer


def main() -> float:
    """Trains and evaluates; returns the ε that was spent."""
    model = get_peft_model(classifier(), LoraConfig(r=8, lora_alpha=32, target_modules=["query", "value"]))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=16, gradient_accumulation_steps=2, max_steps=12, learning_rate=0.5,
            optim="sgd", lr_scheduler_type="constant", report_to=[], use_cpu=True, save_strategy="no", logging_steps=4,
            disable_tqdm=True,
        )  # fmt: skip
        trainer = PrivateTrainer(
            model, args, PrivacyArguments(target_epsilon=8.0, target_delta=1e-3, max_grad_norm=1.0, accountant="rdp"),
            train_dataset=sentences(256), eval_dataset=sentences(64, seed=1), data_collator=pad,
        )  # fmt: skip
        trainer.train()
        trainer.evaluate()
        print(trainer.statement().to_text())
        return trainer.ledger.epsilon()


if __name__ == "__main__":
    main()
