"""Every way to take a training step that the benchmarks compare, by name."""

from __future__ import annotations

from opacus_steps import opacus
from opake_steps import opake
from own_steps import ours
from peft_steps import RecordedFloor, floor, peft
from provider import Factory, Provider

STEPS: dict[str, Factory] = {
    "floor": floor,
    "floor, recorded": lambda work: Provider(RecordedFloor(work).step),
    "peft": peft,
    "peft, a frozen": lambda work: peft(work, "b"),
    "opacus hooks": lambda work: opacus(work, "hooks", "both"),
    "opacus hooks, a frozen": lambda work: opacus(work, "hooks", "b"),
    "opacus functorch, a frozen": lambda work: opacus(work, "functorch", "b"),
    "opacus ghost, a frozen": lambda work: opacus(work, "ghost", "b"),
    "opake": opake,
    "opake, a frozen": lambda work: opake(work, "b"),
    "ours": ours,
    "ours, merged": lambda work: ours(work, merged=True),
    "ours, a and b trained": lambda work: ours(work, trained="both"),
    "ours, without graphs": lambda work: ours(work, graphs=False),
    "ours, not private": lambda work: ours(work, private=False),
}
