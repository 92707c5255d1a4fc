"""Memory of a private training step without allocating any: python benchmarks/memory.py

Whole steps of a RoBERTa-large-sized model (batch 32, 128 tokens, adapters of rank 8 on query and value) run on tensors
that have shapes and no data; every storage is counted while it lives. Peaks are given above the frozen model's own
(its weights, and what its forward pass and input gradients need). Rivals run the same way, with their own hooks and
optimisers.

    --write   writes benchmarks/data/memory.csv        --check   fails where it differs, or a bar is broken
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from csv_tables import read_table, write_table
from opacus_steps import opacus
from own_steps import ours
from peft_steps import floor, peft
from provider import Factory
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from workload import Workload, roberta

TABLE = Path(__file__).parent / "data" / "memory.csv"
#: Saved for the backward pass; held between steps (weights, arena or per-sample gradients, state); their sum above the
#: frozen model's; the peak of a step; that above the frozen model's.
COLUMNS = ("case", "provider", "saved_mib", "held_mib", "extra_mib", "peak_mib", "extra_peak_mib")
PROVIDERS: dict[str, Factory] = {
    "floor": floor,
    "peft": peft,
    "peft, a frozen": lambda work: peft(work, "b"),
    "opacus hooks": lambda work: opacus(work, "hooks", "both"),
    "opacus hooks, a frozen": lambda work: opacus(work, "hooks", "b"),
    "opacus ghost, a frozen": lambda work: opacus(work, "ghost", "b"),
    # One physical batch, as everybody takes: how ours would be cut depends on the memory of this machine.
    "ours": lambda work: ours(work, cut=False),
    "ours, a and b trained": lambda work: ours(work, trained="both", cut=False),
}
MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage that an operation returns, for as long as it lives.

    Attributes:
        live: bytes now; peak: most at once, since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def alive(self) -> dict[int, weakref.ref]:
        """The storages that live now, by handle (which a later storage may get again)."""
        return dict(self._known)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return 0  # a tensor without data has no value to read
        if function is torch.ops.aten._to_copy.default and _leaves_meta(arguments[0], keywords):
            return torch.zeros(arguments[0].shape, dtype=arguments[0].dtype)
        result = function(*arguments, **(keywords or {}))
        for found in tree_iter(result):
            if isinstance(found, Tensor):
                self._count(found.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._free(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        del self._known[key]
        self.live -= size


def _leaves_meta(tensor: Tensor, options: dict | None) -> bool:
    """Whether a copy asks for the values of a tensor without data (norms, for the report)."""
    target = (options or {}).get("device")
    return tensor.device.type == "meta" and target is not None and torch.device(target).type != "meta"


@contextmanager
def _without_detectors() -> Iterator[None]:
    """Within the block nothing looks at values: no probe of the model, no autocast (which knows no such device)."""
    from ffalora.training.probe import Probe

    with mock.patch.object(Probe, "look", lambda *_: None), mock.patch.object(torch, "is_autocast_enabled", _never):
        yield


def _never(*_: object) -> bool:
    return False


@contextmanager
def saved_bytes(counter: LiveBytes) -> Iterator[dict[str, int]]:
    """Within the block ``found['saved']`` grows by the bytes that autograd keeps for backward passes and that were not
    there before (weights were).
    """
    found = {"saved": 0}
    seen = counter.alive()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key, now = storage._cdata, counter.alive()[storage._cdata]
        if seen.get(key) is not now:
            seen[key] = now
            found["saved"] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def step_memory(work: Workload, factory: Factory) -> dict[str, float]:
    """MiB of saved activations, of what is held between two steps, and of the peak of the second step."""
    with LiveBytes() as counter, _without_detectors():
        provider = factory(replace(work, device=torch.device("meta")))
        provider.step(0)
        gc.collect()
        counter.peak = held = counter.live
        with saved_bytes(counter) as found:
            provider.step(0)
        return {"saved_mib": found["saved"] / MIB, "held_mib": held / MIB, "peak_mib": counter.peak / MIB}


def measure(work: Workload, providers: dict[str, Factory] = PROVIDERS) -> list[dict[str, Any]]:
    """One row a provider (see ``COLUMNS``); ``extra_mib`` and ``extra_peak_mib`` are above the frozen model's step."""
    found = {name: step_memory(work, factory) for name, factory in providers.items()}
    least = found["floor"]
    rows = []
    for name, sizes in found.items():
        extra = sizes["saved_mib"] + sizes["held_mib"] - least["saved_mib"] - least["held_mib"]
        row = sizes | {"extra_mib": extra, "extra_peak_mib": sizes["peak_mib"] - least["peak_mib"]}
        rows.append({"case": work.name, "provider": name} | {c: round(v, 1) for c, v in row.items()})
    return rows


def broken_bars(rows: list[dict[str, Any]]) -> list[str]:
    """Where a private step takes more than Opacus's hooks with a frozen, or than half of theirs with both trained."""
    extra = {row["provider"]: float(row["extra_mib"]) for row in rows}
    found = []
    for rival, share in (("opacus hooks, a frozen", 1.0), ("opacus hooks", 0.5)):
        if extra["ours"] > share * extra[rival]:
            found.append(
                f"ours takes {extra['ours']} MiB above the frozen model, more than {share} x {extra[rival]} ({rival})"
            )
    return found


def full_size() -> Workload:
    """RoBERTa-large, batch 32 of 128 tokens, adapters of rank 8 on query and value, float32."""
    return roberta(torch.device("meta"), samples=32)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where the committed table drifted or a bar is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table")
    parser.add_argument("--check", action="store_true", help="fail where the committed table differs")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    rows = measure(full_size())
    print(f"{rows[0]['case']}, MiB\n{'':24}" + "".join(c.removesuffix("_mib").rjust(12) for c in COLUMNS[2:]))
    for row in rows:
        print(f"{row['provider']:24}" + "".join(f"{row[c]:12.1f}" for c in COLUMNS[2:]))
    found = broken_bars(rows)
    if options.write:
        write_table(TABLE, COLUMNS, rows)
    if options.check:
        now = [{k: str(v) for k, v in row.items()} for row in rows]
        found += [
            f"{new['provider']}: {TABLE.name} says {old}, now {new}"
            for old, new in zip(read_table(TABLE), now, strict=True)
            if old != new
        ]
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
