"""The comparison of two benchmark tables: a slow-down is flagged, and what must not be compared is refused.

The tests count declared work instead of seconds, so that nothing else on the machine decides them; a slow one measures.
"""

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


class WorkClock(Clock):
    """Stands still but for the work that is declared to it."""

    seconds = 0.0

    def __init__(self):
        super().__init__(CPU, flush=False)

    def now(self):
        return self.seconds

    def spend(self, milliseconds):
        self.seconds += 1e-3 * milliseconds


class ProcessorClock(WorkClock):
    """The processor time of this thread: of twenty calls the fastest, for other work slows single ones."""

    def now(self):
        return time.thread_time()

    def spend(self, milliseconds):
        end = self.now() + 1e-3 * milliseconds
        while self.now() < end:
            pass

    def time(self, call, number):
        return min(super(ProcessorClock, self).time(call, number) for _ in range(20))


def row(**changes) -> Row:
    made = Row("ops", "backward", "ours", gate="green", ms=1.0, ms_low=0.95, ms_high=1.05, repeats=9, device="one card")
    return replace(made, **changes)


def timed_rows(milliseconds: float) -> list[Row]:
    x, clock = torch.ones(4), WorkClock()

    def ours(inputs):
        clock.spend(milliseconds)
        return (x,)

    case = OpCase("backward", 16, {"ours": ours}, [type("Inputs", (), {})()], (x.double(),), 1e-6)
    return [stamp(r, CPU) for r in run_case(case, "ops", clock, 1.0, repeats=25, seconds=5.0, gate="green")]


def test_injected_slow_down_of_20_percent_is_flagged(tmp_path):
    append(tmp_path / "before.csv", timed_rows(5.0))
    append(tmp_path / "after.csv", timed_rows(6.0))
    changes = compare(read(tmp_path / "before.csv"), read(tmp_path / "after.csv"))
    assert [(change.slower, change.ratio) for change in changes] == [(True, pytest.approx(1.2))]
    assert main([str(tmp_path / "before.csv"), str(tmp_path / "after.csv")]) == 1


class Dispatcher:
    """A ``dispatch.choose`` under which one operation works a share longer while ``slow`` is set.

    It stays in place for both sides of a comparison, so that what it costs itself is in both.
    """

    def __init__(self, op: str, share: float, clock: WorkClock, least: float):
        self.op, self.share, self.clock, self.least = op, share, clock, least
        self.slow, self._choose = False, dispatch.choose

    def __call__(self, name: str, device_type: str):
        implementation, backend = self._choose(name, device_type)

        def run(*args):
            started = self.clock.now()
            result = implementation(*args)
            self.clock.spend(self.least)
            taken = 1e3 * (self.clock.now() - started)
            self.clock.spend(self.share * taken if self.slow and name == self.op else 0.0)
            return result

        return run, backend

    def slowing(self, candidate):
        def call(inputs):
            self.slow = True
            result = candidate(inputs)
            self.slow = False
            return result

        return call


def compared(tmp_path, monkeypatch, op, make, clock, least, calm):
    """What the comparison says of an operation that works a fifth longer, and of another one beside it; the exit
    status.
    """
    dispatcher = Dispatcher(op, 0.2, clock, least)
    monkeypatch.setattr(dispatch, "choose", dispatcher)
    q = layer_of("roberta-base q", 4, 64, 8, torch.float32)
    for name, maker in ((op, make), ("outer", outer_case)):
        case = maker("roberta-base q", q, torch.float32, CPU, 2, False)
        ours = case.candidates["ours"]
        case.candidates = {"before": ours, "after": dispatcher.slowing(ours)}
        for _ in range(10):
            rows = run_case(case, "ops", clock, 1.0, repeats=25, seconds=5.0, gate="green")
            if all(row.ms_high < calm * row.ms_low for row in rows):
                break
        for row in rows:
            assert row.status == "ok" and row.case.startswith(name)
            append(tmp_path / f"{row.provider}.csv", [stamp(replace(row, provider="ours"), CPU)])
    changes = compare(read(tmp_path / "before.csv"), read(tmp_path / "after.csv"))
    found = {change.after.case.split()[0]: change for change in changes}
    return found[op], found["outer"], main([str(tmp_path / "before.csv"), str(tmp_path / "after.csv")])


OPERATIONS = pytest.mark.parametrize("op,make", [("backward", backward_case), ("expand_", expand_case)])


@OPERATIONS
def test_operation_that_works_a_fifth_longer_is_flagged_and_the_one_beside_it_is_not(tmp_path, monkeypatch, op, make):
    slowed, other, status = compared(tmp_path, monkeypatch, op, make, WorkClock(), 1.0, 1.1)
    assert slowed.slower and slowed.ratio == pytest.approx(1.2)
    assert not other.slower and other.ratio == pytest.approx(1.0)
    assert status == 1


@pytest.mark.slow
@OPERATIONS
def test_operation_that_takes_a_fifth_longer_on_this_processor_is_flagged(tmp_path, monkeypatch, op, make):
    """Measured again until the machine is calm, which is half of what is looked for."""
    slowed, other, _ = compared(tmp_path, monkeypatch, op, make, ProcessorClock(), 0.0, 1.1)
    assert slowed.slower and not other.slower, (slowed.ratio, other.ratio)


@pytest.mark.parametrize("provider", ["ours", "addmm_"])
def test_case_run_again_is_judged_on_its_drawn_inputs(provider):
    """Both work in place: on their own output the second result would be another one."""
    q = layer_of("roberta-base q", 2, 8, 4, torch.float32)
    case = expand_case("roberta-base q", q, torch.float32, CPU, 2, False)
    candidate, clock = case.candidates[provider], WorkClock()

    def counted(inputs):
        clock.spend(1.0)
        return candidate(inputs)

    case.candidates = {provider: counted}
    drawn = [inputs.y.clone() for inputs in case.inputs]
    first, again = (run_case(case, "ops", clock, 1.0, repeats=5, seconds=1.0)[0] for _ in range(2))
    assert first.status == again.status == "ok" and first.error == again.error
    assert all(torch.equal(inputs.y, y) for inputs, y in zip(case.inputs, drawn, strict=True))


def test_equal_runs_are_not_flagged(tmp_path):
    append(tmp_path / "a.csv", timed_rows(5.0))
    append(tmp_path / "b.csv", timed_rows(5.0))
    assert main([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 0


def test_scatter_is_not_flagged():
    noisy = row(ms=1.3, ms_low=0.9, ms_high=1.8)
    assert not compare([row()], [noisy])[0].slower


@pytest.mark.parametrize(
    "other,message",
    [({"device": "another card"}, "another card"), ({"gate": "red"}, "red"), ({"gate": "not run"}, "not run")],
)
def test_another_device_or_a_red_gate_is_refused(other, message):
    with pytest.raises(NotComparable, match=message):
        compare([row()], [row(**other)])
    with pytest.raises(NotComparable, match=message):
        compare([row(**other)], [row()])


def test_tables_without_a_common_case_are_refused(tmp_path):
    append(tmp_path / "a.csv", [row()])
    append(tmp_path / "b.csv", [row(case="something else")])
    assert main([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 2
    with pytest.raises(NotComparable):
        compare([row(status="out of memory")], [row()])


def test_last_row_of_a_case_counts():
    assert compare([row(ms=9.0), row()], [row()])[0].ratio == 1.0


def test_variants_of_ours_are_compared_and_rivals_are_not():
    variant = row(provider="ours, merged")
    assert len(compare([row(), variant], [row(), variant])) == 2
    assert len(compare([row(), row(provider="bmm")], [row(), row(provider="bmm")])) == 1


def test_candidates_take_turns_in_a_fresh_order_each_round():
    calls = []
    interleave({name: lambda _, name=name: calls.append(name) for name in "abc"}, WorkClock(), 50, warmup=0)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 150, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds) and len(set(rounds)) > 1


@pytest.mark.parametrize("seconds,rounds", [(0.0, 1), (6.0, 4), (100.0, 9)])
def test_rounds_end_with_the_seconds_of_a_case_and_there_is_at_least_one(seconds, rounds):
    clock = WorkClock()
    timings = interleave({name: lambda _: clock.spend(1000.0) for name in "ab"}, clock, 9, seconds, warmup=0)
    assert {name: timing.samples for name, timing in timings.items()} == {name: [1000.0] * rounds for name in "ab"}
