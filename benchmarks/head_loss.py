"""Losses of a language model's frozen head and the gradient of its states: time, memory, error.

    python benchmarks/head_loss.py --device cuda --output runs/bench/head_loss.csv      on a GPU (two minutes)
    python benchmarks/head_loss.py --device cpu                                         the rows that are committed

*ours* is ``linear_cross_entropy``; *whole logits* multiplies, widens to float32 and calls ``F.cross_entropy``, as
models do; *products alone* makes the two matrix products of *ours* and nothing else, which nobody can beat who keeps
them. ``peak_mib`` is memory beyond the inputs and the gradient.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import checkout  # noqa: F401
import torch
import torch.nn.functional as F
from gate import CASES, backend_of, fresh_inputs, poisoned_buffers
from harness import Clock, PeakMemory, Timing, copy_bandwidth, interleave, relative_error, release, survived, verdict
from plan import HEADS
from record import OK, Row, append, stamp
from torch import Tensor

import ffalora_kernels as ffk
from ffalora_kernels import Segments, traffic

_SMALL = ((1024, 576, 49152),)
#: Tokens whose gradient is compared with float64's.
_COMPARED = 64
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class HeadCase:
    """States ``x [M,D]``, a head ``w [V,D]``, targets ``[M]`` and segments of 512 tokens."""

    x: Tensor
    w: Tensor
    targets: Tensor
    segments: Segments

    @classmethod
    def drawn(cls, m: int, d: int, v: int, dtype: torch.dtype, device: torch.device) -> HeadCase:
        """Normal states and a head under which logits have size 3."""
        torch.manual_seed(0)
        x = torch.randn(m, d, device=device).to(dtype)
        w = torch.empty(v, d, dtype=dtype, device=device).normal_(std=3.0 / d**0.5)
        targets = torch.randint(v, (m,), device=device)
        return cls(x, w, targets, Segments.uniform(m // 512, 512, device=device))

    def ours(self) -> Tensor:
        """The gradient of all segments' mean losses ``[M,D]``."""
        return ffk.linear_cross_entropy(self.x, self.w, None, self.targets, self.segments)[2]

    def whole_logits(self) -> Tensor:
        """The same by autograd through logits ``[M,V]``."""
        x = self.x.detach().requires_grad_()
        losses = F.cross_entropy((x @ self.w.t()).float(), self.targets, reduction="none")
        return torch.autograd.grad(losses.view(len(self.segments), -1).mean(1).sum(), x)[0]

    def products_alone(self) -> Tensor:
        """The products of *ours*, chunk by chunk, with the logits in place of their gradient."""
        v, dx = len(self.w), torch.empty_like(self.x)
        if self.x.device.type == "cpu":
            from ffalora_kernels import cpu_head_loss

            for rows in self.x.split(max(cpu_head_loss.SCRATCH_BYTES // (4 * v), 1)):
                ffk.base_input_gradient(cpu_head_loss._logits(rows, self.w, None).to(rows.dtype), self.w)
            return dx
        from ffalora_kernels.triton import cross_entropy

        chunk = cross_entropy.chunk_tokens(v)
        scratch = self.x.new_empty(chunk, v, dtype=torch.float32)
        sums = self.x.new_empty(chunk, self.x.shape[1], dtype=torch.float32)
        for rows in self.x.split(chunk):
            cross_entropy.product_(scratch[: len(rows)], rows, self.w.t())
            cross_entropy.product_(sums[: len(rows)], scratch.view(rows.dtype)[: len(rows), :v], self.w)
        return dx

    def expected(self) -> Tensor:
        """The gradient of the first tokens in float64."""
        x, w = self.x[:_COMPARED].double(), self.w.double()
        z = x @ w.t()
        slopes = z.softmax(1).scatter_add_(1, self.targets[:_COMPARED, None], -torch.ones_like(z[:, :1]))
        return slopes @ w / 512


def measure(case: HeadCase, name: str, clock: Clock, copy: float, repeats: int, seconds: float, gate: str) -> list[Row]:
    """A row of each provider."""
    calls: dict[str, Callable[[], Tensor]] = {
        "ours": case.ours, "whole logits": case.whole_logits, "products alone": case.products_alone
    }  # fmt: skip
    (m, d), v, e = case.x.shape, len(case.w), case.x.element_size()
    moved, flops = traffic.linear_cross_entropy_floor(m, d, v, len(case.segments), e), 4 * m * v * d
    expected, rows = case.expected(), {}
    for provider, call in calls.items():
        row, outcome = Row("head loss", name, provider, gate=gate, bytes=moved), Timing()
        with survived(outcome):
            with PeakMemory(clock.device) as memory:
                found = call()
            row = replace(row, peak_mib=memory.mib - m * d * e / 2**20)
            if provider != "products alone":
                row = replace(row, error=relative_error(found[:_COMPARED], expected))
            if provider == "ours":
                outcome.status = verdict(row.error, TOLERANCE[case.x.dtype])
            del found
        rows[provider] = replace(row, status=outcome.status)
        release()
    sound = {provider: lambda _, call=calls[provider]: call() for provider, row in rows.items() if row.status == OK}
    for provider, timing in interleave(sound, clock, repeats, seconds, warmup=1).items():
        speed = moved / timing.median / 1e6
        config = {"flops": flops, "tflops": round(flops / timing.median / 1e9, 3)}
        columns = timing.columns() | {"gb_per_s": speed, "copy_share": speed / copy, "config": config}
        rows[provider] = replace(rows[provider], **columns)
    return list(rows.values())


def gate_of(device: torch.device) -> str:
    """'green' where every case of the operation agrees with float64 on this device."""
    failures = []
    with fresh_inputs(), poisoned_buffers():
        for name in (name for name in CASES if name.startswith("linear_cross_entropy")):
            try:
                CASES[name](backend_of(device), device=str(device))
            except Exception as error:
                failures.append(f"  {name}: {type(error).__name__}: {str(error)[:300]}")
    print("\n".join(failures) or "  gate green")
    return "red" if failures else "green"


def main() -> int:
    """Measures every shape and appends the rows; 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …, or cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data" / "head_loss.csv")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=15.0, help="for each shape")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    clock, gate, wrong = Clock(device), gate_of(device), False
    copy = copy_bandwidth(clock, 1024 if device.type == "cuda" else 64)
    for m, d, v in HEADS if device.type == "cuda" else _SMALL:
        for dtype in (torch.bfloat16,) if device.type == "cuda" else (torch.float32, torch.bfloat16):
            name = f"M{m} D{d} V{v} {str(dtype).removeprefix('torch.')}"
            case = HeadCase.drawn(m, d, v, dtype, device)
            rows = measure(case, name, clock, copy, asked.repeats, asked.seconds, gate)
            append(asked.output, [stamp(row, device) for row in rows])
            for row in rows:
                print(f"  {name:36} {row.provider:15} {row.ms:9.3f} ms  {row.config.get('tflops', 0):8.2f} TFLOP/s "
                      f"{row.peak_mib:9.1f} MiB  error {row.error:.1e}  {row.status}", flush=True)  # fmt: skip
                wrong |= row.provider == "ours" and row.status != OK
            del case
            release()
    return int(wrong or gate == "red")


if __name__ == "__main__":
    sys.exit(main())
