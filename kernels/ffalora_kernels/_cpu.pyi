"""The C++ extension: kernels on plain addresses. Strides count elements; 0 stands for a tensor that is not there."""

class Segments:
    def __init__(self, offsets: int, client: int, count: int) -> None: ...

class Activations:
    def __init__(self, data: int, columns: int, stride: int, half: bool) -> None: ...

class AdapterB:
    def __init__(self, data: int, clients: int, stride: int, half: bool) -> None: ...

class ArenaColumns:
    def __init__(self, data: int, stride: int, accumulate: bool, squares: int, squares_stride: int) -> None: ...

class Matrix:
    def __init__(self, data: int, stride: int) -> None: ...

class Clipping:
    def __init__(
        self, *, clients: int, columns: int, total: Matrix, arena: Matrix, squares: int, client: int, segments: int,
        max_grad_norm: int, group_columns: int, groups: int, automatic: bool, gamma: float, factors: int, norms: int,
    ) -> None: ...  # fmt: skip

class Update:
    def __init__(
        self, *, adamw: bool, beta1: float, beta2: float, eps: float, weight_decay: float, mu: float,
        dp_bias_correction: bool,
    ) -> None: ...  # fmt: skip

class StepTensors:
    def __init__(
        self, *, state: Matrix, exp_avg: Matrix, exp_avg_sq: Matrix, total: Matrix, anchor: Matrix, clients: int,
        columns: int, client_id: int, step: int, age: int, noise_std: int, denominator: int, lr: int, index: int,
    ) -> None: ...  # fmt: skip

class HeadLogits:
    def __init__(
        self, *, data: int, stride: int, rows: int, columns: int, targets: int, weights: int, softcap: float,
        losses: int, right: int,
    ) -> None: ...  # fmt: skip

class Heads:
    def __init__(self, data: int, token_stride: int, head_stride: int) -> None: ...

class Attention:
    def __init__(
        self, *, q: Heads, k: Heads, v: Heads, out: Heads, normalisers: int, heads: int, kv_heads: int, width: int,
        tokens: int, offsets: int, count: int, scale: float, causal: bool, half: bool,
    ) -> None: ...  # fmt: skip

def attention(tensors: Attention, threads: int) -> None: ...
def attention_gradient(
    forward: Attention, dout: Heads, dq: Heads, dk: Heads, dv: Heads, threads: int
) -> None: ...  # fmt: skip
def softmax_gradient(logits: HeadLogits, gradient: Activations, threads: int) -> None: ...
def expand(y: Activations, h: Activations, b: AdapterB, segments: Segments, scale: float, threads: int) -> None: ...
def backward(
    dy: Activations, h: Activations, b: AdapterB, dh: Activations, segments: Segments, scale: float,
    arena: ArenaColumns, threads: int,
) -> None: ...  # fmt: skip
def outer(
    p: Activations, q: Activations, segments: Segments, scale: float, arena: ArenaColumns, threads: int
) -> None: ...
def clip_reduce(clipping: Clipping, threads: int) -> None: ...
def privatize_step(tensors: StepTensors, update: Update, *, key: int, stream: int, threads: int) -> None: ...
def gaussian(key: int, client_id: int, step: int, stream: int, first: int, count: int, normals: int) -> None: ...
def add_secure_normals(numbers: int, count: int, std: float, threads: int) -> None: ...
def add_normals_of_key(
    words: list[int], nonce: list[int], block: int, numbers: int, count: int, std: float, threads: int
) -> None: ...
def key_stream(words: list[int], nonce: list[int], block: int, blocks: int, stream: int) -> None: ...
def level() -> int: ...
def set_level(wanted: int) -> bool: ...
def set_amx(always: bool) -> bool: ...
