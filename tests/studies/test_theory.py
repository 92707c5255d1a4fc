"""Every measurement against a closed form, a dense matrix or a drawn sample, on models small enough for it."""

import math

import numpy as np
import pytest
import torch
from tiny import losses, tiny_data, tiny_model

from ffalora.adapters import AdapterConfig, attach
from ffalora.studies.theory.convergence import LAWS, fit_curve, fit_law
from ffalora.studies.theory.gradients import layer_norms, sample_squares, spread
from ffalora.studies.theory.smoothness import largest_eigenvalue, plain_loss, smoothness

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Tiny:
    """A tiny model with adapters on two layers, factors of a size that matters, and two batches."""

    def __init__(self, trained):
        self.model = tiny_model().double()
        config = AdapterConfig(rank=2, trained=trained, target_modules=["query", "value"], layers_to_transform=[1])
        self.adapters = attach(self.model, config)
        for i, layer in enumerate(self.adapters.layers.values()):
            layer.lora_A.data = 0.4 * normal(*layer.lora_A.shape, seed=i)
            layer.lora_B.data = 0.4 * normal(*layer.lora_B.shape, seed=10 + i)
        data = tiny_data(12)
        self.batches = [data.collate(range(8)), data.collate(range(8, 12))]
        self.terms = self.model, self.adapters, losses, self.batches


class TestSmoothness:
    def test_the_plain_loss_and_its_gradient_are_the_models_own(self):
        tiny = Tiny("both")
        layers = tiny.adapters.layers
        own = sum(losses(tiny.model(**x), y).sum() for x, y in tiny.batches) / 12
        own.backward()
        factors = {
            n: tuple(f.detach().requires_grad_() for f in layer.factors().values()) for n, layer in layers.items()
        }
        weights = {n: layers[n].base_weight() + layers[n].scale * (b @ a) for n, (b, a) in factors.items()}
        plain = plain_loss(*tiny.terms, weights)
        plain.backward()
        torch.testing.assert_close(plain, own, rtol=1e-6, atol=1e-8)
        for name, (b, a) in factors.items():
            torch.testing.assert_close(b.grad, layers[name].lora_B.grad, rtol=1e-5, atol=1e-8)
            torch.testing.assert_close(a.grad, layers[name].lora_A.grad, rtol=1e-5, atol=1e-8)

    def test_lanczos_finds_the_largest_eigenvalue_of_a_known_matrix_whatever_its_sign(self):
        q = torch.linalg.qr(normal(30, 30))[0]
        for largest in (7.0, -7.0):
            matrix = q @ torch.diag(torch.cat([torch.tensor([largest]), torch.linspace(-3, 3, 29)]).double()) @ q.T
            found = largest_eigenvalue(lambda p, m=matrix: 0.5 * p[0] @ m @ p[0], [normal(30, seed=4)], 1e-8)
            assert found == pytest.approx(largest, rel=1e-6)

    def test_a_function_of_two_numbers_is_solved_densely(self):
        found = largest_eigenvalue(lambda p: p[0].square().sum() - 4 * p[1].square().sum(), [normal(1), normal(1)])
        assert found == pytest.approx(-8.0)

    @pytest.mark.long
    @pytest.mark.parametrize("trained", ["b", "both"])
    def test_it_is_the_norm_of_the_dense_hessian_and_below_its_bound(self, trained):
        tiny = Tiny(trained)
        found = smoothness(*tiny.terms, tolerance=1e-6)
        layers = list(tiny.adapters.layers.items())
        bs, az = ([getattr(layer, name).detach() for _, layer in layers] for name in ("lora_B", "lora_A"))
        sizes = [t.numel() for t in [*bs, *az]]

        def of_flat(flat):
            parts = [p.view(t.shape) for p, t in zip(flat.split(sizes), [*bs, *az], strict=True)]
            own = {
                n: layer.base_weight().detach() + layer.scale * (b @ a)
                for (n, layer), b, a in zip(layers, parts[: len(layers)], parts[len(layers) :], strict=True)
            }
            return plain_loss(*tiny.terms, own)

        flat = torch.cat([t.reshape(-1) for t in [*bs, *az]])
        hessian = torch.autograd.functional.hessian(of_flat, flat)
        count = sum(sizes[: len(layers)])
        b_alone = float(torch.linalg.matrix_norm(hessian[:count, :count], ord=2))
        whole = b_alone if trained == "b" else float(torch.linalg.matrix_norm(hessian, ord=2))
        assert found.b_alone == pytest.approx(b_alone, rel=1e-4)
        assert found.factors == pytest.approx(whole, rel=1e-4)
        assert found.factors <= found.bound and found.b_alone <= found.bound_b
        weights = [(layer.base_weight() + layer.delta()).detach().requires_grad_() for _, layer in layers]
        loss = plain_loss(*tiny.terms, dict(zip(tiny.adapters.layers, weights, strict=True)))
        slopes = torch.autograd.grad(loss, weights)
        s = layers[0][1].scale
        norm_a, norm_b, norm_g = ([np.linalg.norm(t.numpy(), 2) for t in each] for each in (az, bs, slopes))
        fixed = s**2 * max(norm_a) ** 2 * found.weights
        both = s**2 * max(a**2 + b**2 for a, b in zip(norm_a, norm_b, strict=True)) * found.weights + s * max(norm_g)
        assert found.bound_b == pytest.approx(fixed, rel=1e-6)
        assert found.bound == pytest.approx(fixed if trained == "b" else both, rel=1e-6)

    def test_the_bounds_are_reached_by_a_quadratic_loss(self):
        """loss = L/2·‖ΔW‖² with orthonormal a: the Hessian over b is exactly s²‖a‖²L."""
        a, scale, lipschitz = 3.0 * torch.linalg.qr(normal(8, 2))[0].T, 0.5, 2.0
        found = largest_eigenvalue(lambda p: lipschitz / 2 * (scale * p[0] @ a).square().sum(), [normal(6, 2)], 1e-8)
        assert found == pytest.approx(scale**2 * 9.0 * lipschitz)

    def test_the_cross_term_is_reached_where_the_loss_is_linear(self):
        """loss = ⟨G, s·b a⟩ has no curvature in ΔW; over b and a it has s‖G‖, over b alone none."""
        g, scale = normal(6, 8), 0.5
        found = largest_eigenvalue(lambda p: (g * scale * (p[0] @ p[1])).sum(), [normal(6, 2), normal(2, 8)], 1e-8)
        assert abs(found) == pytest.approx(scale * float(torch.linalg.matrix_norm(g, ord=2)), rel=1e-6)

    def test_a_merged_adapter_is_refused(self):
        tiny = Tiny("b")
        tiny.adapters.merge()
        with pytest.raises(ValueError, match="unmerged"):
            smoothness(*tiny.terms)


class TestGradients:
    @pytest.mark.parametrize("trained", ["b", "both"])
    def test_norms_are_those_of_one_sample_at_a_time(self, trained):
        tiny = Tiny(trained)
        tiny.model.float()
        norms = layer_norms(tiny.adapters.layout, sample_squares(*tiny.terms))
        data, wanted = tiny_data(12), []
        for i in range(12):
            inputs, targets = data.collate([i])
            tiny.model.zero_grad()
            losses(tiny.model(**inputs), targets).sum().backward()
            wanted.append(
                math.sqrt(sum(float(p.grad.square().sum()) for p in tiny.model.parameters() if p.requires_grad))
            )
        np.testing.assert_allclose(norms["all"].numpy(), wanted, rtol=1e-4)
        tensors = {place.name for place in tiny.adapters.layout.places}
        assert set(norms) == tensors | {"all"}
        squares = sum(norms[name].square() for name in tensors)
        torch.testing.assert_close(squares, norms["all"].square())

    def test_spread_of_known_numbers_is_theirs(self):
        found = spread(torch.arange(1.0, 102.0), max_grad_norm=81.0)
        assert found.quantiles == pytest.approx((6.0, 26.0, 51.0, 76.0, 96.0))
        assert found.clipped == pytest.approx(20 / 101)
        assert found.variation == pytest.approx(np.arange(1, 102).std(ddof=1) / 51)
        with pytest.raises(ValueError, match="at least two"):
            spread(torch.ones(1), 1.0)


class TestConvergence:
    @pytest.mark.parametrize(("law", "truth"), [("power", (0.3, 2.0, 0.7)), ("exponential", (0.3, 2.0, 0.12))])
    def test_a_law_is_found_again_and_preferred(self, law, truth):
        t = np.arange(1.0, 41.0)
        loss = LAWS[law](t, *truth) + 0.005 * np.random.default_rng(0).standard_normal(40)
        best = fit_curve(t, loss)[0]
        assert best.law == law and best.determined and best.r2 > 0.99
        for estimate, true in zip((best.limit, best.amplitude, best.rate), truth, strict=True):
            assert estimate.low < true < estimate.high

    def test_intervals_cover_the_truth_as_often_as_they_say(self):
        rng, t, covered = np.random.default_rng(1), np.arange(1.0, 31.0), 0
        for _ in range(100):
            fit = fit_law("power", t, LAWS["power"](t, 0.3, 2.0, 0.7) + 0.02 * rng.standard_normal(30))
            covered += fit.rate.low < 0.7 < fit.rate.high
        assert 88 <= covered <= 100

    def test_a_flat_noisy_curve_determines_no_rate(self):
        loss = 1.0 + 0.1 * np.random.default_rng(0).standard_normal(25)
        assert not any(fit.determined and fit.r2 > 0.5 for fit in fit_curve(np.arange(1.0, 26.0), loss))

    def test_residuals_that_hang_together_are_told(self):
        t = np.arange(1.0, 61.0)
        fit = fit_law("power", t, 0.3 + t**-0.7 + 0.1 * np.sin(t / 8))
        assert fit.autocorrelation > 0.7

    @pytest.mark.parametrize(
        ("t", "loss", "said"),
        [
            ([1, 2, 3, 4], [1, 1, 1, 1], "at least 5"),
            ([0, 1, 2, 3, 4], [1.0] * 5, "positive"),
            ([1, 2, 3, 4, 5], [1, 1, 1, 1, math.nan], "finite"),
        ],
    )
    def test_curves_without_a_law_are_refused(self, t, loss, said):
        with pytest.raises(ValueError, match=said):
            fit_law("power", t, loss)
