"""Bases in other number formats: never touched, differentiated through their own product, and counted in bytes."""

import peft
import pytest
import torch
from adapter_cases import adapted, one_at_a_time, randomise, relative_error, run_pass, tiny_bert

from ffalora.adapters import AdapterConfig, attach, convert
from ffalora.adapters.base_layers import is_fused

K, N = 64, 128


def bits_8(linear):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(K, N, bias=True, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def bits_4(linear):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(K, N, bias=True, compute_dtype=torch.float32, quant_type="nf4")
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu")


def torchao_8(linear):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig())
    return linear


def bfloat16(linear):
    return linear.bfloat16()


FORMATS = {"bitsandbytes-8": bits_8, "bitsandbytes-4": bits_4, "torchao-int8": torchao_8, "bfloat16": bfloat16}


class Net(torch.nn.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.query = torch.nn.Linear(16, K), make(torch.nn.Linear(K, N))
        self.dtype = torch.bfloat16 if make is bfloat16 else torch.float32

    def forward(self, x):
        return self.query(self.first(x).tanh().to(self.dtype)).float()


def losses(model, batch):
    return model(batch["x"]).square().mean((1, 2))


def raw(weight):
    """The stored numbers of a weight, whatever wraps them."""
    if hasattr(weight, "__tensor_flatten__"):
        return [getattr(weight, name).clone() for name in weight.__tensor_flatten__()[0]]
    return [weight.detach().clone()]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_base_in_another_format_trains_exactly_and_is_never_touched(kind):
    net, batch = Net(FORMATS[kind]), {"x": torch.randn(4, 5, 16)}
    before = raw(net.query.weight)
    plain = net(batch["x"]).detach()
    adapters = attach(net, AdapterConfig(rank=3, target_modules=["query", "first"]))
    torch.testing.assert_close(net(batch["x"]), plain, rtol=1e-2, atol=1e-2)
    randomise(adapters)
    assert is_fused(adapters.layers["query"].base_layer) == (kind == "bfloat16")
    _, arena, _ = run_pass(adapters, lambda: losses(net, batch), 4)
    limit = 2e-2 if kind == "bfloat16" else 1e-2 if kind == "bitsandbytes-8" else 1e-5
    assert relative_error(arena, one_at_a_time(adapters, batch, losses)[1]) < limit
    adapters.load_state_(adapters.state() - arena.sum(0))
    after = raw(net.query.base_layer.weight)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    if kind != "bfloat16":
        with pytest.raises(ValueError, match="cannot hold a merged adapter"):
            adapters.merge()
        with pytest.raises(ValueError, match="quantised"):
            attach(Net(FORMATS[kind]), AdapterConfig(rank=3, target_modules=["query"], init="pissa"))


@pytest.mark.parametrize("kind", ["bitsandbytes-4", "torchao-int8"])
def test_the_input_s_gradient_goes_through_the_dequantised_product(kind):
    net = Net(FORMATS[kind])
    adapters = attach(net, AdapterConfig(rank=3, target_modules=["query"]))
    randomise(adapters)
    layer, dy = adapters.layers["query"], torch.randn(6, N)
    x = torch.randn(6, K).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x), x, dy)
    (base_dx,) = torch.autograd.grad(layer.base_layer(x), x, dy)
    assert relative_error(dx, base_dx + dy @ layer.delta()) < 1e-5


def test_quantised_bases_take_fewer_bytes():
    sizes = {}
    for kind, make in FORMATS.items():
        net = Net(make)
        del net.first
        sizes[kind] = attach(net, AdapterConfig(rank=3, target_modules=["query"])).memory().base
    plain = 4 * (K * N + N)
    assert sizes["bfloat16"] == plain / 2
    assert sizes["bitsandbytes-8"] < plain / 2.8 and sizes["torchao-int8"] < plain / 2.8
    assert sizes["bitsandbytes-4"] < sizes["bitsandbytes-8"]


def test_the_report_tells_base_factors_and_trained_tensors_apart():
    adapters = adapted(tiny_bert(), head="trained")
    report = adapters.memory()
    assert report.trained == 4 * adapters.layout.size
    assert report.frozen_factors == 4 * sum(layer.lora_A.numel() for layer in adapters.layers.values())
    assert report.base + report.frozen_factors + report.trained == 4 * sum(
        p.numel() for p in adapters.model.parameters()
    )
    assert report.arena_row == 4 * adapters.layout.width
    assert "MiB" in str(report)


@pytest.mark.parametrize("kind", ["bitsandbytes-8", "bitsandbytes-4", "torchao-int8"])
def test_peft_s_quantised_layers_are_converted_and_given_back(kind):
    net, batch = Net(FORMATS[kind]), {"x": torch.randn(4, 5, 16)}
    setattr(net, {"bitsandbytes-8": "is_loaded_in_8bit"}.get(kind, "is_loaded_in_4bit"), "bits" in kind)
    theirs = peft.get_peft_model(net, peft.LoraConfig(r=3, target_modules=["query"]))
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected, layer = theirs(batch["x"]), theirs.base_model.model.query
    original = type(layer)
    adapters = convert(theirs)
    assert type(layer) is not original and isinstance(layer, original)
    assert relative_error(theirs(batch["x"]), expected) < 1e-6
    _, arena, _ = run_pass(adapters, lambda: losses(theirs, batch), 4)
    _, rows = one_at_a_time(adapters, batch, losses)
    assert relative_error(arena, rows) < (1e-2 if kind == "bitsandbytes-8" else 1e-5)
    adapters.detach()
    assert type(layer) is original
