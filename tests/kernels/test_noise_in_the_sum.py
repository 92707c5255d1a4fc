"""Noise that is in the sum already: a negative deviation adds none, and is still taken off Adam's second moment."""

import pytest
import torch

import ffalora_kernels as ffk
from ffalora_kernels.reference import gaussian_ref


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_noise_added_before_the_step_gives_what_noise_added_in_it_gives(backend, optimizer):
    torch.manual_seed(0)
    p, std, key = 1001, 3.0, 77
    total = torch.randn(1, p, dtype=torch.float64)
    noisy = total + std * gaussian_ref(key, 5, 2, 0, torch.arange(p))
    start, results = torch.randn(1, p), []
    for summed, deviation in ((total, std), (noisy, -std)):
        state, moments = start.clone(), {}
        if optimizer == "adamw":
            moments = {"exp_avg": torch.zeros(1, p), "exp_avg_sq": torch.zeros(1, p), "dp_bias_correction": True}
        with ffk.use_backend(backend):
            ffk.privatize_step_(
                state, summed, client_id=torch.tensor([5]), step=torch.tensor([2]), age=torch.tensor([1]),
                noise_std=torch.tensor([deviation]).double(), denominator=torch.tensor([4.0]).double(),
                lr=torch.tensor([0.1]).double(), key=key, optimizer=optimizer, beta1=0.9, **moments,
            )  # fmt: skip
        results.append(state)
    assert (results[0] != start).any()
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
