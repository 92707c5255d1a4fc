"""Base product plus adapter: the same numbers whoever computes the base product."""

import pytest
import torch

from ffalora_kernels import (
    Segments,
    adapted_input_gradient,
    adapted_product,
    base_input_gradient,
    base_product,
    products,
)


def _case():
    torch.manual_seed(0)
    segments = Segments.from_lengths([3, 0, 4], client=[0, 1, 1], n_clients=2)
    return segments, torch.randn(7, 5), torch.randn(6, 5), torch.randn(6), torch.randn(7, 2), torch.randn(2, 6, 2)


def test_the_product_is_base_plus_adapter_of_each_tokens_client():
    segments, x, w, bias, h, b = _case()
    own = b[torch.tensor([0, 0, 0, 1, 1, 1, 1])]
    expected = x @ w.T + bias + 0.5 * torch.einsum("mr,mnr->mn", h, own)
    torch.testing.assert_close(adapted_product(x, w, bias, h, b, segments, 0.5), expected)


def test_the_input_gradient_is_base_plus_adapter():
    dy, w, dh, a = torch.randn(7, 6), torch.randn(6, 5), torch.randn(7, 2), torch.randn(2, 5)
    torch.testing.assert_close(adapted_input_gradient(dy, w, dh, a), dy @ w + dh @ a)


@pytest.mark.parametrize("tokens", [0, 1, 33])
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_onednn_and_torch_agree(monkeypatch, tokens, transposed):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: torch.backends.mkldnn.is_available())
    torch.manual_seed(0)
    x, dy, bias = torch.randn(tokens, 24), torch.randn(tokens, 40), torch.randn(40)
    w = torch.randn(24, 40).T if transposed else torch.randn(40, 24)
    assert products._takes_onednn(x, w) == (tokens > 0 and torch.backends.mkldnn.is_available())
    strided, repeated = torch.stack([bias, bias + 1], -1)[:, 0], bias[:1].expand(40)
    for found, exact in (
        (base_product(x, w, strided), x.double() @ w.double().T + bias.double()),
        (base_product(x, w, repeated), x.double() @ w.double().T + repeated.double()),
        (base_product(x, w, bias), x.double() @ w.double().T + bias.double()),
        (base_product(x, w, None), x.double() @ w.double().T),
        (base_input_gradient(dy, w), dy.double() @ w.double()),
    ):
        torch.testing.assert_close(found, exact.float(), rtol=1e-5, atol=1e-5)


def test_turning_onednn_off_leaves_products_to_torch(monkeypatch):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products._takes_onednn(x, w)
        assert torch.equal(base_product(x, w, None), torch.nn.functional.linear(x, w))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_number_formats_leave_torchs_product(monkeypatch, dtype):
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    assert not products._takes_onednn(torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype))
