"""Transformers' own LoRA (``model.add_adapter``) under the unchanged Trainer: ``convert`` is the one line that is new.

Without a network it trains a small random model: ``python examples/transformers_trainer.py``.
"""

from __future__ import annotations

import tempfile

from offline import classifier, pad, sentences
from peft import LoraConfig
from transformers import Trainer, TrainingArguments

import ffalora


def main() -> float:
    """Trains and evaluates; returns the evaluation loss."""
    model = classifier()
    model.add_adapter(LoraConfig(r=8, lora_alpha=32, target_modules=["query", "value"], modules_to_save=["classifier"]))
    ffalora.convert(model)  # the new line: every A is frozen, forward and backward are ours

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=16, num_train_epochs=4, learning_rate=5e-3, report_to=[], use_cpu=True,
            save_strategy="no", logging_steps=8, disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=args, train_dataset=sentences(128), eval_dataset=sentences(64, seed=1), data_collator=pad
        )
        trainer.train()
        return trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    print(f"evaluation loss {main():.3f}")
