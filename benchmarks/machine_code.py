"""One launch compiled for one part by the Triton that is imported: registers, spills, shared memory, instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import triton
from emulator.driver import target_of
from launches import Launch
from parts import PARTS
from triton.compiler import ASTSource

MEASURED = (
    "registers", "spill_bytes", "shared_bytes", "mma", "wgmma", "tcgen05",
    "load_16", "load", "store_16", "store", "atomics",
)  # fmt: skip
_OPCODE = re.compile(r"^\s+(?:/\*[0-9a-f]+\*/)?\s*(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)", re.M)
_SASS = {
    "mma": r"HMMA", "wgmma": r"HGMMA", "tcgen05": r"UTC\w*MMA", "load_16": r"(LDG|LDGSTS)\..*(128|ENL2)",
    "load": r"(LDG|LDGSTS)(\.|$)", "store_16": r"STG\..*(128|ENL2)", "store": r"STG(\.|$)",
    "atomics": r"RED(G|\.)|ATOMG",
}  # fmt: skip
_GCN = {
    "mma": r"v_mfma", "load_16": r"(global|buffer)_load_dwordx4", "load": r"(global|buffer)_load",
    "store_16": r"(global|buffer)_store_dwordx4", "store": r"(global|buffer)_store",
    "atomics": r"(global|buffer)_atomic",
}  # fmt: skip
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def known_parts() -> tuple[str, ...]:
    """The parts that this Triton's own assembler (NVIDIA) knows; those of AMD are known to every claimed version."""
    known = {name for tool in ("ptxas", "ptxas-blackwell") for name in _assembles(tool)}
    return tuple(arch for arch in PARTS if arch.startswith("gfx") or arch in known)


def measure(launch: Launch) -> dict:
    """Compiles a launch for its part; the columns ``MEASURED``, those of instructions empty where none can be read."""
    amd, target = launch.arch.startswith("gfx"), target_of(launch.arch)
    source = ASTSource(launch.fn, launch.types, launch.constants, launch.attributes)
    compiled = triton.compile(source, target=target, options=launch.options)
    found = _measure_amd(compiled.asm["amdgcn"]) if amd else _measure_nvidia(compiled.asm, launch.arch)
    return {"shared_bytes": compiled.metadata.shared} | found


@cache
def _assembles(tool: str) -> frozenset[str]:
    if not (_TOOLS / tool).exists():
        return frozenset()
    return frozenset(re.findall(r"\bsm_\d+", _run(tool, "--help")))


def _measure_nvidia(asm: dict, arch: str) -> dict:
    own = int(arch.removeprefix("sm_"))
    tool = "ptxas-blackwell" if own >= 100 and _assembles("ptxas-blackwell") else "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "k.ptx"), Path(folder, "k.cubin")
        ptx.write_text(asm["ptx"])
        cubin.write_bytes(asm["cubin"])
        part = arch + ("a" if own >= 90 else "")
        log = _run(tool, "-v", f"--gpu-name={part}", str(ptx), "-o", str(Path(folder, "again.cubin")))
        sass = _disassembly(cubin)
    opcodes = _OPCODE.findall(sass)
    counts = {
        name: sum(bool(re.match(pattern, op)) for op in opcodes) if opcodes else "" for name, pattern in _SASS.items()
    }
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
    return {"registers": int(re.search(r"Used (\d+) registers", log)[1]), "spill_bytes": spills, **counts}


def _disassembly(cubin: Path) -> str:
    """Instructions; none where a version assembles for a part that it cannot disassemble (Triton 3.6 and sm_103)."""
    try:
        return _run("nvdisasm", "-c", str(cubin))
    except subprocess.CalledProcessError:
        return ""


def _measure_amd(text: str) -> dict:
    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    counts = {name: len(re.findall(rf"^\s+{pattern}", text, re.M)) for name, pattern in _GCN.items()}
    spills = 4 * (number("vgpr_spill_count") + number("sgpr_spill_count"))
    return {"registers": number("vgpr_count"), "spill_bytes": spills, "wgmma": 0, "tcgen05": 0, **counts}


def _run(name: str, *arguments: str) -> str:
    run = subprocess.run([str(_TOOLS / name), *arguments], capture_output=True, text=True, check=True)
    return run.stdout + run.stderr
