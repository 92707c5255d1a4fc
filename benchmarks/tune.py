"""Measures candidate launch configurations on the GPU at hand and prints the winners as a table for ``configs.py``.

``python benchmarks/tune.py`` times ``backward`` and ``expand_`` in bf16 over ranks and typical layers.
Nothing is written: a person pastes the table, brings the compile report up to date and runs the tests. A candidate that
fails to compile or gives a wrong result is left out and named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from unittest import mock

import torch

import ffalora_kernels as ffk
from ffalora_kernels import Segments
from ffalora_kernels.triton import configs, launch

RANKS = (16, 32, 64, 128, 256)
LAYERS = ((16, 128, 1024), (8, 512, 4096))  # segments, tokens of each, out-features (= in-features)
CANDIDATES = {
    "backward": list(product((32, 64), (64, 128, 256), (4, 8), (2, 3))),
    "expand": list(product((32, 64, 128), (64, 128, 256), (4, 8), (2,))),
}
REPEATS = 30
WORST_ERROR = 1e-2


def milliseconds(call: Callable[[], object]) -> float:
    """Median time of a call on the device, after warming up, with the L2 cache emptied before each repetition."""
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    for _ in range(3):
        call()
    times = []
    for _ in range(REPEATS):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[REPEATS // 2]


@contextmanager
def trying(config: configs.Config) -> Iterator[None]:
    """Within the block every kernel family uses this configuration."""
    with mock.patch.object(configs, "choose", lambda *args: config):
        yield


def calls(family: str, s: int, t: int, n: int, r: int) -> tuple[Callable[[], torch.Tensor], torch.Tensor]:
    """A call of the family on one layer, and what it must return."""
    torch.manual_seed(0)
    segments, m = Segments.uniform(s, t, device="cuda"), s * t
    draw = lambda *shape: torch.randn(*shape, device="cuda").bfloat16()  # noqa: E731
    dy, h, b = draw(m, n), draw(m, r), draw(1, n, r)
    arena = torch.empty(s, n * r, device="cuda")
    if family == "expand":
        y = torch.zeros_like(dy)

        def expand() -> torch.Tensor:
            ffk.expand_(y, h, b, segments, 1.0)
            return y

        return expand, h.float() @ b[0].float().T

    def backward() -> torch.Tensor:
        ffk.backward(dy, h, b, segments, 1.0, arena, 0)
        return arena

    return backward, torch.einsum("stn,str->snr", dy.view(s, t, n).float(), h.view(s, t, r).float()).reshape(s, -1)


def best(family: str, r: int) -> configs.Config:
    """The candidate with the smallest sum of times over the layers."""
    times: dict[configs.Config, float] = {}
    for candidate in CANDIDATES[family]:
        config = configs.Config(*candidate)
        try:
            with trying(config):
                for s, t, n in LAYERS:
                    call, expected = calls(family, s, t, n, r)
                    error = (call().float() - expected).norm() / expected.norm()
                    if not error < WORST_ERROR:
                        raise RuntimeError(f"relative error {float(error):.1e}")
                    times[config] = times.get(config, 0.0) + milliseconds(call)
        except Exception as reason:
            times.pop(config, None)
            print(f"# {family}, rank {r}: {config} left out: {reason}", file=sys.stderr)
    return min(times, key=lambda config: times[config])


def main() -> None:
    """Prints a table for this part."""
    if not torch.cuda.is_available():
        sys.exit("tune.py measures on a GPU, and torch sees none; the frozen tables stay as they are")
    arch = launch.architecture(torch.device("cuda"))
    print(f'# {torch.cuda.get_device_name()}\n"{arch}": {{')
    with ffk.use_backend("triton"):
        for family in CANDIDATES:
            print(f'    ("{family}", 2): {{')
            for r in RANKS:
                c = best(family, r)
                print(f"        {r}: Config({c.block_t}, {c.block_n}, {c.num_warps}, {c.num_stages}),", flush=True)
            print("    },")
        print("}")


if __name__ == "__main__":
    main()
