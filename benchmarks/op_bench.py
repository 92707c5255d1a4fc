"""Checks and times the cases of ``op_peers``: results first, then everybody in turn."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from harness import Clock, interleave, relative_error, survived, verdict
from op_peers import Candidate, Inputs, OpCase
from record import OK, Row


def run_case(
    case: OpCase, section: str, clock: Clock, copy_gb_per_s: float, repeats: int, seconds: float, gate: str = "not run"
) -> list[Row]:
    """One row a provider; a provider with a wrong result gets an error and no time.

    Calls work on copies: the inputs of the case stay as they were drawn, and it may be run again.
    """
    rows = {}
    for name, candidate in case.candidates.items():
        row = Row(section, case.name, name, gate=gate, bytes=case.bytes, config={"flops": case.flops})
        status, error = check(case, candidate)
        rows[name] = replace(row, status=status, error=error)
    inputs = [_clone(drawn) for drawn in case.inputs]
    sound = {name: _call(case.candidates[name], inputs) for name, row in rows.items() if row.status == OK}
    for name, timing in interleave(sound, clock, repeats, seconds).items():
        speed = case.bytes / timing.median / 1e6 if timing.samples else math.nan
        rows[name] = replace(
            rows[name],
            **timing.columns(),
            gb_per_s=speed,
            copy_share=speed / copy_gb_per_s,
        )
    return list(rows.values())


def check(case: OpCase, candidate: Candidate) -> tuple[str, float]:
    """Status and largest relative error of a candidate's results, on a copy of the first inputs.

    An empty result stands for one that the candidate does not form (ghost norms have no gradients).
    """
    outcome = _Outcome()
    with survived(outcome):
        found = candidate(_clone(case.inputs[0]))
        pairs = zip(found, case.expected, strict=True)
        errors = [relative_error(f, e) for f, e in pairs if f.numel() or not e.numel()]
        error = math.nan if any(math.isnan(e) for e in errors) else max(errors)
        return verdict(error, case.tolerance), error
    return outcome.status, math.nan


class _Outcome:
    def __init__(self) -> None:
        self.status, self.samples = OK, []


def _call(candidate: Candidate, inputs: list[Inputs]):
    return lambda number: candidate(inputs[number % len(inputs)])


def _clone(inputs: Inputs) -> Inputs:
    made = copy.copy(inputs)
    for name, value in vars(inputs).items():
        if isinstance(value, torch.Tensor):
            setattr(made, name, value.clone())
    return made
