"""Discordance and noise against closed forms, dense matrices, and noise drawn from the package's own source."""

import math

import numpy as np
import pytest
import torch
from fabricated_theory import expected_square_of_discordance
from tiny import participants, tiny_engine, tiny_model

from ffalora.adapters import AdapterConfig, attach
from ffalora.federated.strategies.factors import aggregation_gap
from ffalora.privacy.noise import SeededNoise
from ffalora.studies.theory.discordance import discordance, round_discordance
from ffalora.studies.theory.noise import (
    NoiseParts,
    averaged_variance,
    decompose,
    draw_noise,
    expected_parts,
    squared_parts,
    step_variance,
)

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestDiscordance:
    def test_it_is_the_norm_of_mean_product_minus_product_of_means(self):
        b, a = normal(3, 7, 2), normal(3, 2, 5, seed=1)
        wanted = (WEIGHTS[:, None, None] * (b @ a)).sum(0) - torch.einsum("c,cnr->nr", WEIGHTS, b) @ torch.einsum(
            "c,crk->rk", WEIGHTS, a
        )
        assert discordance(b, a, WEIGHTS, 0.5) == pytest.approx(0.5 * float(wanted.norm()), rel=1e-12)

    @pytest.mark.parametrize("clients", [2, 3, 7])
    def test_it_is_exactly_zero_where_a_is_shared_or_one_client_is_all(self, clients):
        weights = torch.full((clients,), 1 / clients, dtype=torch.float64)
        shared = normal(2, 5, seed=1).expand(clients, 2, 5)
        assert discordance(normal(clients, 7, 2), shared, weights, 3.0) == 0.0
        assert discordance(normal(1, 7, 2), normal(1, 2, 5), torch.ones(1), 3.0) == 0.0

    def test_two_clients_have_the_closed_form_w1_w2_times_the_differences(self):
        b, a, w = normal(2, 7, 2), normal(2, 2, 5, seed=1), torch.tensor([0.3, 0.7], dtype=torch.float64)
        wanted = 0.3 * 0.7 * float(((b[1] - b[0]) @ (a[1] - a[0])).norm())
        assert discordance(b, a, w, 1.0) == pytest.approx(wanted, rel=1e-12)

    def test_weights_that_do_not_sum_to_one_are_refused(self):
        with pytest.raises(ValueError, match="sum to 1"):
            discordance(normal(3, 4, 2), normal(3, 2, 4), 2 * WEIGHTS, 1.0)

    @pytest.mark.parametrize("trained", ["b", "both"])
    def test_a_round_agrees_with_the_gap_of_the_strategies(self, trained):
        adapters = attach(tiny_model(), AdapterConfig(rank=3, trained=trained, target_modules="all-linear"))
        start = adapters.state()
        rows = start + 0.1 * torch.randn(3, len(start), generator=torch.Generator().manual_seed(2))
        found = round_discordance(adapters, start, rows, WEIGHTS)
        if trained == "b":
            assert found.total == 0.0 and set(found.layers.values()) == {0.0} and found.relative == 0.0
        else:  # b started at zero: the move is the mean product
            assert found.relative == pytest.approx(aggregation_gap(adapters.layout, rows, WEIGHTS), rel=1e-9)
            assert found.total == pytest.approx(math.sqrt(sum(d * d for d in found.layers.values())))
        assert found.update > 0


class TestNoise:
    n, k, r, scale = 5, 16, 3, 0.7

    def test_the_parts_sum_to_the_whole_change_of_the_product(self):
        b, a, xb, xa = normal(12, 3), normal(3, 9, seed=1), normal(12, 3, seed=2), normal(3, 9, seed=3)
        linear, quadratic = decompose(b, a, xb, xa, self.scale)
        whole = self.scale * ((b + xb) @ (a + xa) - b @ a)
        torch.testing.assert_close(linear + quadratic, whole)
        linear, quadratic = decompose(b, a, xb, None, self.scale)
        torch.testing.assert_close(linear, self.scale * ((b + xb) @ a - b @ a))
        assert not quadratic.any()

    def drawn(self, trained, stds, draws=400):
        """Mean squared parts, and their standard errors, of noise that the package's own source adds to one layer."""
        model = torch.nn.Sequential(torch.nn.Linear(self.k, self.n))
        adapters = attach(model, AdapterConfig(rank=self.r, trained=trained, target_modules="all-linear"))
        (layer,) = adapters.layers.values()
        b, a = normal(self.n, self.r), 0.5 * normal(self.r, self.k, seed=1)
        found = []
        for draw in range(draws):
            row = draw_noise(adapters.layout, SeededNoise.from_seed(draw), 5, stds).double()
            xb = row[layer.places["lora_B"] :][: self.n * self.r].view(self.n, self.r)
            xa = row[layer.places["lora_A"] :][: self.r * self.k].view(self.r, self.k) if trained == "both" else None
            parts = squared_parts(b, a, xb, xa, self.scale)
            found.append((parts.linear, parts.quadratic))
        found = np.array(found)
        expected = expected_parts(b, a, self.scale, sum(s * s for s in stds), trains_a=trained == "both")
        return found.mean(0), found.std(0) / math.sqrt(draws), expected

    @pytest.mark.parametrize("trained", ["b", "both"])
    @pytest.mark.parametrize("stds", [[0.4], [0.4, 0.3, 0.2]], ids=["one-step", "three-steps"])
    def test_the_closed_form_is_the_mean_of_drawn_noise(self, trained, stds):
        mean, error, expected = self.drawn(trained, stds)
        assert abs(mean[0] - expected.linear) < 4 * error[0]
        assert expected.quadratic > 0.1 * expected.linear if trained == "both" else expected.quadratic == 0.0
        assert abs(mean[1] - expected.quadratic) <= 4 * error[1]
        assert error[0] < 0.05 * expected.linear  # fine enough to notice a wrong factor

    def test_the_noise_is_what_the_engine_adds(self):
        noisy, adapters = tiny_engine(privacy={"noise_multiplier": 1.0})
        rows = [adapters.state()[None].clone() for _ in range(2)]
        for row, sigma in zip(rows, (1.0, 0.0), strict=True):
            noisy.train(participants(1, samples=40, sigma=sigma), row, 1)
        std = math.sqrt(step_variance(1.0 * 0.5, 8.0, 0.5))
        wanted = draw_noise(adapters.layout, noisy.noise, 0, [std])
        torch.testing.assert_close((rows[0] - rows[1])[0], -wanted, rtol=1e-4, atol=1e-6)

    def test_averaging_divides_the_variance_of_equal_clients_by_their_number(self):
        assert averaged_variance([2.0] * 4, [0.25] * 4) == pytest.approx(0.5)
        assert (NoiseParts(1.0, 3.0) + NoiseParts(1.0, 1.0)) / 2 == NoiseParts(1.0, 2.0)
        assert NoiseParts(1.0, 3.0).quadratic_share == 0.75 and NoiseParts(0.0, 0.0).quadratic_share == 0.0

    def test_noise_alone_makes_lora_discordant_as_much_as_the_closed_form_says(self):
        weights, draws, variance = [0.5, 0.3, 0.2], 1500, 0.16
        generator = torch.Generator().manual_seed(0)
        b, a = normal(1, 12, 3), normal(1, 3, 9, seed=1)
        squares = []
        for _ in range(draws):
            xb = 0.4 * torch.randn(3, 12, 3, generator=generator, dtype=torch.float64)
            xa = 0.4 * torch.randn(3, 3, 9, generator=generator, dtype=torch.float64)
            squares.append(discordance(b + xb, a + xa, torch.tensor(weights, dtype=torch.float64), 0.7) ** 2)
        wanted = expected_square_of_discordance(12, 9, 3, 0.7, variance, weights)
        assert abs(np.mean(squares) - wanted) < 4 * np.std(squares) / math.sqrt(draws)
        equal = expected_square_of_discordance(12, 9, 3, 0.7, variance, [0.25] * 4)
        assert equal == pytest.approx(0.7**2 * variance**2 * 12 * 9 * 3 * (1 - 1 / 4) / 4)
