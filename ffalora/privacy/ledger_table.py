"""The ledger of a data set for people: who spent what, and what is left."""

from __future__ import annotations

from ..files.numbers import rounded_up
from .accountants import epsilon_of
from .data_ledger import DataLedger


def format_ledger(ledger: DataLedger) -> str:
    """One line for each client of each run, then a bound on what was spent on any one record, against the budget."""
    if not ledger.entries:
        return f"ledger {ledger.name}: no run yet\n{_budget(ledger)}"
    width = max(6, *(len(e.who) for e in ledger.entries))
    lines = [
        f"ledger {ledger.name}, {ledger.folder}",
        f"begun (UTC)          {'client':<{width}}  noise           σ  sample rate    steps taken / allowed       ε"
        "          δ  run",
    ]
    for e in ledger.entries:
        if e.noise == "secure":
            spent = f"{rounded_up(epsilon_of([e.steps], e.delta)):.4g}"
        else:
            spent = "-"  # a simulation: never charged
        steps = f"{e.steps.steps if e.noise == 'secure' else '-'} / {e.max_steps}"
        if e.steps.trials > 1:
            steps = f"{e.steps.steps} best of {e.steps.trials:g}"
        lines.append(
            f"{e.when}  {e.who:<{width}}  {e.noise:<6}  {e.steps.noise_multiplier:>9.4f}  {e.steps.sample_rate:>11.5f}"
            f"    {steps:>21}  {spent:>6}  {e.delta:>9.1e}  {e.run}"
        )
    return "\n".join([*lines, "", _total(ledger), _budget(ledger)])


def total_spent(ledger: DataLedger) -> tuple[float, float] | None:
    """ε, rounded up, and δ of what was spent on any one record, at most; None where nothing was charged."""
    deltas = [e.delta for e in ledger.entries if e.noise == "secure"]
    if not deltas:
        return None
    delta = ledger.budget[1] if ledger.budget else min(deltas)
    return rounded_up(max((epsilon_of(each, delta) for each in ledger.spent()), default=0.0)), delta


def _total(ledger: DataLedger) -> str:
    spent = total_spent(ledger)
    if spent is None:
        return "Nothing was charged: every run was a simulation."
    return f"Spent on any one record, by all rows that it was part of: ε = {spent[0]:.4g} at most, at δ = {spent[1]:g}."


def _budget(ledger: DataLedger) -> str:
    if ledger.budget is None:
        return "No budget is set: --target-epsilon and --delta set one, and refuse what would exceed it."
    return f"Budget: ε = {ledger.budget[0]:g} at δ = {ledger.budget[1]:g}."
