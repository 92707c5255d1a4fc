"""Adapters need torch, numpy and (on a GPU) triton; every other package is imported where it is used."""

import json
import subprocess
import sys

import pytest

#: torch's own requirements, as its metadata names them, and ours.
ALLOWED = (
    "torch", "torchgen", "functorch", "numpy", "triton", "ffalora", "ffalora_kernels",
    "filelock", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec",
)  # fmt: skip

BLOCK = f"""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {ALLOWED!r} and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{{name}} is not here", name=name)

sys.meta_path.insert(0, Refuse())
"""

SETTINGS = """
from dataclasses import dataclass, field

@dataclass(frozen=True)
class AdapterSettings:
    method: str = "lora"
    rank: int = 2
    alpha: float = 4.0
    target_modules: object = ("0", "2")
    exclude_modules: object = None
    layers_to_transform: object = None
    layers_pattern: object = None
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict = field(default_factory=dict)
    use_rslora: bool = False
    dropout: float = 0.0
    init: str = "kaiming"
    trained: str = "b"
    head: str = "frozen"
    seed: int = 3
"""

STEP = """
import json
import torch
from ffalora.adapters import TrainingPass, attach

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
x = torch.randn(5, 4, 6)
adapters = attach(model, AdapterSettings(method=METHOD))
generator = torch.Generator().manual_seed(1)
adapters.load_state_(torch.randn(adapters.layout.width, generator=generator))
if METHOD == "lora":
    adapters.train_factors("both")
row, layout = adapters.state(), adapters.layout
arena = torch.full((5, layout.width), float("nan"))
squares = torch.full((5, layout.slots), float("nan"), dtype=torch.float64)
current = TrainingPass(row[None], arena, squares, torch.zeros(5).int(), torch.arange(6).int(), 5)
with adapters.training_pass(current):
    model(x).square().sum().backward()
parameters = [layout.parameter(place) for place in layout.places]
for i in range(5):
    alone = torch.autograd.grad(model(x[i : i + 1]).square().sum(), parameters)
    for place, gradient in zip(layout.places, alone, strict=True):
        written = arena[i, place.start : place.start + place.size].view(place.shape)
        torch.testing.assert_close(written, gradient, rtol=1e-4, atol=1e-5)
        assert gradient.abs().sum() > 0
state = layout.payload(row).tolist() if METHOD == "lora" else []
before = model(x)
adapters.merge()
torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
print(json.dumps({"numbers": layout.size, "trained": adapters.memory().trained, "state": state}))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_blocked_packages_fails_here():
    absent = ("pydantic", "transformers", "peft", "opacus", "datasets", "safetensors")
    lines = "".join(f"\ntry:\n    import {name}\nexcept ImportError:\n    gone.append({name!r})" for name in absent)
    assert run(f"{BLOCK}\ngone = []{lines}\nimport json\nprint(json.dumps(gone))") == list(absent)


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "vera"])
def test_segment_gradients_reach_the_arena_with_torch_alone(method):
    alone = run(BLOCK + SETTINGS + STEP.replace("METHOD", repr(method)))
    assert alone["trained"] == 4 * alone["numbers"] > 0


@pytest.mark.long
def test_settings_of_one_s_own_make_the_adapters_that_the_configuration_makes():
    alone = run(BLOCK + SETTINGS + STEP.replace("METHOD", '"lora"'))
    ours = "from ffalora.adapters import AdapterConfig\ndef AdapterSettings(method):\n    return AdapterConfig("
    ours += 'method=method, rank=2, alpha=4.0, target_modules=["0", "2"], seed=3)\n'
    assert run(ours + STEP.replace("METHOD", '"lora"')) == alone


def test_the_settings_have_the_configuration_s_attributes():
    from ffalora.adapters import AdapterConfig

    scope = {"__name__": __name__}
    exec(SETTINGS, scope)
    assert list(scope["AdapterSettings"].__dataclass_fields__) == list(AdapterConfig.model_fields)
