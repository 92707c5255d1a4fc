"""How much of the code one private round runs through: functions, classes and files, counted while a tiny run trains.

``python benchmarks/trace_round.py`` prints the three counts for the round itself (drawing the cohort, local training,
aggregation; no loading, no evaluation of the finished run) and for the whole run; ``--list`` names every function.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "federated"))
OWN = (f"{ROOT}/ffalora/", f"{ROOT}/kernels/ffalora_kernels/")


class Trace:
    """Collects every function of the package that is entered, and apart those below a function of a given name."""

    def __init__(self, below: str):
        self.below, self.depth = below, 0
        self.everywhere: set[CodeType] = set()
        self.inside: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(OWN):
            return
        if code.co_name == self.below:
            self.depth += {"call": 1, "return": -1}.get(event, 0)
        if event == "call" and not code.co_name.startswith("<"):
            self.everywhere.add(code)
            if self.depth or code.co_name == self.below:
                self.inside.add(code)


def counts(codes: set[CodeType]) -> dict[str, int]:
    """Functions, classes whose methods ran, and files."""
    classes = {(c.co_filename, c.co_qualname.rpartition(".")[0]) for c in codes if "." in c.co_qualname}
    return {
        "functions": len(codes),
        "files": len({c.co_filename for c in codes}),
        "classes": len({one for one in classes if "<locals>" not in one[1]}),
    }


def traced(run: Callable[[], Any], below: str) -> Trace:
    """The trace of ``run``; the profiler of the interpreter is put back afterwards."""
    trace = Trace(below)
    before = sys.getprofile()
    sys.setprofile(trace)
    try:
        run()
    finally:
        sys.setprofile(before)
    return trace


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--below", default="run_round", help="the function that is one round")
    parser.add_argument("--list", action="store_true", help="name every function of the round")
    arguments = parser.parse_args()
    from small_runs import PRIVATE, save_model, save_texts, small_config

    try:
        from ffalora import simulate
    except ImportError:
        from ffalora.federated.simulate import simulate
    with tempfile.TemporaryDirectory() as folder:
        model, data = save_model(Path(folder) / "model"), save_texts(Path(folder) / "texts.csv")
        config = small_config(model, data, federation__rounds=1, **PRIVATE)
        trace = traced(lambda: simulate(config, Path(folder) / "run", progress=False), arguments.below)
    for what, codes in (("one round", trace.inside), ("the whole run", trace.everywhere)):
        print(what, *(f"{name} {count}" for name, count in counts(codes).items()), sep="  ")
    if arguments.list:
        for code in sorted(trace.inside, key=lambda c: (c.co_filename, c.co_firstlineno)):
            print(f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_firstlineno} {code.co_qualname}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
