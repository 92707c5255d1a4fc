"""What loading the C++ extension does to the process, and what happens where it is missing."""

import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import ffalora_kernels
from ffalora_kernels import dispatch, openmp


def run(code: str) -> str:
    """Output of a fresh interpreter; its error message on failure."""
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


needs_extension = pytest.mark.skipif(
    dispatch.load("cpp")[0] is None, reason=f"C++ backend not usable: {dispatch.load('cpp')[1]}"
)


@needs_extension
def test_loading_the_library_keeps_denormals_and_nan():
    output = run("""
        import torch, threading
        import ffalora_kernels as ffk
        from ffalora_kernels import Segments
        ffk.use_backend("cpp").__enter__()
        tiny, nan = torch.tensor([[1e-39, float("nan")]]), float("nan")
        def denormal():
            x = 5e-324
            return x * 1.0 > 0 and float((torch.tensor([1e-39]) * 1.0)[0]) > 0 and nan != nan
        arena = torch.empty(1, 2)
        ffk.backward(tiny, torch.ones(1, 1), torch.ones(1, 2, 1), Segments.from_lengths([1]), 1.0, arena, 0)
        assert arena[0, 0] == tiny[0, 0] and arena[0, 0] > 0 and arena[0, 1].isnan(), arena
        seen = [denormal()]
        thread = threading.Thread(target=lambda: seen.append(denormal()))
        thread.start(); thread.join()
        print(all(seen))
    """)
    assert output.strip() == "True"


@needs_extension
def test_no_second_openmp_runtime_is_loaded():
    output = run("""
        import torch, ffalora_kernels as ffk
        def runtimes():
            names = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
            return sorted(n for n in names if any(k in n.rsplit("/", 1)[-1] for k in ("libgomp", "libomp", "libiomp")))
        before = runtimes()
        torch.set_num_threads(2)
        ffk.use_backend("cpp").__enter__()
        ffk.clip_reduce_(torch.zeros(1, 9999, dtype=torch.float64), torch.ones(3, 9999), torch.zeros(3).int(),
                         torch.ones(1, 1, dtype=torch.float64), torch.tensor([0, 9999]).int())
        print(before == runtimes(), len(before))
    """)
    assert output.split() == ["True", "1"]


@needs_extension
def test_extension_gives_the_lock_of_the_interpreter_away():
    output = run("""
        import threading, time, torch
        import ffalora_kernels as ffk
        from ffalora_kernels import Segments
        torch.set_num_threads(1)
        dy, h, b = torch.randn(20000, 512), torch.randn(20000, 64), torch.randn(1, 512, 64)
        arena, running, ticks, most = torch.empty(1, 512 * 64), True, 0, 0
        def work():
            global running, most
            for _ in range(50):
                before = ticks
                ffk.backward(dy, h, b, Segments.from_lengths([20000]), 1.0, arena, 0)
                most = max(most, ticks - before)
                if most > 5:
                    break
            running = False
        thread = threading.Thread(target=work)
        thread.start()
        while running:
            ticks += 1
            time.sleep(0.001)
        print(most)
    """)
    assert int(output) > 5, "the other thread did not move within any call"


def test_missing_extension_leaves_the_import_whole_and_gives_its_reason():
    output = run("""
        import sys
        sys.modules["ffalora_kernels._cpu"] = None
        import torch, ffalora_kernels as ffk
        y = torch.zeros(2, 3)
        ffk.expand_(y, torch.ones(2, 1), torch.ones(1, 3, 1), ffk.Segments.from_lengths([2]), 2.0)
        assert (y == 2).all()
        try:
            ffk.use_backend("cpp").__enter__()
        except ffk.BackendUnavailable as reason:
            print(ffk.explain()["cpp"], "|", reason)
    """)
    assert "FFALORA_NO_EXTENSION" in output and "C++17 compiler" in output and "backend='cpp'" in output


#: Operations that autograd calls as they are, without one for torch's dispatcher.
WITHOUT_SCHEMA = ("linear_cross_entropy", "packed_attention", "packed_attention_gradient")


def test_all_operations_are_compiled():
    if dispatch.load("cpp")[0] is None:
        pytest.skip(dispatch.load("cpp")[1])
    module, _ = dispatch.load("cpp")
    assert set(module.IMPLEMENTATIONS) == {*ffalora_kernels.ops.SCHEMAS, *WITHOUT_SCHEMA}


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux's loader")
def test_the_library_finds_the_openmp_of_a_torch_that_keeps_it_to_itself():
    """As torch's packages for Arm do; here the runtime is loaded so, and torch is not."""
    [runtime, *_] = Path(torch.__file__).parents[1].glob("torch*/**/libgomp*")
    library = find_spec("ffalora_kernels._cpu").origin
    said = run(f"""
        import ctypes, importlib.util
        def load(name, path):
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
        held = ctypes.CDLL({str(runtime)!r}, mode=ctypes.RTLD_LOCAL)
        try:
            load("_cpu", {library!r})
        except ImportError as error:
            assert "GOMP" in str(error), error
            print("missing")
        load("openmp", {openmp.__file__!r}).share_openmp()
        print(load("_cpu", {library!r}).level())
    """)
    assert said.split()[0] == "missing" and len(said.split()) == 2
