"""Frozen launch configurations by architecture, element size and padded rank. Nothing is tuned at run time.

Block sizes depend on shapes of the layer only, never on the batch: a sample's gradient then has the same bits whatever
shares its batch. ``benchmarks/tune.py`` measures the candidates on a GPU and prints a table to paste here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .launch import padded_rank


@dataclass(frozen=True)
class Config:
    """Tokens and out-features of a tile, warps and pipeline stages."""

    block_t: int
    block_n: int
    num_warps: int
    num_stages: int


#: The largest rank that the kernels are compiled for.
MAX_RANK = 256
#: Programs that fill a part (multiprocessors times two); with fewer, long segments are split over programs.
FULL_GRID = {"sm_80": 216, "sm_86": 168, "sm_89": 284, "sm_90": 264, "sm_100": 296, "sm_103": 296, "sm_120": 340,
             "gfx942": 608, "gfx950": 512}  # fmt: skip

# (family, bytes of an element) -> padded rank -> configuration, for parts with over 160 KiB of shared memory a block …
_LARGE = {
    ("backward", 2): {
        16: Config(32, 256, 4, 4), 32: Config(64, 256, 8, 2), 64: Config(64, 128, 8, 3),
        128: Config(64, 128, 8, 3), 256: Config(64, 64, 8, 2),
    },
    ("backward", 4): {
        16: Config(32, 128, 8, 2), 32: Config(32, 64, 8, 2), 64: Config(32, 64, 8, 2),
        128: Config(32, 32, 8, 2), 256: Config(16, 32, 8, 2),
    },
    ("expand", 2): {
        16: Config(64, 128, 8, 2), 32: Config(64, 128, 8, 2), 64: Config(64, 128, 8, 2),
        128: Config(64, 64, 8, 2), 256: Config(64, 64, 8, 2),
    },
    ("expand", 4): {
        16: Config(32, 128, 8, 2), 32: Config(32, 128, 8, 2), 64: Config(32, 64, 8, 2),
        128: Config(32, 32, 8, 2), 256: Config(16, 32, 8, 2),
    },
    ("project", 2): dict.fromkeys((16, 32, 64), Config(64, 64, 8, 3))
    | {128: Config(128, 64, 8, 3), 256: Config(64, 64, 8, 2)},
    ("project", 4): dict.fromkeys((16, 32, 64, 128, 256), Config(16, 32, 8, 2)),
}  # fmt: skip
# … and for the others (64 KiB is enough).
_SMALL = _LARGE | {
    ("backward", 2): {
        16: Config(32, 128, 4, 2), 32: Config(32, 128, 8, 2), 64: Config(32, 64, 8, 2),
        128: Config(32, 64, 4, 2), 256: Config(32, 32, 8, 2),
    },
    ("backward", 4): {
        16: Config(32, 128, 8, 2), 32: Config(32, 64, 8, 2), 64: Config(16, 64, 8, 2),
        128: Config(16, 32, 8, 2), 256: Config(16, 16, 8, 1),
    },
    ("project", 2): dict.fromkeys((16, 32, 64, 128), Config(64, 64, 8, 2)) | {256: Config(32, 32, 8, 2)},
}  # fmt: skip
_SM_80 = _LARGE | {
    ("backward", 2): _LARGE[("backward", 2)]
    | {16: Config(32, 256, 4, 3), 32: Config(32, 256, 8, 3), 64: Config(64, 64, 4, 3)},
}  # fmt: skip
#: Measured on an H100 (benchmarks/data/tune.csv).
_SM_90 = _LARGE | {("backward", 2): _LARGE[("backward", 2)] | {8: Config(128, 128, 8, 2)}}
_SM_100 = _LARGE | {("backward", 2): _LARGE[("backward", 2)] | {16: Config(32, 256, 4, 3)}}
# Waves of AMD parts are twice as wide: four of them where others take eight warps.
_AMD = _SMALL | {
    ("backward", 2): _SMALL[("backward", 2)] | {32: Config(32, 128, 4, 2), 64: Config(32, 64, 4, 2)},
    ("backward", 4): _SMALL[("backward", 4)] | {64: Config(16, 64, 4, 2)},
    ("expand", 4): _SMALL[("expand", 4)]
    | {16: Config(32, 128, 4, 2), 32: Config(32, 128, 4, 2), 64: Config(16, 64, 4, 2)},
}  # fmt: skip
_TABLES = {
    "sm_80": _SM_80, "sm_90": _SM_90, "sm_100": _SM_100, "sm_103": _SM_100, "gfx942": _AMD, "gfx950": _AMD,
}  # fmt: skip
#: Rows of dy that are not 16-byte aligned are loaded element by element, which takes registers: smaller tiles.
_UNALIGNED = {
    ("backward", 2): {
        16: Config(32, 128, 4, 2),
        32: Config(32, 128, 4, 2),
        64: Config(32, 64, 8, 2),
        128: Config(32, 64, 4, 2),
    },
    ("project", 2): {128: Config(64, 64, 8, 2)},
}
#: With buffer loads, which AMD parts have, a second stage of them would spill.
_UNALIGNED_AMD = _UNALIGNED | {("backward", 2): _UNALIGNED[("backward", 2)] | {16: Config(32, 128, 4, 1)}}


@cache
def choose(family: str, arch: str, itemsize: int, r: int, aligned: bool = True) -> Config:
    """The frozen configuration of a kernel family for a rank on a part; parts without a table get the small tiles.

    Args:
        family: 'backward', 'expand' or 'project'.
        arch: as ``launch.architecture`` names it.
        itemsize: bytes of an element of the activations.
        r: rank.
        aligned: whether rows start at multiples of 16 bytes.

    Raises:
        ValueError: a rank beyond ``MAX_RANK``.
    """
    if r > MAX_RANK:
        raise ValueError(
            f"rank={r}: the triton kernels go up to rank {MAX_RANK}; leave the choice of the backend open, or use "
            "'reference'"
        )
    table = _TABLES.get(arch, _SMALL)[(family, itemsize)]
    padded = 8 if r <= 8 and 8 in table else padded_rank(r)
    unaligned = _UNALIGNED_AMD if arch.startswith("gfx") else _UNALIGNED
    special = {} if aligned else unaligned.get((family, itemsize), {})
    return special.get(max(16, padded)) or table[padded]


@cache
def rank_columns(arch: str, itemsize: int, r: int) -> int:
    """Columns that ``backward`` pads a rank to: 8 for the smallest on parts where that is compiled and measured."""
    narrow = 8 in _TABLES.get(arch, _SMALL)[("backward", itemsize)]
    return 8 if r <= 8 and narrow else padded_rank(r)


@cache
def chunk_tokens(r: int) -> int:
    """Tokens a chunk of a long segment has: partial gradients then cost at most 1/(8·itemsize) of the bytes of dy."""
    return max(512, 32 * max(16, 1 << (r - 1).bit_length()))


def walk_chunks(arch: str, programs: int, n_chunks: int) -> str:
    """'one', 'walk' or 'split': long segments are split over programs where the grid would not fill half the part."""
    if n_chunks <= 1:
        return "one"
    return "split" if 2 * programs < FULL_GRID.get(arch, FULL_GRID["sm_90"]) else "walk"


#: Tokens a chunk of a long segment has in ``outer``.
OUTER_CHUNK = 1024


@dataclass(frozen=True)
class ProductConfig:
    """A step of ``block_t`` tokens, ``block_n`` columns and ``block_k`` of the third size."""

    block_t: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def outer_blocks(itemsize: int, n: int, k: int) -> ProductConfig:
    """The wider matrix gets the longer side of the tile, so that the narrow one is read again least often."""
    narrow, wide = (64, 128) if itemsize == 2 else (32, 64)

    def side(size: int, limit: int) -> int:
        return min(limit, max(16, 1 << (size - 1).bit_length()))

    block_n, block_k = (side(n, wide), side(k, narrow)) if n >= k else (side(n, narrow), side(k, wide))
    return ProductConfig(32, block_n, block_k, 4, 2)
