"""The operations as a repository of the hub's kernels: what `kernels.get_kernel` loads without installing anything.

    python release/hub_kernels.py FOLDER

Writes FOLDER/build/torch-cuda (Triton kernels) and FOLDER/build/torch-cpu (their plain-torch definition), the two
variants that need no compiler, and a card. The C++ kernels are no part of it: they come with the package's wheel.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "kernels" / "ffalora_kernels"
BACKENDS = ("cuda", "cpu")
#: The version of the interface: counted up when a call that worked does not work any more.
INTERFACE = 1
_NAMESPACE = 'NAMESPACE = "ffalora"'
_CARD = """---
library_name: kernels
license: apache-2.0
tags: [kernels, lora, differential-privacy]
---
# ffalora kernels

Adapter forward and backward with per-segment gradients, clipping, noise and optimiser step, for private fine-tuning
with FFA-LoRA. CUDA tensors are served by Triton kernels, CPU tensors by their plain-torch definition.

```python
import torch
from kernels import get_kernel

ffk = get_kernel("OWNER/ffalora-kernels", version=1)
y, h, b = torch.zeros(5, 7), torch.randn(5, 3), torch.randn(1, 7, 3)
ffk.expand_(y, h, b, ffk.Segments.from_lengths([2, 3]), 2.0)
```

Noise of these kernels comes from a key that the caller gives, and is for simulations; secure noise is in the package
`ffalora`, with everything that makes a private run of these operations.
"""


def write_repository(folder: Path) -> list[Path]:
    """Writes both variants and the card; returns the variants' folders.

    Raises:
        FileExistsError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} holds something already; give the name of a new folder")
    variants = [_write_variant(folder / "build" / f"torch-{backend}", backend) for backend in BACKENDS]
    (folder / "README.md").write_text(_CARD, encoding="utf-8")
    return variants


def _write_variant(place: Path, backend: str) -> Path:
    """One variant: the package's Python files, under a namespace of their own, and what the loader asks for."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "*.pyi", "py.typed")
    shutil.copytree(SOURCE, place, ignore=unwanted)
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(place.rglob("*.py")))).hexdigest()[:7]
    identity = f"_ffalora_kernels_{backend}_{digest}"
    registration = place / "registration.py"
    text = registration.read_text(encoding="utf-8")
    if text.count(_NAMESPACE) != 1:
        raise RuntimeError(f"{registration} does not say {_NAMESPACE} once; say here how it names its operations")
    registration.write_text(text.replace(_NAMESPACE, f'NAMESPACE = "{identity}"'), encoding="utf-8")
    described = {
        "id": identity, "name": "ffalora-kernels", "version": INTERFACE, "license": "Apache-2.0", "python-depends": [],
        "backend": {"type": backend},
    }  # fmt: skip
    (place / "metadata.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return place


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"{__doc__}")
    print("\n".join(map(str, write_repository(Path(sys.argv[1])))))
