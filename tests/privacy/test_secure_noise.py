"""Secure noise: its key stream against published vectors, its normals against the formula and their distribution."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from ffalora.privacy import secure_noise
from ffalora_kernels import dispatch

MODULE = dispatch.load("cpp")[0]
needs_extension = pytest.mark.skipif(MODULE is None, reason=f"C++ backend not usable: {dispatch.load('cpp')[1]}")
ZERO, FIRST, LAST = [0] * 32, [0, 255] + [0] * 30, [0] * 31 + [1]
# RFC 8439, section 2.3.2 and appendix A.1: key, nonce, counter, key stream.
VECTORS = [
    (list(range(32)), bytes.fromhex("000000090000004a00000000"), 1,
     "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
     "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"),
    (ZERO, bytes(12), 0,
     "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
     "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"),
    (ZERO, bytes(12), 1,
     "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
     "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"),
    (LAST, bytes(12), 1,
     "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
     "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"),
    (FIRST, bytes(12), 2,
     "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
     "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"),
    (ZERO, bytes(11) + b"\x02", 0,
     "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
     "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d"),
]  # fmt: skip


@pytest.fixture(params=["extension", "fallback"])
def either(request, monkeypatch):
    """Runs the test with the C++ generator and with the operating system's."""
    if request.param == "fallback":
        monkeypatch.setattr(secure_noise, "_extension", lambda: None)
    elif MODULE is None:
        pytest.skip(dispatch.load("cpp")[1])


@pytest.fixture(params=[0, 1, 2], ids=["baseline", "avx2", "avx512"])
def instructions(request):
    best = MODULE._cpu.level()
    if not MODULE._cpu.set_level(request.param):
        pytest.skip("this processor lacks the instructions")
    yield
    MODULE._cpu.set_level(best)


def words_of(data: bytes) -> list[int]:
    return np.frombuffer(data, dtype="<u4").tolist()


def key_stream(key, nonce, counter, blocks):
    out = torch.empty(blocks, 16, dtype=torch.int32)
    MODULE._cpu.key_stream(words_of(bytes(key)), words_of(nonce), counter, blocks, out.data_ptr())
    return out


@needs_extension
@pytest.mark.parametrize("key,nonce,counter,expected", VECTORS)
def test_key_stream_is_chacha20_of_rfc_8439(key, nonce, counter, expected, instructions):
    assert key_stream(key, nonce, counter, 1).numpy().tobytes().hex() == expected
    if counter:
        assert key_stream(key, nonce, counter - 1, 40)[1].numpy().tobytes().hex() == expected


@needs_extension
def test_normals_are_the_formula_of_the_key_stream(instructions):
    key, nonce, n = list(range(32)), bytes(range(12)), 100_001
    numbers = torch.zeros(n, dtype=torch.float64)
    MODULE._cpu.add_normals_of_key(words_of(bytes(key)), words_of(nonce), 7, numbers.data_ptr(), n, 2.0, 1)
    words = key_stream(key, nonce, 7, (n + 1) // 2).view(torch.int64).view(-1, 8)
    assert (numbers - 2.0 * secure_noise._normals_of_words(words)[:n]).abs().max() <= 2e-14


@needs_extension
def test_threads_leave_the_stream_as_it_is():
    streams = []
    for threads in (1, 2, 3):
        numbers = torch.zeros(70_001, dtype=torch.float64)
        MODULE._cpu.add_normals_of_key([1] * 8, [0] * 3, 0, numbers.data_ptr(), numbers.numel(), 1.0, threads)
        streams.append(numbers)
    assert torch.equal(streams[0], streams[1]) and torch.equal(streams[0], streams[2])


@needs_extension
def test_counter_of_a_key_cannot_run_over():
    with pytest.raises(ValueError, match="2\\^33"):
        MODULE._cpu.add_normals_of_key([1] * 8, [0] * 3, 2**32 - 1, torch.zeros(3).double().data_ptr(), 3, 1.0, 1)


def test_distribution_is_normal(either):
    z = secure_noise.secure_gaussian(400_000).numpy()
    assert stats.kstest(z, "norm").pvalue > 1e-5
    for order, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**order).mean() - expected) < 5 * (spread / z.size) ** 0.5, f"moment {order}"
    pairs = z.reshape(-1, 2)
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 5 / 200_000**0.5
    assert abs(np.corrcoef((pairs**2).T)[0, 1]) < 5 / 200_000**0.5, "the two numbers of a block depend on each other"
    assert abs(np.corrcoef(z[:-2], z[2:])[0, 1]) < 5 / z.size**0.5


def test_each_row_has_its_own_standard_deviation(either):
    total = torch.full((3, 50_000), 7.0, dtype=torch.float64)
    secure_noise.add_secure_gaussian_(total, torch.tensor([0.0, 0.5, 20.0], dtype=torch.float64))
    assert torch.equal(total[0], torch.full_like(total[0], 7.0))
    assert total[1].std().item() == pytest.approx(0.5, rel=0.02) and total[2].std().item() == pytest.approx(
        20, rel=0.02
    )
    wide = torch.zeros(50_000, 2, dtype=torch.float64).t()
    secure_noise.add_secure_gaussian_(wide, 3.0)
    assert wide.std().item() == pytest.approx(3.0, rel=0.02)


def test_neither_seeds_nor_forks_repeat_the_noise(either):
    torch.manual_seed(0)
    first = secure_noise.secure_gaussian((2, 3))
    torch.manual_seed(0)
    second = secure_noise.secure_gaussian((2, 3))
    assert first.shape == (2, 3) and first.dtype == torch.float64
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, secure_noise.secure_gaussian((2, 3)).numpy().tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    forked = np.frombuffer(os.read(read, 48))
    draws = np.concatenate([first.numpy().ravel(), second.numpy().ravel(), forked])
    assert len(set(draws.tolist())) == 18, "a number came twice"


def test_key_is_invisible_from_python():
    names = [name for name in dir(secure_noise) if "key" in name.lower()]
    assert names == []
    assert secure_noise.source() in ("chacha20", "os.urandom")


def test_wrong_arguments_are_refused(either):
    for std in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="std must be finite"):
            secure_noise.secure_gaussian(3, std)
        with pytest.raises(ValueError, match="std must be finite"):
            secure_noise.add_secure_gaussian_(torch.zeros(1, 2, dtype=torch.float64), std)
    with pytest.raises(ValueError, match="one a row"):
        secure_noise.add_secure_gaussian_(torch.zeros(3, 2, dtype=torch.float64), torch.ones(2))
    with pytest.raises(ValueError, match="float64"):
        secure_noise.add_secure_gaussian_(torch.zeros(3, 2), 1.0)
    assert secure_noise.secure_gaussian(0).numel() == 0


@needs_extension
def test_missing_entropy_is_an_error_and_never_weak_noise(tmp_path):
    source = tmp_path / "no_entropy.c"
    source.write_text("#include <errno.h>\nint getentropy(void* to, unsigned long n) { errno = EIO; return -1; }\n")
    library = tmp_path / "no_entropy.so"
    built = subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], capture_output=True)
    if built.returncode != 0:
        pytest.skip("no C compiler")
    code = (
        "from ffalora.privacy.secure_noise import secure_gaussian\n"
        "try:\n    print(secure_gaussian(4))\nexcept OSError as e:\n    print('refused', e)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "LD_PRELOAD": str(library)}
    )
    assert result.stdout.startswith("refused") and "entropy" in result.stdout, result.stderr
