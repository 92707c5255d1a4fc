"""How a simulated federation scales: many clients of a tiny model, all or some of them in every round, time and memory.

    python benchmarks/federation_scale.py --clients 1000 --rounds 5
    python benchmarks/federation_scale.py --clients 10000 --drawn 100 --rounds 3 --private

Prints seconds, peak memory of the process and what was trained; ``--strategy`` and ``--private`` choose the method.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ffalora.config import from_mapping
from ffalora.federated.simulate import simulate

WORDS = [f"word{i}" for i in range(200)]


def save_model(folder: Path, hidden: int) -> None:
    """A random two-layer BERT and a tokenizer of whole words."""
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)


def save_texts(path: Path, rows: int) -> None:
    """Random sentences; the class is whether words of the first half are in the majority."""
    rng = np.random.default_rng(0)
    lines = ["text,label"]
    for _ in range(rows):
        drawn = rng.integers(0, len(WORDS), rng.integers(5, 15))
        lines.append(f"{' '.join(WORDS[i] for i in drawn)},{int((drawn < len(WORDS) // 2).mean() > 0.5)}")
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--drawn", type=int, help="clients of a round  [all]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local-steps", type=int, default=2)
    parser.add_argument("--samples", type=int, default=20, help="training samples of a client")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--strategy", default="ffa")
    parser.add_argument("--private", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model", options.hidden)
        save_texts(folder / "texts.csv", int(options.clients * options.samples / 0.9) + 10)
        privacy = {"unit": "sample", "noise_multiplier": 1.0} if options.private else {}
        config = from_mapping(
            {
                "model": {"name": str(folder / "model"), "dtype": "float32"},
                "data": {
                    "name": str(folder / "texts.csv"),
                    "max_length": 24,
                    "validation_fraction": 0.0,
                    "test_fraction": 0.1,
                    "max_evaluation_samples": 1000,
                },
                "adapter": {"rank": options.rank},
                "clients": {"count": options.clients},
                "federation": {
                    "strategy": options.strategy,
                    "rounds": options.rounds,
                    "local_steps": options.local_steps,
                    "participation": (options.drawn or options.clients) / options.clients,
                },
                "optimizer": {"lr": 1.0, "batch_size": options.batch_size},
                "privacy": privacy,
                "baselines": False,
            }
        )
        started = time.perf_counter()
        result = simulate(config, folder / "run", progress=False)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    samples = sum(row["samples"] for row in result.rounds)
    print(f"{options.strategy}, {options.clients} clients x {options.rounds} rounds x {options.local_steps} steps")
    print(f"seconds       {seconds:.1f} (rounds: {', '.join(str(row['seconds']) for row in result.rounds)})")
    print(f"peak memory   {peak:.2f} GiB")
    print(f"samples       {samples} ({samples / seconds:.0f} a second)")
    drawn = (options.drawn or options.clients) * options.rounds
    print(f"drawn client  {1e3 * sum(row['seconds'] for row in result.rounds) / drawn:.2f} ms")
    print(f"trained       {result.summary['trained_numbers']} numbers, {result.rounds[-1]['metrics']}")


if __name__ == "__main__":
    main()
