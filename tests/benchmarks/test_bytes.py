"""The byte table: every operation has its row, the committed copies have not drifted."""

import sys

import bench_path
import pytest
import torch
from op_peers import backward_case, clip_case, expand_case, layer_of, outer_case, step_case

from ffalora_kernels.ops import SCHEMAS

sys.path.append(str(bench_path.BENCHMARKS.parent / "tests" / "kernels"))
table = pytest.importorskip("bytes")
CPU = torch.device("cpu")


def test_operation_has_no_row_in_the_byte_table():
    assert set(SCHEMAS) == {row["op"] for row in table.op_rows()} == set(table.KERNELS)


def test_committed_table_drifted_from_the_byte_functions():
    assert table.problems() == []


def test_changed_byte_function_goes_unnoticed(monkeypatch):
    monkeypatch.setattr(table.traffic, "expand_floor", lambda m, n, r, e, c=1: m * n * e)
    assert any(text.startswith("expand_ ") for text in table.problems())


def test_floor_is_not_what_the_tensors_of_a_call_hold():
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


@pytest.mark.parametrize("op", ["expand_", "clip_reduce_", "privatize_step_", "outer", "backward"])
def test_committed_emulator_count_drifted(op):
    from emulator import require_tools

    require_tools()
    key, again = next((k, v) for k, v in table.recounts().items() if k[0] == op)
    assert table.drift(again(), key) is None


def test_drift_of_a_count_goes_unnoticed(monkeypatch):
    committed = table._read(table.EMULATED)
    if not committed:
        pytest.skip("no emulator counts are committed")
    row = committed[0]
    key = (row["op"], row["shape"], row["variant"], row["part"])
    assert table.drift(row, key) is None
    assert table.drift(row | {"unique_bytes": "1"}, key) is not None
    assert table.drift(row, ("unknown", *key[1:])) is not None
