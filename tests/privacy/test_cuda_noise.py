"""The GPU's secure noise: its PTX, executed in the emulator, has the bits of the C++ stream."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ffalora_kernels import dispatch

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "csrc" / "cuda" / "secure_noise.cu"
KEY, NONCE = [0x01234567 * (i + 1) & 0xFFFFFFFF for i in range(8)], [9, 0x4A000000, 77]
THREADS = 128

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed"),
    pytest.mark.skipif(dispatch.load("cpp")[0] is None, reason=f"C++ backend not usable: {dispatch.load('cpp')[1]}"),
]


def stream_of_processor(start: torch.Tensor, std: float) -> torch.Tensor:
    numbers = start.clone()
    cpu = dispatch.load("cpp")[0]._cpu
    cpu.add_normals_of_key(KEY, NONCE, 0, numbers.data_ptr(), numbers.numel(), std, 1)
    return numbers


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    target = tmp_path_factory.mktemp("ptx") / "secure_noise.ptx"
    command = ["nvcc", "-ptx", "-O3", "--fmad=false", "-std=c++17", "-arch=sm_80", "-o", target, SOURCE]
    subprocess.run(command, check=True, capture_output=True)
    return target.read_text()


@pytest.mark.parametrize("count", [1, 2, 255, 256, 777])
def test_gpu_stream_is_that_of_the_processors(ptx, count, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import emulator

    start = torch.linspace(-3, 3, count, dtype=torch.float64)
    device = emulator.Device(1 << 16 | 1 << 20)
    address = device.allocate(start.numpy(), "numbers")
    pairs = [KEY[i] | KEY[i + 1] << 32 for i in range(0, 8, 2)]
    pairs = np.array([*pairs, NONCE[0] | NONCE[1] << 32], dtype=np.uint64).view(np.int64).tolist()
    (kernel,) = emulator.parse(ptx).values()
    grid = -(-((count + 1) // 2) // THREADS)
    emulator.Launch(kernel, device, [address, count, 1.7, *pairs, NONCE[2]], (grid,), block=THREADS)
    found = torch.from_numpy(device.read(address, (count,), np.float64))
    assert torch.equal(found, stream_of_processor(start, 1.7))


def test_gpu_code_has_no_contraction_and_no_local_memory(ptx):
    assert "fma." not in ptx and "mad.rn" not in ptx, "the GPU would round differently from the processor"
    assert ".local" not in ptx, "the key or the block would be written to memory"


def test_library_builds_and_loads_without_a_gpu(tmp_path):
    library = tmp_path / "secure_noise.so"
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static", "--fmad=false", "-std=c++17"]
    subprocess.run([*command, "-arch=sm_80", "-o", library, SOURCE], check=True, capture_output=True)
    code = (
        f"import ctypes; print(ctypes.CDLL({str(library)!r}).ffalora_launch_secure_normals(None, 0, None, None, None))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "0"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_that_has_the_library_is_usable_and_draws_the_right_spread():
    from ffalora.privacy import cuda_noise, secure_noise

    if cuda_noise._launcher() is None:
        pytest.skip("the CUDA library is not built here")
    assert cuda_noise.usable(0)
    total = torch.zeros(2, 200_001, dtype=torch.float64, device="cuda")
    secure_noise.add_secure_gaussian_(total, torch.tensor([1.0, 5.0]))
    assert total.std(1).tolist() == pytest.approx([1.0, 5.0], rel=0.02)


def test_missing_library_leaves_the_import_whole_and_gives_its_reason(monkeypatch):
    from ffalora.privacy import cuda_noise

    monkeypatch.setattr(cuda_noise, "_launcher", lambda: None)
    cuda_noise.usable.cache_clear()
    assert not cuda_noise.usable(0)
    with pytest.raises(RuntimeError, match="needs nvcc"):
        cuda_noise.add(torch.zeros(4, dtype=torch.float64), 1.0)
