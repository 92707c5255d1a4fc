"""Makes the packages of a plain checkout importable where they are not installed: import this before them."""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for _package, _folder in (("ffalora_kernels", ROOT / "kernels"), ("ffalora", ROOT)):
    if find_spec(_package) is None:
        sys.path.append(str(_folder))
