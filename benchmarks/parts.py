"""What a multiprocessor of each part holds, as its vendor says, and how many programs of a launch fit on it."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
#: NVIDIA: shared memory that the system keeps for itself, for each program.
RESERVED_SHARED = 1 * KIB


@dataclass(frozen=True)
class Part:
    """One multiprocessor (NVIDIA) or compute unit (AMD).

    Attributes:
        shared: bytes of shared memory (LDS).
        shared_limit: bytes of it that one program may use.
        warps: warps (waves) at once.
        programs: programs at once.
        registers: 32-bit registers of NVIDIA parts, in all; of AMD parts, for a lane of each of the four SIMDs.
        granule: registers are given out in multiples of this many: to a warp (NVIDIA), to a lane (AMD).
    """

    shared: int
    shared_limit: int
    warps: int
    programs: int
    registers: int = 65536
    granule: int = 256


PARTS = {
    "sm_80": Part(164 * KIB, 163 * KIB, 64, 32),
    "sm_86": Part(100 * KIB, 99 * KIB, 48, 16),
    "sm_89": Part(100 * KIB, 99 * KIB, 48, 24),
    "sm_90": Part(228 * KIB, 227 * KIB, 64, 32),
    "sm_100": Part(228 * KIB, 227 * KIB, 64, 32),
    "sm_103": Part(228 * KIB, 227 * KIB, 64, 32),
    "sm_120": Part(100 * KIB, 99 * KIB, 48, 24),
    "gfx942": Part(64 * KIB, 64 * KIB, 32, 32, registers=512, granule=8),
    "gfx950": Part(160 * KIB, 160 * KIB, 32, 32, registers=512, granule=8),
}


def resident(arch: str, registers: int, shared: int, num_warps: int) -> int:
    """Programs of a launch that are on a multiprocessor at once.

    Args:
        arch: a key of ``PARTS``.
        registers: of a thread (AMD: vector registers of a lane, accumulation registers among them).
        shared: bytes of shared memory of a program.
        num_warps: of a program.
    """
    part = PARTS[arch]
    if arch.startswith("gfx"):
        of_a_lane = -(-max(registers, 1) // part.granule) * part.granule
        waves = min(part.warps, 4 * min(part.warps // 4, part.registers // of_a_lane))
        by_shared = part.shared // shared if shared else part.programs
        return min(part.programs, waves // num_warps, by_shared)
    of_a_warp = -(-max(registers, 1) * 32 // part.granule) * part.granule
    by_registers = part.registers // (of_a_warp * num_warps)
    return min(part.programs, part.warps // num_warps, by_registers, part.shared // (shared + RESERVED_SHARED))
