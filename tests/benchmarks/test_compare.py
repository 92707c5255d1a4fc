"""The comparison of two benchmark tables: a slow-down is flagged, and what must not be compared is refused."""

import time
from dataclasses import replace

import bench_path  # noqa: F401
import pytest
import torch
from compare import NotComparable, compare, main
from harness import Clock, interleave
from op_bench import run_case
from op_peers import OpCase, backward_case, expand_case, layer_of, outer_case
from record import Row, append, read, stamp

from ffalora_kernels import dispatch

CPU = torch.device("cpu")


def row(**changes) -> Row:
    made = Row("ops", "backward", "ours", gate="green", ms=1.0, ms_low=0.95, ms_high=1.05, repeats=9, device="one card")
    return replace(made, **changes)


def busy(milliseconds: float):
    """Waits without sleeping: what a slower operation looks like, whatever else the machine does."""
    end = time.thread_time() + milliseconds / 1e3
    while time.thread_time() < end:
        pass


class ProcessorClock(Clock):
    """Counts the processor time of this thread, so that other work on the machine does not decide the test."""

    def time(self, call, number):
        started = time.thread_time()
        call(number)
        return 1e3 * (time.thread_time() - started)


def timed_rows(milliseconds: float) -> list[Row]:
    x = torch.ones(4)

    def ours(inputs):
        busy(milliseconds)
        return (x,)

    case = OpCase("backward", 16, {"ours": ours}, [None], (x.double(),), 1e-6)
    case.inputs = [type("Inputs", (), {})()]
    rows = run_case(case, "ops", ProcessorClock(CPU, flush=False), 1.0, repeats=25, seconds=5.0, gate="green")
    return [stamp(r, CPU) for r in rows]


def test_injected_slow_down_of_20_percent_is_not_flagged(tmp_path):
    append(tmp_path / "before.csv", timed_rows(5.0))
    append(tmp_path / "after.csv", timed_rows(6.1))
    changes = compare(read(tmp_path / "before.csv"), read(tmp_path / "after.csv"))
    assert [change.slower for change in changes] == [True]
    assert main([str(tmp_path / "before.csv"), str(tmp_path / "after.csv")]) == 1


def slower(op: str, share: float):
    """A ``dispatch.choose`` whose implementation of one operation takes that share of its own time longer."""
    chosen = dispatch.choose

    def choose(name, device_type):
        implementation, backend = chosen(name, device_type)

        def run(*args):
            started = time.thread_time()
            result = implementation(*args)
            busy(share * 1e3 * (time.thread_time() - started))
            return result

        return (run if name == op else implementation), backend

    return choose


class FastestOfTwenty(ProcessorClock):
    """Other work on the machine slows single calls down by more than what is looked for."""

    def time(self, call, number):
        return min(ProcessorClock.time(self, call, number) for _ in range(20))


@pytest.mark.parametrize("op,make", [("backward", backward_case), ("expand_", expand_case)])
def test_slow_down_of_20_percent_in_an_operation_is_not_flagged(tmp_path, monkeypatch, op, make):
    """The operation itself takes a fifth longer, beside another one that does not; all take turns."""
    slowed = slower(op, 0.2)

    def after(candidate):
        def call(inputs):
            with monkeypatch.context() as patch:
                patch.setattr(dispatch, "choose", slowed)
                return candidate(inputs)

        return call

    q = layer_of("roberta-base q", 4, 64, 8, torch.float32)
    for name, maker in ((op, make), ("outer", outer_case)):
        case = maker("roberta-base q", q, torch.float32, CPU, 2, False)
        case.candidates = {"before": case.candidates["ours"], "after": after(case.candidates["ours"])}
        for _ in range(10):  # until the machine is calm: half of the slow-down looked for
            rows = run_case(case, "ops", FastestOfTwenty(CPU, flush=False), 1.0, repeats=25, seconds=5.0, gate="green")
            if all(row.ms_high < 1.1 * row.ms_low for row in rows):
                break
        for row in rows:
            assert row.status == "ok" and row.case.startswith(name)
            append(tmp_path / f"{row.provider}.csv", [stamp(replace(row, provider="ours"), CPU)])
    changes = compare(read(tmp_path / "before.csv"), read(tmp_path / "after.csv"))
    found = {change.after.case.split()[0]: (change.slower, round(change.ratio, 3)) for change in changes}
    assert found[op][0] and not found["outer"][0], found
    assert main([str(tmp_path / "before.csv"), str(tmp_path / "after.csv")]) == 1


def test_equal_runs_are_flagged(tmp_path):
    append(tmp_path / "a.csv", timed_rows(5.0))
    append(tmp_path / "b.csv", timed_rows(5.0))
    assert main([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 0


def test_scatter_is_flagged_as_slow_down():
    noisy = row(ms=1.3, ms_low=0.9, ms_high=1.8)
    assert not compare([row()], [noisy])[0].slower


@pytest.mark.parametrize(
    "other,message",
    [({"device": "another card"}, "another card"), ({"gate": "red"}, "red"), ({"gate": "not run"}, "not run")],
)
def test_other_device_or_red_gate_is_compared(other, message):
    with pytest.raises(NotComparable, match=message):
        compare([row()], [row(**other)])
    with pytest.raises(NotComparable, match=message):
        compare([row(**other)], [row()])


def test_tables_without_common_case_compare_as_equal(tmp_path):
    append(tmp_path / "a.csv", [row()])
    append(tmp_path / "b.csv", [row(case="something else")])
    assert main([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 2
    with pytest.raises(NotComparable):
        compare([row(status="out of memory")], [row()])


def test_last_row_of_a_case_does_not_count():
    assert compare([row(ms=9.0), row()], [row()])[0].ratio == 1.0


def test_variants_of_ours_are_left_out():
    variant = row(provider="ours, merged")
    assert len(compare([row(), variant], [row(), variant])) == 2
    assert len(compare([row(), row(provider="bmm")], [row(), row(provider="bmm")])) == 1


def test_order_of_candidates_decides_their_times():
    calls = []
    interleave({name: lambda _, name=name: calls.append(name) for name in "abc"}, Clock(CPU, flush=False), 50, warmup=0)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 150, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds) and len(set(rounds)) > 1
