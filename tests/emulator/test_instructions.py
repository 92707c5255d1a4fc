"""Single instructions, where numpy and PTX differ or immediates, wide fields and structures come in."""

import struct

import numpy as np
import pytest
from emulator import PTXError
from snippets import launch, stored


def result(body: str, kind: str, register: str, dtype: type, **options) -> np.ndarray:
    return launch(body + stored(kind, register), np.zeros(32, dtype), **options)[0]


@pytest.mark.parametrize(
    "kind,one,other,dtype,register",
    [
        ("f64", "0d3FF8000000000000", "0dC000000000000000", np.float64, "%g1"),
        ("f64", "1.5", "-2.0", np.float64, "%g1"),
        ("f32", "0f3FC00000", "0fC0000000", np.float32, "%f1"),
        ("b64", "0x7FF0000000000001", "-1", np.int64, "%d1"),
        ("s32", "5", "-7", np.int32, "%r5"),
    ],
)
def test_a_selection_between_immediates_gives_their_values(kind, one, other, dtype, register) -> None:
    found = result(f"setp.lt.u32 %p0, %r0, 7;\n selp.{kind} {register}, {one}, {other}, %p0;", kind, register, dtype)
    expected = [1.5, -2.0] if dtype in (np.float64, np.float32) else [int(one, 0), int(other, 0)]
    assert found.tolist() == [expected[0]] * 7 + [expected[1]] * 25


@pytest.mark.parametrize("first,length", [(0, 64), (28, 9), (60, 8), (5, 0), (33, 20), (0, 1)])
def test_a_field_is_inserted_into_64_bits(first: int, length: int) -> None:
    new, old = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    body = f"mov.b64 %d1, {new:#x};\n mov.b64 %d2, {old:#x};\n bfi.b64 %d3, %d1, %d2, {first}, {length};"
    field = ((1 << min(length, 64 - first)) - 1) << first
    expected = (old & ~field) | ((new << first) & field)
    assert result(body, "b64", "%d3", np.uint64).tolist() == [expected] * 32


@pytest.mark.parametrize("first,length", [(0, 32), (4, 9), (28, 8), (3, 0)])
def test_a_field_of_another_place_in_each_thread_is_inserted_and_extracted(first: int, length: int) -> None:
    body = f"""
    add.u32 %r2, %r0, {first};
    mov.b32 %r3, {length};
    bfi.b32 %r4, 0x89ABCDEF, 0x12345678, %r2, %r3;
    bfe.s32 %r5, %r4, %r2, %r3;
    """
    inserted, extracted = (result(body, "b32", f"%r{n}", np.uint32).tolist() for n in (4, 5))
    for thread in range(32):
        at = min(thread + first, 32)
        bits = min(length, 32 - at)
        field = ((1 << bits) - 1) << at
        assert inserted[thread] == (0x12345678 & ~field) | ((0x89ABCDEF << at) & field)
        low = inserted[thread] >> at & ((1 << bits) - 1) if bits else 0
        signed = low - (1 << bits) if bits and low >> (bits - 1) else low
        assert extracted[thread] == signed & 0xFFFFFFFF


def test_members_of_a_structure_are_read_from_their_places() -> None:
    parameters = ".param .u64 out, .param .align 8 .b8 settings[24]"
    bytes_of_it = struct.pack("<qfId", 2**40, 2.5, 7, -1.25)
    body = """
    ld.param.u64 %d1, [settings];
    ld.param.f32 %f1, [settings+8];
    ld.param.u32 %r2, [settings+12];
    ld.param.f64 %g1, [settings+16];
    """
    read = {
        "b64": ("%d1", np.int64, 2**40),
        "f32": ("%f1", np.float32, 2.5),
        "b32": ("%r2", np.uint32, 7),
        "f64": ("%g1", np.float64, -1.25),
    }
    for kind, (register, dtype, expected) in read.items():
        found = result(body, kind, register, dtype, parameters=parameters, arguments=[bytes_of_it])
        assert found.tolist() == [expected] * 32


def test_several_members_of_a_structure_are_read_at_once() -> None:
    parameters = ".param .u64 out, .param .align 16 .b8 pair[16]"
    body = "ld.param.v2.u64 {%d1, %d2}, [pair];\n add.s64 %d3, %d1, %d2;"
    given = struct.pack("<qq", 40, 2)
    assert result(body, "b64", "%d3", np.int64, parameters=parameters, arguments=[given]).tolist() == [42] * 32


@pytest.mark.parametrize(
    "number,expected", [("0f7F800000", 2**31 - 1), ("0fFF800000", -(2**31)), ("0f40200000", 2), ("0fC0200000", -2)]
)
def test_a_float_becomes_the_nearest_integer_that_there_is(number: str, expected: int) -> None:
    body = f"mov.f32 %f1, {number};\n cvt.rzi.s32.f32 %r2, %f1;"
    assert result(body, "b32", "%r2", np.int32).tolist() == [expected] * 32


def test_a_shift_beyond_the_width_leaves_the_sign() -> None:
    body = "mov.b32 %r2, -5;\n add.u32 %r3, %r0, 20;\n shr.s32 %r4, %r2, %r3;"
    assert result(body, "b32", "%r4", np.int32).tolist() == [-5 >> min(thread + 20, 31) for thread in range(32)]


def test_an_integer_is_divided_towards_zero() -> None:
    body = "sub.s32 %r2, %r0, 16;\n div.s32 %r3, %r2, 3;\n rem.s32 %r4, %r2, 3;"
    quotient, rest = (result(body, "b32", f"%r{n}", np.int32) for n in (3, 4))
    assert quotient.tolist() == [int((thread - 16) / 3) for thread in range(32)]
    assert (3 * quotient + rest).tolist() == list(range(-16, 16))


def test_a_shuffle_reads_the_other_lane_and_says_whether_it_is_there() -> None:
    body = "shfl.sync.down.b32 %r2|%p1, %r0, 5, 31, -1;\n selp.b32 %r3, %r2, 99, %p1;"
    assert result(body, "b32", "%r3", np.uint32).tolist() == [*range(5, 32), *[99] * 5]


@pytest.mark.parametrize("kind,expected", [("add", 7 * -5 + 25 * 3), ("min", -5), ("max", 3)])
def test_a_reduction_gives_every_lane_the_same_number(kind: str, expected: int) -> None:
    body = f"""
    setp.lt.u32 %p0, %r0, 7;
    selp.s32 %r2, -5, 3, %p0;
    mov.b32 %r3, -1;
    redux.sync.{kind}.s32 %r4, %r2, %r3;
    """
    assert result(body, "s32", "%r4", np.int32).tolist() == [expected] * 32


def test_updates_of_one_place_add_up_and_each_finds_the_sum_before_it() -> None:
    body = "mov.u32 %r2, 1;\n atom.global.add.u32 %r3, [%d0+124], %r2;" + stored("b32", "%r3").replace(
        "st.", "@%p2 st."
    )
    out, done = launch("setp.lt.u32 %p2, %r0, 31;\n" + body, np.zeros(32, np.uint32))
    assert out.tolist() == [*range(31), 32]
    assert done.counts["atomics"] == 32


def test_an_instruction_that_is_not_known_is_refused_and_not_guessed() -> None:
    with pytest.raises(PTXError, match="unsupported tex"):
        launch("tex.1d.v4.f32.s32 {%f1,%f2,%f3,%f4}, [%d0, {%r0}];", np.zeros(32, np.uint32))


def test_what_is_not_reached_need_not_be_known() -> None:
    body = "setp.gt.u32 %p0, %r0, 99;\n @!%p0 bra AFTER;\n tex.1d %r1;\nAFTER:" + stored("b32", "%r0")
    assert launch(body, np.zeros(32, np.uint32))[0].tolist() == list(range(32))
