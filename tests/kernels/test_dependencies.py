"""The operations need torch, numpy and (for GPUs) triton: nothing else that the package depends on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEP = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Refuse())
import torch
import ffalora_kernels as ffk
from ffalora_kernels import Segments, traffic
{triton}
segments, n, r = Segments.from_lengths([3, 2]), 8, 2
dy, h, b, arena = torch.randn(5, n), torch.randn(5, r), torch.zeros(1, n, r), torch.zeros(2, n * r)
squares, total = torch.zeros(2, 1).double(), torch.zeros(1, n * r).double()
y = ffk.adapted_product(torch.randn(5, 4), torch.randn(n, 4), None, h, b, segments, 1.0)
ffk.backward(dy, h, b, segments, 1.0, arena, 0, squares)
one, whole = torch.ones(1).double(), torch.zeros(1).long()
ffk.clip_reduce_(total, arena, segments.client, one[None], torch.tensor([0, n * r]).int(), squares)
state = torch.zeros(1, n * r)
ffk.privatize_step_(state, total, client_id=whole, step=whole, noise_std=one, denominator=one, lr=one, key=1)
assert state.isfinite().all() and state.any()
print(sorted({blocked!r} & {{name.partition(".")[0] for name in sys.modules}}))
"""


def _dependencies() -> set[str]:
    """Import names of everything that the metadata asks for but torch and numpy."""
    listed = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    assert listed is not None
    names = {name.replace("-", "_") for name in re.findall(r'"([\w-]+)', listed[1])}
    return {{"pillow": "PIL", "scikit_learn": "sklearn", "pyyaml": "yaml"}.get(n, n) for n in names} - {
        "torch",
        "numpy",
    }


@pytest.mark.long
@pytest.mark.parametrize("triton", ["", "import ffalora_kernels.triton"], ids=["cpu", "triton"])
def test_a_private_step_needs_no_other_dependency(triton: str) -> None:
    code = STEP.format(blocked=_dependencies(), triton=triton)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
