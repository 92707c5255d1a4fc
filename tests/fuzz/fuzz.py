"""Damaged and hostile files for every reader of the wire format: whatever is in them, a clear error and nothing else.

``python tests/fuzz/fuzz.py --inputs 100000`` mutates valid adapter files, checkpoints, ledgers and configurations,
reads them in this process, and prints one JSON object a kind of file: how many were refused, and by which error.
Anything but the error that the reader promises, anything that runs code, opens a connection, eats memory or takes
seconds of the processor, fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from ffalora.adapters import AdapterConfig, CheckpointError, attach, load_adapters
from ffalora.config import ConfigError, from_mapping, load_config
from ffalora.federated import checkpoint as checkpoint_module
from ffalora.federated.checkpoint import Checkpoint
from ffalora.federated.strategies import ServerState
from ffalora.privacy.accounting import LedgerMismatch, PrivacyLedger
from ffalora.privacy.ledger_files import resume_folder
from ffalora.privacy.sealed import digest_of
from ffalora.training.participant import Participant

SECONDS, MEGABYTES = 10, 300
_FORBIDDEN = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
              "socket.connect", "urllib.Request", "ctypes.dlopen")  # fmt: skip
_NUMBERS = [0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e-320, 1e308, math.inf, -math.inf, math.nan]
_VALUES = [
    None,
    True,
    False,
    "",
    "x" * 5000,
    "\x00",
    "\ud800",
    "../../etc",
    [],
    {},
    [[[[]]]],
    {"a": {"b": {}}},
    *_NUMBERS,
]
_BYTES = [
    b"\x00", b"\xff" * 8, b"{", b"}", b"[" * 3000, b'{"a":' * 3000, b'"', b"\\u", b"1e999", b"-", b"NaN", b"9" * 5000,
    b"\xef\xbb\xbf", b"!!python/object/apply:os.system ['true']", b"&a [*a, *a]", b"*a", b"<<: *a", b"? ", b": ",
    b"- " * 999, b"2001-99-99", b"!!timestamp x", b"!!int x", b"!!bool x", b"!!binary '*'", b"\x80\x04\x95", b"\n\t",
    b"{" * 999, b"cos\nsystem\n(S'true'\ntR.",
]  # fmt: skip


class Broken(AssertionError):
    """An input did what no input may do."""


# ---- mutations -------------------------------------------------------------------------------------------------------


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to four changes: flips, cuts, repeats, hostile fragments, lengths in a header."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.choice([1, 2, 8, 64, 4096])]
        elif kind == 2:
            data[at:at] = data[at : at + rng.choice([1, 8, 64, 512])]
        elif kind == 3:
            data[at:at] = rng.choice(_BYTES)
        elif kind == 4:
            data[:8] = rng.choice([0, 1, len(data), 2**31, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little")
        elif kind == 5:
            del data[at:]
        else:
            data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """One to three nodes replaced, removed, renamed or put in twice."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return rng.choice(_VALUES)
        parent, key = rng.choice(places)
        kind = rng.randrange(5)
        if kind <= 1:
            parent[key] = copy.deepcopy(rng.choice(_VALUES))
        elif kind == 2:
            del parent[key]
        elif kind == 3 and isinstance(parent, dict):
            parent[rng.choice(["", "x", "federation", "a.b", str(key) + "."])] = parent.pop(key)
        else:
            other, place = rng.choice(places)
            if isinstance(other, dict) or place < len(other):
                parent[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else other[place])
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


# ---- what is read ----------------------------------------------------------------------------------------------------


class Target:
    """One kind of file: a valid folder, how to damage it, how to read it, and the errors that reading may raise."""

    errors: tuple[type[Exception], ...]

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.make()
        self.valid = {p.name: p.read_bytes() for p in folder.iterdir()}
        self.read()

    def damage(self, rng: random.Random) -> None:
        """Restores the folder, then damages one file of it."""
        for name, content in self.valid.items():
            (self.folder / name).write_bytes(content)
        name = rng.choice(sorted(self.valid))
        (self.folder / name).write_bytes(self.damaged(name, rng))

    def make(self) -> None:
        raise NotImplementedError

    def damaged(self, name: str, rng: random.Random) -> bytes:
        content = self.valid[name]
        if name.endswith(".json") and rng.random() < 0.6:
            return _json(mutate_tree(json.loads(content), rng))
        return mutate_bytes(content, rng)

    def read(self) -> None:
        raise NotImplementedError


class AdapterFiles(Target):
    errors = (CheckpointError,)

    def make(self) -> None:
        self.model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
        adapters = attach(self.model, AdapterConfig(rank=2, target_modules=["0", "1"]))
        adapters.save(self.folder)
        adapters.detach()

    def damage(self, rng: random.Random) -> None:
        super().damage(rng)
        if rng.random() < 0.5:  # PEFT's own configuration is read where ours is missing
            (self.folder / "ffalora_config.json").unlink(missing_ok=True)

    def read(self) -> None:
        load_adapters(self.model, self.folder).detach()


class Checkpoints(Target):
    """Half of the damaged headers get a digest that fits: whoever tampers can compute one."""

    errors = (CheckpointError, LedgerMismatch)

    def make(self) -> None:
        self.config = from_mapping({"privacy": {"unit": "sample", "noise_multiplier": 1.0}})
        self.fresh()
        self.participants[0].steps_taken = self.ledgers["0"].steps_taken = 3
        self.checkpoint().save()

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.folder / "checkpoint.safetensors", self.config, self.server, self.participants)

    def fresh(self) -> None:
        self.server = ServerState(torch.arange(8.0), tensors={"moments.age": torch.zeros(2, dtype=torch.int64)})
        self.ledgers = {str(i): PrivacyLedger(i, 10, 0.5, 1.0, 1e-5, max_steps=9) for i in range(2)}
        self.participants = [Participant(i, np.arange(10), self.ledgers[str(i)]) for i in range(2)]

    def damaged(self, name: str, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return super().damaged(name, rng)
        with safe_open(self.folder / name, framework="pt") as file:
            header = json.loads(file.metadata()["ffalora"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        header = mutate_tree(header, rng)
        if rng.random() < 0.3:
            tensors["row"] = rng.choice(
                [torch.zeros(0), torch.tensor(1.0), torch.full((8,), math.nan), torch.zeros(8).half()]
            )
        if isinstance(header, dict) and rng.random() < 0.8:
            header.pop("digest", None)
            header["digest"] = checkpoint_module._digest(header, tensors)
        return save(tensors, metadata={"ffalora": json.dumps(header).encode("utf-8", "replace").decode()})

    def read(self) -> None:
        self.fresh()
        self.checkpoint().load()
        if not 0 <= self.server.round <= self.config.federation.rounds:
            raise Broken(f"round {self.server.round} was accepted")
        if any(p.steps_taken < 0 for p in self.participants) or not self.server.row.isfinite().all():
            raise Broken("a participant or a state that cannot be was accepted")


class Ledgers(Target):
    """Damaged ledgers that are still JSON get a digest that fits: whoever tampers can compute one."""

    errors = (CheckpointError, LedgerMismatch)

    def make(self) -> None:
        ledger = PrivacyLedger(0, 10, 0.5, 1.0, 1e-5, max_steps=9, prior=((2.0, 0.1, 5),), steps_taken=4)
        ledger.save(self.folder / "0.json")

    def damaged(self, name: str, rng: random.Random) -> bytes:
        content = super().damaged(name, rng)
        try:
            values = json.loads(content)
            return _json(values | {"digest": digest_of({k: v for k, v in values.items() if k != "digest"})})
        except (ValueError, TypeError, RecursionError):
            return content

    def read(self) -> None:
        ledger = PrivacyLedger(0, 10, 0.5, 1.0, 1e-5, max_steps=9, prior=((2.0, 0.1, 5),))
        resume_folder(self.folder, {"0": ledger})
        if not 0 <= ledger.steps_taken <= 9:
            raise Broken(f"steps_taken={ledger.steps_taken} was accepted")


class Configurations(Target):
    errors = (ConfigError,)

    def make(self) -> None:
        self.tree = {
            "seed": 1,
            "adapter": {"rank": 4, "target_modules": ["query", "value"], "rank_pattern": {"query": 2}},
            "clients": {"partition": "labels", "proportions": [[0.9, 0.1], [0.1, 0.9]]},
            "privacy": {"unit": "sample", "target_epsilon": 3.0},
            "methods": {"ffa": {"federation.strategy": "ffa"}, "lora": {"optimizer": {"lr": 0.1}}},
        }
        (self.folder / "config.yaml").write_bytes(_yaml(self.tree))

    def damaged(self, name: str, rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return _yaml(mutate_tree(self.tree, rng))
        return mutate_bytes(self.valid[name], rng)

    def read(self) -> None:
        load_config(self.folder / "config.yaml")


TARGETS: dict[str, Callable[[Path], Target]] = {
    "adapter files": AdapterFiles,
    "checkpoints": Checkpoints,
    "ledgers": Ledgers,
    "configurations": Configurations,
}


# ---- the run ---------------------------------------------------------------------------------------------------------


@contextmanager
def watched() -> Iterator[list[str]]:
    """Within the block, events that no reader of a file may cause are collected."""
    seen: list[str] = []
    active = [True]
    sys.addaudithook(lambda event, _: seen.append(event) if active[0] and event in _FORBIDDEN else None)
    try:
        yield seen
    finally:
        active[0] = False


def _too_slow(*_: Any) -> None:
    raise Broken(f"reading takes more than {SECONDS} s of the processor")


def fuzz(name: str, inputs: int, seed: int = 0) -> dict[str, Any]:
    """Reads ``inputs`` damaged files of one kind.

    Raises:
        Broken: names the input (by seed and number) and what it did.
    """
    with tempfile.TemporaryDirectory() as folder, watched() as events:
        target = TARGETS[name](Path(folder) / "files")
        before, counts, slowest = _memory(), Counter(), 0.0
        signal.signal(signal.SIGPROF, _too_slow)
        for number in range(inputs):
            which = f"{name}, seed {seed}, input {number}"
            target.damage(random.Random(f"{name} {seed} {number}"))
            started = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                target.read()
                counts["read"] += 1
            except target.errors as error:
                counts[type(error).__name__] += 1
                if not str(error).strip() or len(str(error)) > 100_000:
                    raise Broken(
                        f"{name}, seed {seed}, input {number}: the message has {len(str(error))} letters"
                    ) from error
            except BaseException as error:
                raise Broken(
                    f"{name}, seed {seed}, input {number}: {type(error).__name__}: {str(error)[:300]}"
                ) from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, time.process_time() - started)
            if events:
                raise Broken(f"{which}: caused {events[:3]}")
        grown = _memory() - before
        if grown > MEGABYTES:
            raise Broken(f"{name}: memory grew by {grown:.0f} MB")
    return {"files": name, "inputs": inputs, **counts, "slowest_s": round(slowest, 3), "grown_mb": round(grown)}


def _memory() -> float:
    """Largest resident size so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(TARGETS), action="append", help="kinds of files; default: all")
    arguments = parser.parse_args()
    for name in arguments.only or TARGETS:
        print(
            json.dumps(fuzz(name, -(-arguments.inputs // len(arguments.only or TARGETS)), arguments.seed)), flush=True
        )


if __name__ == "__main__":
    main()
