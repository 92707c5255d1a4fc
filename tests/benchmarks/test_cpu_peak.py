"""The arithmetic peak: by the widest instruction that a processor has, from registers that hold no subnormal number."""

import re

import bench_path  # noqa: F401
import cpu_peak
import pytest

AVX512 = {"avx2", "fma", "avx512f", "avx512_bf16"}


@pytest.mark.parametrize(
    "flags,registers",
    [
        (AVX512, {"float32": "zmm", "bfloat16": "zmm"}),
        (AVX512 | {"amx_bf16"}, {"float32": "zmm"}),
        ({"avx2", "fma"}, {"float32": "ymm"}),
        ({"avx2"}, {}),
        ({"asimd"}, {}),
    ],
    ids=["avx512_bf16", "amx", "avx2", "no fma", "arm"],
)
def test_a_peak_is_measured_by_the_widest_instruction_or_not_at_all(flags, registers):
    assert {name: loop[1] for name, loop in cpu_peak.loops(flags).items()} == registers


def test_every_register_of_the_loop_starts_at_zero():
    for instruction, registers, _ in cpu_peak.loops(AVX512).values():
        before, _, body = cpu_peak.source(instruction, registers).partition("1:")
        used = set(re.findall(rf"{registers}(\d+)", body))
        assert len(used) > 10 and all(f"vxorps %%xmm{number}," in before for number in used)


def test_a_product_is_no_share_of_a_peak_that_it_exceeds():
    import cpu_kernels
    from record import Row

    config = {"flops": 2e9, "core_gflop_per_s": {"float32": 100}, "threads": 1}
    row = Row("cpu_kernels", "backward N1 S1 T1 R1 float32", "ours", ms=40.0, config=config)
    assert cpu_kernels.share_of_peak(row) == pytest.approx(0.5)
    wrong = Row("cpu_kernels", row.case, "ours", ms=10.0, config=config)
    assert cpu_kernels.share_of_peak(wrong) != cpu_kernels.share_of_peak(wrong), "more than a peak is no share of it"
