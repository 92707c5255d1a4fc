"""Runs cases under Triton's interpreter and prints ``{case: message or null}``. The mode is set at import."""

import json
import os
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton  # noqa: F401
from cases import CASES, TRITON_CASES
from emulator import TOOLS

sys.path.insert(0, str(TOOLS))
import interp_fix  # noqa: F401


def main(names: list[str]) -> None:
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    outcome: dict[str, str | None] = {}
    for name in names:
        try:
            (CASES | TRITON_CASES)[name]("triton")
            outcome[name] = None
        except Exception:
            outcome[name] = traceback.format_exc()
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1:] or [*CASES, *TRITON_CASES])
