"""The harness: wrong results get no time, one provider's failure costs nobody else, rows survive the CSV."""

import csv
import math
from types import SimpleNamespace
from unittest.mock import MagicMock

import bench_path  # noqa: F401
import plot
import pytest
import torch
from counters import SAMPLES, bytes_moved, ratios, shapes
from csv_tables import extend_table, read_table
from gate import fresh_inputs, run_gate
from harness import Clock, PeakMemory, Timing, Unavailable, interleave, relative_error, verdict
from op_bench import run_case
from op_peers import OpCase
from record import COLUMNS, Row, append, read
from report import short_table

from ffalora_kernels.ops import SCHEMAS

CPU = torch.device("cpu")
#: The cases of ``counters.shapes``, which would take gigabytes to make.
COUNTED = {
    "expand_": "llama-7b q S32 T256 R8 bfloat16",
    "backward": "llama-7b q S32 T256 R8 bfloat16",
    "outer": "roberta-large q S256 T128 R8 bfloat16",
    "clip_reduce_": "S8 P4194304 norms given",
    "privatize_step_": "P4194304 sgd",
}
CLOCK = Clock(CPU, flush=False)


def case(**candidates) -> OpCase:
    return OpCase("op shape", 8, candidates, [SimpleNamespace(x=torch.ones(4))], (torch.ones(4).double(),), 1e-5)


def test_wrong_result_gets_no_time():
    right, wrong = lambda i: (i.x,), lambda i: (i.x + 1e-3,)
    nan = lambda i: (i.x * float("nan"),)  # noqa: E731
    rows = {r.provider: r for r in run_case(case(ours=right, rival=wrong, nan=nan), "ops", CLOCK, 1.0, 3, math.inf)}
    assert rows["ours"].status == "ok" and rows["ours"].ms > 0 and rows["ours"].repeats == 3
    for name in ("rival", "nan"):
        assert rows[name].status.startswith("wrong") and math.isnan(rows[name].ms)


def test_failure_of_one_provider_leaves_the_others_their_times():
    def out_of_memory(_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def missing(_):
        raise Unavailable("not installed")

    def broken(_):
        raise RuntimeError("no such shape")

    candidates = {"oom": out_of_memory, "missing": missing, "broken": broken, "ours": lambda _: None}
    timings = interleave(candidates, CLOCK, 3, warmup=1)
    assert timings["ours"].status == "ok" and len(timings["ours"].samples) == 3
    assert timings["oom"].status == "out of memory"
    assert timings["missing"].status == "unavailable: not installed"
    assert timings["broken"].status == "failed: RuntimeError: no such shape"


def test_failure_after_good_samples_leaves_no_time():
    timings = interleave({"late": lambda number: 1 / (2 - number)}, CLOCK, 5, warmup=0)
    assert timings["late"].status.startswith("failed") and math.isnan(timings["late"].median)


def test_quantiles_are_those_of_the_samples():
    timing = Timing([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (timing.quantile(0.0), timing.median, timing.quantile(0.75), timing.quantile(1.0)) == (1.0, 3.0, 4.0, 5.0)
    assert math.isnan(Timing().quantile(0.5))


def test_nan_is_never_within_the_tolerance():
    assert verdict(relative_error(torch.tensor([float("nan")]), torch.ones(1)), 1.0) != "ok"


def test_row_comes_through_the_csv_unchanged(tmp_path):
    path = tmp_path / "rows.csv"
    row = Row("ops", "a, b", "ours", ms=1.25, bytes=7, config={"dtype": "float32", "n": [1, 2]}, gate="green")
    append(path, [row])
    append(path, [row])
    found = read(path)
    assert len(found) == 2 and path.read_text().count("section,") == 1
    assert {c: getattr(found[0], c) for c in COLUMNS if getattr(row, c) == getattr(row, c)} == {
        c: getattr(row, c) for c in COLUMNS if getattr(row, c) == getattr(row, c)
    }
    assert math.isnan(found[0].error)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_is_extended_with_its_own_line_ends(tmp_path, end):
    path = tmp_path / "made" / "table.csv"
    extend_table(path, ("a", "b"), [{"a": 1, "b": "x"}])
    path.write_bytes(path.read_bytes().replace(b"\n", end.encode()))
    extend_table(path, ("a", "b"), [{"a": 2, "b": "y"}])
    assert path.read_bytes() == end.join(["a,b", "1,x", "2,y", ""]).encode()
    assert read_table(path) == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}] and not read_table(tmp_path / "none")


def test_table_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="other columns"):
        read(path)


def test_memory_of_a_block_is_seen():
    """The block holds its memory until the watching thread has come to see it, however busy the machine is."""
    with PeakMemory(CPU) as memory:
        held = torch.ones(16 * 2**20)
        while memory._peak < memory._before + 50 * 2**20:
            held.sum()
        del held
    assert 50 < memory.mib < 200


def test_short_table_compares_ours_with_its_best_rival():
    rows = [
        Row("steps", "model", "ours", ms=2.0),
        Row("steps", "model", "peft", ms=1.0),
        Row("steps", "model", "floor", ms=0.5),
        Row("steps", "model", "opacus hooks", ms=8.0),
        Row("steps", "model", "opacus ghost", "out of memory"),
    ]
    line = short_table(rows).splitlines()[1]
    assert "opacus hooks" in line and "4.00x" in line


def test_gate_draws_fresh_inputs_each_time():
    with fresh_inputs():
        torch.manual_seed(0)
        first = torch.rand(1)
    with fresh_inputs():
        torch.manual_seed(0)
        second = torch.rand(1)
    torch.manual_seed(0)
    assert len({float(first), float(second), float(torch.rand(1))}) == 3


def test_gate_stops_a_wrong_kernel(monkeypatch):
    import gate
    from cases import assert_close

    def wrong(backend, device="cpu"):
        assert_close("y", torch.zeros(3), torch.ones(3))

    right = gate.CASES["expand-plain"]
    monkeypatch.setattr(gate, "CASES", {"expand-plain": right, "expand-wrong": wrong})
    failures, count = run_gate(CPU, gate.case_names(False))
    assert set(failures) == {"expand-wrong"} and count == 2


def test_profilers_table_is_summed_in_bytes():
    header = '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    lines = [
        "==PROF== Connected to process 1",
        header,
        '"0","_backward_kernel","dram__bytes_read.sum","Mbyte","1.5"',
        '"0","_backward_kernel","dram__bytes_write.sum","Kbyte","2,000"',
        '"1","_sum_parts_kernel","dram__bytes_read.sum","byte","500"',
        '"2","void at::native::vectorized_elementwise_kernel","dram__bytes_write.sum","Mbyte","9"',
        '"1","_sum_parts_kernel","other","byte","9"',
    ]
    assert bytes_moved("\n".join(lines)) == {"dram__bytes_read.sum": 1_500_500.0, "dram__bytes_write.sum": 2e6}
    with pytest.raises(ValueError, match="no table"):
        bytes_moved("==ERROR== no permission")


def test_hardware_is_compared_with_floor_and_emulator():
    """Every operation under the profiler has a committed sample of the emulator to be held against."""
    with SAMPLES.open(newline="") as file:
        counted = {(row["op"], row["case"]): int(row["unique_bytes"]) for row in csv.DictReader(file)}
    moved = {"dram__bytes_read.sum": 3e6, "dram__bytes_write.sum": 1e6}
    for op, name in COUNTED.items():
        made = OpCase(f"{op} {name}", 2_000_000, {}, [], (), 1e-5)
        found = ratios(moved, made)
        assert found["to_floor"] == 2.0
        assert found["to_emulator"] == pytest.approx(4e6 / counted[op, name], abs=1e-4)
    assert "to_emulator" not in ratios(moved, OpCase("backward of no sample", 2_000_000, {}, [], (), 1e-5))
    assert set(COUNTED) == set(shapes(CPU)) == set(SCHEMAS)


def test_plots_hold_every_operation_and_batch(tmp_path):
    ops = [
        Row("ops", f"{op} layer S4 T16 R4 bfloat16", "ours", ms=1.0, bytes=1000, gb_per_s=1.0, config={"flops": 5000})
        for op in SCHEMAS
    ]
    machine = Row("device", "copy", "torch", gb_per_s=2000.0, config={"tflops": {"bfloat16": 700.0}})
    steps = [
        Row("memory", f"roberta 24x1024 B{batch} T128 R8", name, ms=1.0, peak_mib=10.0 * batch)
        for batch in (8, 16)
        for name in ("ours", "opacus hooks")
    ]
    drawn = plot.roofline([machine, *ops], "a card")
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn.axes[0].lines}
    assert all(lines[op] == [[5.0, 5e-3]] for op in SCHEMAS), "5 flops a byte, 5000 flops in a millisecond"
    (roof,) = (points for label, points in lines.items() if "700 TFLOP/s" in label)
    assert roof[0][1] == 2000.0 * roof[0][0] and roof[-1][1] == 700e3
    drawn = plot.memory(steps, "a card")
    lines = {line.get_label(): line.get_xydata().tolist() for line in drawn.axes[0].lines}
    assert lines["ours"] == lines["opacus hooks"] == [[8.0, 80.0], [16.0, 160.0]]
    append(tmp_path / "gpu.csv", [machine, *ops, *steps])
    names = {path.name for path in plot.draw(tmp_path / "gpu.csv", tmp_path)}
    assert {"gpu-roofline.png", "gpu-memory.png"} <= names


def test_a_call_is_timed_on_the_device_that_it_runs_on(monkeypatch, entered_devices):
    seen = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: seen.append(entered_devices[-1]))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: seen.append(entered_devices[-1]))
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: MagicMock(record=lambda: seen.append(entered_devices[-1])))
    Clock(torch.device("cuda:1"), flush=False).time(lambda _: seen.append(entered_devices[-1]), 0)
    assert seen == ["cuda:1"] * 5
