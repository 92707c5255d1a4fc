"""PEFT's LoRA quick start, with FFA-LoRA adapters: the import of ``get_peft_model`` is the one line that changes.

Without a network it trains a small random model: ``python examples/peft_lora.py``.
"""

from __future__ import annotations

import tempfile

import torch
from offline import language_model, pad, sentences
from peft import LoraConfig, PeftModel, TaskType

from ffalora import get_peft_model  # was: from peft import get_peft_model


def main() -> float:
    """Trains, saves, loads again with PEFT and merges; returns the last loss."""
    model = language_model()
    peft_config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear"
    )
    model = get_peft_model(model, peft_config)
    model.print_trainable_parameters()

    batch = pad([{"input_ids": row["input_ids"]} for row in sentences(32)])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for step in range(20):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"step {step:2d}  loss {loss.item():.3f}")

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(language_model(), folder).eval()
    merged = model.eval().merge_and_unload()
    difference = (again(**batch).logits - merged(**batch).logits).abs().max().item()
    print(f"loss {loss.item():.3f}; PEFT's reload and the merged model differ by {difference:.1e}")
    return loss.item()


if __name__ == "__main__":
    main()
