"""A training loop of one's own: Poisson samples, private gradients, any optimiser, and a ledger that ends at ε."""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import ffalora
from ffalora.data import load_data
from ffalora.data.tasks import classification_losses
from ffalora.models.load import resolve


def main(name: str = "all-MiniLM-L6-v2", data: str = "movie-reviews", steps: int = 30, epsilon: float = 3.0) -> float:
    """Trains, and returns the ε that was spent."""
    rows = load_data(data, input_columns=["text"], label_column="label").train
    texts, labels = list(rows["text"]), torch.tensor(list(rows["label"]))
    tokenizer = AutoTokenizer.from_pretrained(resolve(name))
    model = AutoModelForSequenceClassification.from_pretrained(resolve(name))
    adapters = ffalora.attach(model, ffalora.AdapterConfig(r=8, head="trained"))
    n, batch, delta = len(texts), min(256, len(texts) // 4), 1e-5
    sigma = ffalora.noise_multiplier_for(epsilon, delta, batch / n, steps)
    ledger = ffalora.PrivacyLedger(0, n, batch / n, sigma, delta, steps)
    private = ffalora.PrivateGradient(model, adapters, classification_losses, ledger, 1.0, ffalora.SecureNoise())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    draw = ffalora.SystemDraw()
    for step in range(steps):
        drawn, parts = draw(0, step, n, batch / n), []
        for part in (drawn[i : i + 32] for i in range(0, len(drawn), 32)):
            inputs = tokenizer([texts[i] for i in part], padding=True, truncation=True, return_tensors="pt")
            parts.append((part, inputs, labels[part]))
        private.write(private.step(step, parts)[0])
        optimizer.step()
    return ledger.epsilon()


if __name__ == "__main__":
    print(f"ε = {main():.2f}")
