"""What the emulator refuses and counts: bounds, races, unwritten memory, barriers, sectors; copies that arrive late."""

import numpy as np
import pytest
from emulator import Device, Launch, PTXError, parse
from snippets import kernel_text, launch, stored

TO_SHARED = "mov.u32 %r2, buffer;\n shl.b32 %r3, %r0, 2;\n add.u32 %r4, %r2, %r3;\n"


@pytest.mark.parametrize("offset,kind", [(128, "b32"), (-4, "b32"), (124, "b64")])
def test_an_access_outside_of_a_tensor_is_refused(offset: int, kind: str) -> None:
    with pytest.raises(PTXError, match="oob-reads"):
        launch(f"ld.global.{kind} %{'r5' if kind == 'b32' else 'd5'}, [%d0+{offset}];", np.zeros(32, np.uint32))


def test_a_misaligned_access_is_refused() -> None:
    with pytest.raises(PTXError, match="misaligned"):
        launch("ld.global.b32 %r5, [%d0+2];", np.zeros(32, np.uint32))


def test_a_read_of_memory_that_nobody_wrote_is_refused() -> None:
    device = Device(1 << 18)
    address = device.allocate(np.zeros(32, np.uint32), "out")
    device.written[address + 64] = False
    (kernel,) = parse(kernel_text("ld.global.b32 %r5, [%d0+64];")).values()
    with pytest.raises(PTXError, match="uninit"):
        Launch(kernel, device, [address], (1,), 32)
    with pytest.raises(PTXError, match="smem-uninit"):
        launch(TO_SHARED + "ld.shared.b32 %r5, [%r4];", np.zeros(32, np.uint32))


@pytest.mark.parametrize("first,second", [("st", "st"), ("st", "ld"), ("ld", "st"), ("atom", "ld"), ("ld", "atom")])
def test_two_programs_at_one_place_are_a_race_unless_both_read(first: str, second: str) -> None:
    access = {
        "st": "st.global.b32 [%d0], %r1;",
        "ld": "ld.global.b32 %r5, [%d0];",
        "atom": "atom.global.add.u32 %r5, [%d0], 1;",
    }
    body = f"setp.eq.u32 %p0, %r1, 0;\n @!%p0 bra OTHER;\n {access[first]}\n ret;\nOTHER:\n {access[second]}"
    with pytest.raises(PTXError, match="global-race"):
        launch(body, np.zeros(32, np.uint32), programs=2)
    for shared in ("ld", "atom"):
        launch(access[shared], np.zeros(32, np.uint32), programs=2)


def test_warps_that_exchange_numbers_without_a_barrier_race() -> None:
    turned = TO_SHARED + "st.shared.b32 [%r4], %r0;\n {} xor.b32 %r5, %r3, 128;\n add.u32 %r6, %r2, %r5;\n"
    turned += "ld.shared.b32 %r7, [%r6];" + stored("b32", "%r7")
    found, done = launch(turned.format("bar.sync 0;\n"), np.zeros(64, np.uint32), threads=64)
    assert found.tolist() == [*range(32, 64), *range(32)]
    assert done.counts["barriers"] == 1
    with pytest.raises(PTXError, match="smem-race"):
        launch(turned.format(""), np.zeros(64, np.uint32), threads=64)


def test_a_barrier_that_some_threads_do_not_reach_is_refused() -> None:
    with pytest.raises(PTXError, match="divergent-barrier"):
        launch("setp.lt.u32 %p0, %r0, 40;\n @%p0 bar.sync 0;", np.zeros(64, np.uint32), threads=64)


@pytest.mark.parametrize("stride,sectors", [(4, 4), (8, 8), (32, 32), (0, 1)])
def test_sectors_are_those_that_a_warp_touches(stride: int, sectors: int) -> None:
    body = f"mul.wide.u32 %d1, %r0, {stride};\n add.s64 %d2, %d0, %d1;\n ld.global.b32 %r5, [%d2];"
    done = launch(body, np.zeros(256, np.uint32), programs=2)[1]
    assert done.counts["read_sectors"] == 2 * sectors
    assert done.report()["unique_read_bytes"] == 32 * sectors


@pytest.mark.parametrize("stride,wavefronts", [(4, 1), (8, 2), (128, 8)])
def test_threads_of_one_bank_take_turns(stride: int, wavefronts: int) -> None:
    body = f"mov.u32 %r2, buffer;\n and.b32 %r6, %r0, 7;\n mul.lo.u32 %r3, %r6, {stride};\n"
    if stride != 128:
        body = body.replace("and.b32 %r6, %r0, 7", "mov.u32 %r6, %r0")
    done = launch(body + "add.u32 %r4, %r2, %r3;\n st.shared.b32 [%r4], %r6;", np.zeros(1, np.uint32))[1]
    assert done.counts["shared_wavefronts"] == wavefronts


COPY = "cp.async.ca.shared.global [%r{to}], [%d{source}], 4;\n cp.async.commit_group;\n"
#: Program 0 copies twice, the others once; each thread then reads what it copied first.
DIVERGING = f"""
{TO_SHARED}
    add.u32 %r5, %r4, 512;
    mul.wide.u32 %d30, %r0, 4;
    add.s64 %d1, %d0, %d30;
    add.s64 %d2, %d1, 128;
    {COPY.format(to=4, source=1)}
    setp.ne.u32 %p0, %r1, 0;
    @%p0 bra ONE;
    {COPY.format(to=5, source=2)}
    cp.async.wait_group {{behind}};
    bra READ;
ONE:
    cp.async.wait_group {{others}};
READ:
    ld.shared.b32 %r7, [%r4];
    mul.wide.u32 %d3, %r1, 128;
    add.s64 %d4, %d1, %d3;
    st.global.b32 [%d4+256], %r7;
"""


def test_copies_arrive_when_their_own_program_waits_for_them() -> None:
    numbers = np.concatenate([np.arange(64), np.zeros(96)]).astype(np.uint32)
    found, _ = launch(DIVERGING.format(behind=1, others=0), numbers, programs=3)
    assert found[64:].reshape(3, 32).tolist() == [list(range(32))] * 3


@pytest.mark.parametrize("behind,others", [(2, 0), (1, 1)])
def test_a_copy_that_its_program_did_not_wait_for_is_not_there(behind: int, others: int) -> None:
    with pytest.raises(PTXError, match="smem-uninit"):
        launch(DIVERGING.format(behind=behind, others=others), np.zeros(160, np.uint32), programs=3)


def test_a_copy_of_fewer_bytes_leaves_zeros_behind_them() -> None:
    body = """
    mov.u32 %r2, buffer;
    shl.b32 %r3, %r0, 4;
    add.u32 %r4, %r2, %r3;
    and.b32 %r6, %r0, 1;
    shl.b32 %r6, %r6, 3;
    cp.async.cg.shared.global [%r4], [%d0], 16, %r6;
    cp.async.wait_all;
    ld.shared.v4.b32 {%r8, %r9, %r10, %r11}, [%r4];
    add.u32 %r8, %r8, %r9;
    add.u32 %r8, %r8, %r10;
    """ + stored("b32", "%r8").replace("[%d31]", "[%d31+64]")
    numbers = np.full(48, 7, np.uint32)
    assert launch(body, numbers)[0][16:].tolist() == [0, 14] * 16
