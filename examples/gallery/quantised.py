"""A base model in 8 bits: its layers take a quarter of the memory, and private adapters are trained on top."""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

import ffalora
from ffalora.data import load_data
from ffalora.models.load import resolve

FOLDER = "runs/gallery/quantised"


def main(name: str = "all-MiniLM-L6-v2", data: str = "movie-reviews", steps: int = 30) -> ffalora.PrivateTrainer:
    """Trains, saves the adapters, and returns the trainer: its model, its statement, its ledger."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # needs ffalora[quantised]

    model = AutoModelForSequenceClassification.from_pretrained(resolve(name))
    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    quantize_(model.bert.encoder, Int8WeightOnlyConfig(), filter_fn=lambda m, _: isinstance(m, torch.nn.Linear))
    adapters = ffalora.attach(model, ffalora.AdapterConfig(r=8, head="trained"))
    print(adapters.memory())  # the base's bytes as they are stored
    rows = load_data(data, input_columns=["text"], label_column="label").train
    rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=64) | {"labels": row["label"]})
    trainer = ffalora.PrivateTrainer(
        model,
        TrainingArguments(FOLDER, max_steps=steps, learning_rate=0.5, optim="sgd", report_to=[], save_strategy="no"),
        ffalora.PrivacyArguments(target_epsilon=6.0, target_delta=1e-5, max_grad_norm=1.0),
        train_dataset=rows,
        processing_class=tokenizer,
        adapters=adapters,
    )
    trainer.train()
    adapters.save(FOLDER)  # in PEFT's format, for the same base in any precision
    return trainer


if __name__ == "__main__":
    print(main().statement().to_text())
