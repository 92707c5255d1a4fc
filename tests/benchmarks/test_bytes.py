"""The byte table: every operation has its row, the committed copies have not drifted."""

import inspect
import sys

import bench_path
import pytest
import torch
from arena_peers import clip_case, step_case
from op_peers import backward_case, expand_case, layer_of, outer_case, product_case
from schemes import SCHEMES, Layer

import ffalora_kernels as ffk
from ffalora_kernels.ops import SCHEMAS

sys.path.append(str(bench_path.BENCHMARKS.parent / "tests" / "kernels"))
table = pytest.importorskip("bytes")
CPU = torch.device("cpu")
README = (bench_path.BENCHMARKS.parent / "kernels" / "README.md").read_text()
LAYERS = (Layer(16, 128, 1024, 1024, 8), Layer(8, 512, 4096, 4096, 16))


def test_every_operation_has_a_row_in_the_byte_table():
    rows = {row["op"] for row in table.op_rows()}
    assert set(SCHEMAS) <= rows == set(table.KERNELS) | set(table.ENTRIES)


def test_every_public_function_has_a_row_in_the_byte_table():
    computing = {name for name in ffk.__all__ if inspect.isfunction(getattr(ffk, name))} - {"explain", "use_backend"}
    assert computing - table.VENDOR == set(table.KERNELS) | set(table.ENTRIES)


def test_every_compiled_kernel_belongs_to_a_row_of_the_byte_table():
    kernels = {row["kernel"] for row in table.read_table(table.COMPILED)}
    assert kernels == {kernel for served in table.KERNELS.values() for kernel in served}


def test_committed_table_is_that_of_the_byte_functions():
    assert table.problems() == []


def test_changed_byte_function_is_noticed(monkeypatch):
    monkeypatch.setattr(table.traffic, "expand_floor", lambda m, n, r, e, c=1: m * n * e)
    assert any(text.startswith("expand_ ") for text in table.problems())


def test_floor_is_what_the_tensors_of_a_call_hold():
    q = layer_of("roberta-base q", 4, 16, 8, torch.float32)
    made = expand_case("roberta-base q", q, torch.float32, CPU, 1, False)
    i = made.inputs[0]
    assert made.bytes == 2 * i.y.nbytes + i.h.nbytes + i.b.nbytes
    made = backward_case("roberta-base q", q, torch.float32, CPU, 1, False)
    i = made.inputs[0]
    assert made.bytes == i.dy.nbytes + 2 * i.h.nbytes + i.b.nbytes + i.arena.nbytes
    made = outer_case("roberta-base q", q, torch.float32, CPU, 1, False)
    i = made.inputs[0]
    assert made.bytes == i.dy.nbytes + i.h.nbytes + i.arena.nbytes
    made = clip_case(4, 600, CPU, 1, False, True)
    i = made.inputs[0]
    assert made.bytes == pytest.approx(i.arena.nbytes + 2 * i.total.nbytes, rel=0.02)
    made = step_case(6000, CPU, 1, False)
    i = made.inputs[0]
    assert made.bytes == pytest.approx(2 * i.state.nbytes + i.total.nbytes, rel=0.01)


def test_seeded_floor_is_what_the_tensors_of_a_call_hold():
    q = layer_of("roberta-base up", 4, 16, 8, torch.bfloat16)
    made = product_case("roberta-base up", q, torch.bfloat16, CPU, 1, False)
    i = made.inputs[0]
    h, y = i.x @ i.a.T, i.x @ i.w.T
    assert made.bytes == sum(t.nbytes for t in (i.x, i.w, h, i.b, y))
    gradient = table.traffic.adapted_input_gradient_floor(q.m, q.n, q.k, q.r, q.e)
    assert gradient == sum(t.nbytes for t in (y, i.w, h, i.a, i.x))


def test_committed_samples_hold_every_operation_that_memory_decides():
    assert {row["op"] for row in table.read_table(table.SAMPLED)} == set(table.KERNELS) - table.COMPUTE_BOUND


@pytest.mark.parametrize("name", SCHEMES)
def test_the_byte_table_of_the_readme_is_that_of_the_formulas(name: str) -> None:
    scheme = SCHEMES[name]
    cells = [f"{count(layer) / 2**20:.1f}" for layer in LAYERS for count in (scheme.forward, scheme.backward)]
    assert f"| {name} | {'yes' if scheme.private else 'no'} | {' | '.join(cells)} |" in README
