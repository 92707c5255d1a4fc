"""Seconds to an accuracy on validation data under one privacy budget: this package beside Opacus on PEFT's LoRA.

    python benchmarks/time_to_accuracy.py [--seeds 3] [--accuracy 0.78]
    python benchmarks/time_to_accuracy.py --table

All movie reviews at one site, ε = 6, δ = 1e-5, MiniLM. ``ffalora`` is the demo's configuration for a client alone.
``opacus`` is what a user of the two libraries writes: LoRA of rank 8 in query and value of all layers, a head on the
mean of the last states that starts at the class texts too, AdamW at the rate that was chosen for ``utility.py``,
``make_private_with_epsilon`` with one clipping norm of 1, Poisson batches of 256 in physical ones of 64. Both plan 50
steps. Seconds are those of training (with what caches layers and calibrates noise); loading and evaluation, every five
steps, are left out. Every run has a process of its own, and the two take turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date

import numpy as np
import torch
import torch.nn.functional as F
from checkout import ROOT
from csv_tables import extend_table, read_table
from record import commit, device_name
from torch import Tensor, nn
from utility import ADAMW_RATE, DEMO, right_of

from ffalora.baselines import zero_shot
from ffalora.config import Config, load_config
from ffalora.data.examples import Examples
from ffalora.federated.experiment import Experiment, build
from ffalora.federated.one_site import alone
from ffalora.federated.simulate import run_round
from ffalora.models import load_model

TABLE = ROOT / "benchmarks" / "data" / "time_to_accuracy.csv"
COLUMNS = ("who", "seed", "step", "seconds", "accuracy", "device", "commit", "date")
EPSILON, DELTA, STEPS, EVERY, BATCH, PHYSICAL = 6.0, 1e-5, 50, 5, 256, 64
#: A step, seconds of training until then, accuracy.
Point = tuple[int, float, float]


def configuration(seed: int, changes: dict | None = None) -> Config:
    """The demo's recipe for one site, measured on validation data."""
    own = {"seed": seed, "methods": {}, "baselines": False, "data.evaluate_on": "validation"}
    own |= {"privacy.target_epsilon": EPSILON, "privacy.delta": DELTA, "federation.evaluate_every": 1000}
    own |= {"federation.rounds": STEPS // EVERY, "federation.local_steps": EVERY}
    return alone(load_config(DEMO, own | (changes or {})))


def share_right(experiment: Experiment, logits: Tensor) -> float:
    """Accuracy of logits ``[n,L]`` of the evaluated samples."""
    wanted = torch.from_numpy(np.asarray(experiment.evaluation.labels, dtype=np.int64))
    return float((logits.argmax(1) == wanted).float().mean())


def ffalora(seed: int) -> Iterator[Point]:
    """Rounds of ``EVERY`` steps."""
    config = configuration(seed)
    build(config, caches_layers=False)  # reads files and imports, so that neither side's are counted
    began = time.perf_counter()
    experiment = build(config)
    server = experiment.strategy.begin()
    seconds = time.perf_counter() - began
    for step in range(EVERY, STEPS + 1, EVERY):
        began = time.perf_counter()
        run_round(experiment, server)
        seconds += time.perf_counter() - began
        experiment.strategy.load(server)
        yield step, seconds, float(right_of(experiment).float().mean())


class Classifier(nn.Module):
    """An encoder with PEFT's LoRA and a linear head on the mean of its last states, of length 1."""

    def __init__(self, encoder: nn.Module, weight: Tensor, bias: Tensor):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states)
        return self.head(F.normalize((states * mask).sum(1) / mask.sum(1), dim=1))


def opacus(seed: int) -> Iterator[Point]:
    """Epochs of Opacus's own loop, until as many steps as ours."""
    from opacus import PrivacyEngine
    from opacus.utils.batch_memory_manager import BatchMemoryManager
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(seed)
    experiment = build(configuration(seed, {"model.pooled_layers": 1, "model.dtype": "float32"}), caches_layers=False)
    known = experiment.labels
    if known is None:
        raise RuntimeError("the movie reviews' classes have texts")
    temperature = experiment.config.model.head_temperature * experiment.config.model.head_scale / known.length
    start = zero_shot(known.directions, temperature)
    lora = LoraConfig(r=8, lora_alpha=8, target_modules=["query", "value"])
    config = experiment.config
    fresh = load_model(config.model, config.data.task, experiment.data.num_labels, seed, torch.device("cpu"))
    encoder = get_peft_model(fresh.model.get_submodule(fresh.root), lora)
    model = Classifier(encoder, start.weight, start.bias).train()
    data = experiment.engine.data

    began = time.perf_counter()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=ADAMW_RATE)
    rows = TensorDataset(torch.arange(len(data)))
    loader = DataLoader(rows, batch_size=BATCH, collate_fn=lambda drawn: collated(data, [int(row) for (row,) in drawn]))
    private, optimizer, loader = PrivacyEngine().make_private_with_epsilon(
        module=model, optimizer=optimizer, data_loader=loader, target_epsilon=EPSILON, target_delta=DELTA,
        epochs=STEPS * BATCH / len(data), max_grad_norm=1.0,
    )  # fmt: skip
    seconds, step = time.perf_counter() - began, 0
    while step < STEPS:
        with BatchMemoryManager(data_loader=loader, max_physical_batch_size=PHYSICAL, optimizer=optimizer) as physical:
            began = time.perf_counter()
            for inputs, targets in physical:
                optimizer.zero_grad()
                F.cross_entropy(private(**inputs), targets).backward()
                optimizer.step()
                if optimizer._is_last_step_skipped:
                    continue
                step += 1
                if step % EVERY == 0:
                    seconds += time.perf_counter() - began
                    yield step, seconds, share_right(experiment, logits_of(private, experiment.evaluation))
                    began = time.perf_counter()
                if step == STEPS:
                    break
            seconds += time.perf_counter() - began


def collated(examples: Examples, rows: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
    """A padded batch: the model's inputs, and classes."""
    inputs, targets = examples.collate(np.asarray(rows, dtype=np.int64))[:2]
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}, targets


@torch.no_grad()
def logits_of(model: nn.Module, examples: Examples) -> Tensor:
    """Logits ``[n,L]`` of all examples, batched by length, without dropout; the model then goes on training."""
    found = torch.empty(len(examples), 2)
    model.eval()
    for rows in np.array_split(np.argsort(examples.lengths), max(1, len(examples) // PHYSICAL)):
        found[rows] = model(**collated(examples, rows)[0])
    model.train()
    return found


def measure(who: str, seed: int, accuracy: float) -> None:
    """Runs one side until it has the accuracy, or to its end, and writes down what it had after every few steps."""
    stamp = {"device": device_name(torch.device("cpu")), "commit": commit(), "date": date.today().isoformat()}
    for step, seconds, found in SIDES[who](seed):
        line = {"who": who, "seed": seed, "step": step, "seconds": round(seconds, 2), "accuracy": round(found, 4)}
        extend_table(TABLE, COLUMNS, [line | stamp])
        print(who, seed, step, f"{seconds:.1f} s", f"{found:.4f}", flush=True)
        if found >= accuracy:
            return


def table(accuracy: float) -> str:
    """Seconds of each side until it has the accuracy, by processor and seed, and how many times ours; of several runs
    the last.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in read_table(TABLE):
        sides = found.setdefault((line["device"], line["seed"]), {})
        if int(line["step"]) == EVERY:
            sides.pop(line["who"], None)
        if float(line["accuracy"]) >= accuracy:
            sides.setdefault(line["who"], line["seconds"])
    lines = ["| on | seed | ffalora | Opacus and PEFT | times ours |", "| --- | --- | --- | --- | --- |"]
    for (device, seed), seconds in found.items():
        if not seconds:
            continue
        ours, theirs = float(seconds.get("ffalora", "nan")), float(seconds.get("opacus", "nan"))
        lines.append(f"| {device} | {seed} | {ours:.1f} s | {theirs:.1f} s | {theirs / ours:.1f} |")
    return "\n".join(lines)


SIDES: dict[str, Callable[[int], Iterator[Point]]] = {"ffalora": ffalora, "opacus": opacus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--accuracy", type=float, default=0.78)
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--run", nargs=2, metavar=("WHO", "SEED"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        measure(chosen.run[0], int(chosen.run[1]), chosen.accuracy)
        return
    if not chosen.table:
        for seed in range(100, 100 + chosen.seeds):
            for who in SIDES:
                command = [sys.executable, __file__, "--accuracy", str(chosen.accuracy), "--run", who, str(seed)]
                subprocess.run(command, check=True)
    print(table(chosen.accuracy))


if __name__ == "__main__":
    main()
