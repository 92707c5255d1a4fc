"""PRISM's steps: those of the product of two factors, clipped and noised in coordinates that no split of it changes."""

import numpy as np
import pytest
import torch
from small_runs import PRIVATE

from ffalora.audits.mechanism import probe_mechanism
from ffalora.audits.own import audit_own
from ffalora.config import ConfigError
from ffalora.federated.experiment import build
from ffalora.federated.simulate import run_round
from ffalora.training.coordinates import Whitening
from ffalora.training.optim import Moments
from ffalora.training.plain import plain_gradient
from ffalora.training.rates import HEAD_FACTOR
from ffalora.training.step import LogicalStep

NORMAL = {"optimizer__normalize": True, "optimizer__lr": 0.5}
QUIET = NORMAL | {
    "privacy__unit": "sample",
    "privacy__noise_multiplier": 1e-6,
    "privacy__noise": "seeded",
    "privacy__head_share": None,
}


def factors_of(layout, row):
    """The factors of every adapter in a row, float64."""
    return {(p.layer, p.tensor): row[p.columns].view(p.shape).double() for p in layout.places}


def filled(experiment, seed=0, size=0.3):
    """A row in which ``b`` is not zero."""
    row = experiment.strategy.begin().row.clone()
    generator = torch.Generator().manual_seed(seed)
    for place in experiment.adapters.layout.places:
        row[place.columns] += size * torch.randn(place.size, generator=generator)
    return row


def norms_of(experiment, row, samples, whitening):
    """Of each sample's gradient before clipping, at a row, in the coordinates of a round that ``whitening`` is of."""
    experiment.strategy.layout.scatter(row)
    engine, state = experiment.engine, row[None].clone()
    moments = Moments.zeros(engine.optimizer, 1, state.shape[1])
    step = LogicalStep(engine, experiment.participants[:1], state, None, 0.0, moments, None)
    step.whitening = whitening
    return step.passes([samples], 4096).read()[1]


def split_anew(experiment, row, seed=1):
    """The same products, of factors ``b q`` and ``q⁻¹ a``."""
    row, generator = row.clone(), torch.Generator().manual_seed(seed)
    turns = {}
    for place in experiment.adapters.layout.places:
        if place.tensor in ("lora_A", "lora_B"):
            rank = min(place.shape)
            q = turns.setdefault(
                place.layer, torch.randn(rank, rank, generator=generator).double() + 2 * torch.eye(rank)
            )
            own = row[place.columns].view(place.shape).double()
            row[place.columns] = (own @ q if place.tensor == "lora_B" else torch.linalg.solve(q, own)).float().flatten()
    return row


@pytest.fixture
def experiment(small):
    return build(small(federation__strategy="prism", adapter__head="trained", adapter__rank=3, **QUIET))


def lengths_of(adapters):
    """κ: the root mean square length of the rows of ``a``."""
    return {
        name: float(layer.lora_A.detach().double().square().sum(1).mean().sqrt())
        for name, layer in adapters.layers.items()
    }


def whitening(gram, damped, length):
    values, vectors = np.linalg.eigh(gram)
    return length * (vectors / np.sqrt(values + damped)) @ vectors.T


def test_a_sample_s_length_does_not_depend_on_how_the_product_is_split(experiment):
    """As it does for LoRA."""
    rows, samples = [filled(experiment, size=1.0)], experiment.participants[0].samples[:6]
    rows.append(split_anew(experiment, rows[0]))
    adapters = experiment.adapters
    whitening = Whitening.of(adapters, torch.full((adapters.layout.width,), 0.01).double())  # λ does not follow a split
    one, other = (norms_of(experiment, row, samples, whitening) for row in rows)
    torch.testing.assert_close(one, other, rtol=1e-3, atol=0)
    one, other = (norms_of(experiment, row, samples, None) for row in rows)
    assert float((one / other - 1).abs().max()) > 0.1


def test_a_private_step_is_the_sum_of_clipped_steps_of_the_product(experiment):
    """Against each sample's own gradient by ordinary autograd, in float64."""
    engine, layout = experiment.engine, experiment.strategy.layout
    row, client, limit = filled(experiment), experiment.participants[0], experiment.config.privacy.max_grad_norm
    layout.scatter(row)
    factors, lengths = factors_of(layout, row), lengths_of(experiment.adapters)
    mixes, units = {}, {}
    for name, layer in experiment.adapters.layers.items():
        a, b = (factors[name, tensor].numpy() for tensor in ("lora_A", "lora_B"))
        units[name] = 1 / (layer.scale * lengths[name])
        damped = (client.lr * units[name]) ** 2
        mixes[name] = [whitening(gram, own, lengths[name]) for gram, own in ((a @ a.T, 0.0), (b.T @ b, damped))]

    def turned(gradient):
        gradient = gradient.double().clone()
        for place in layout.places:
            if place.layer in mixes:
                of_a, of_b = map(torch.from_numpy, mixes[place.layer])
                own = gradient[place.columns].view(place.shape)
                gradient[place.columns] = (own @ of_a if place.tensor == "lora_B" else of_b @ own).flatten()
        return gradient

    drawn, total = engine.sample(client), torch.zeros(layout.width, dtype=torch.float64)
    for sample in drawn:
        inputs, targets = experiment.train.collate([sample])
        own, _ = plain_gradient(engine.model, experiment.adapters, engine.losses, inputs, targets, row, None)
        gradient = turned(own)
        total += gradient * min(1.0, limit / float(gradient.norm()))
    step = -client.lr * total / (limit * client.ledger.expected_batch)
    for place in layout.places:
        own = step[place.columns]
        own *= units[place.layer] if place.layer in mixes else HEAD_FACTOR
    expected, state = turned(step), row[None].clone()
    engine.train([client], state, 1)
    moved = (state[0] - row).double()
    assert float((moved - expected).norm()) < 1e-3 * float(expected.norm())


def test_a_first_step_is_ffa_lora_s_where_a_is_orthonormal(small):
    """``b`` is zero, so that ``a`` has no gradient; and as far as noise goes, it stays where it is."""
    found = {}
    for name in ("prism", "ffa"):
        changes = {"adapter__init": "orthonormal", "federation__local_steps": 1, "federation__rounds": 1}
        experiment = build(small(federation__strategy=name, **changes, **QUIET))
        server = experiment.strategy.begin()
        before = factors_of(experiment.strategy.layout, server.row.clone())
        run_round(experiment, server)
        found[name] = factors_of(experiment.strategy.layout, server.row)
    for (layer, tensor), value in found["prism"].items():
        wanted = found["ffa"].get((layer, tensor), before.get((layer, tensor)))
        if tensor == "lora_B":
            assert float(value.norm()) > 0
        torch.testing.assert_close(value, wanted if wanted is not None else value, rtol=1e-4, atol=1e-6)


def test_noise_turns_a_by_its_own_length_at_most_while_there_is_hardly_a_b(small):
    experiment = build(small(federation__strategy="prism"))
    adapters, row = experiment.adapters, experiment.strategy.begin().row
    whitening = Whitening.of(adapters, torch.full((adapters.layout.width,), 0.5).double())
    for name, (_, of_b) in whitening.at(row).mixes.items():
        assert float(torch.linalg.matrix_norm(0.5 * of_b, 2)) == pytest.approx(whitening.lengths[name])


@pytest.mark.parametrize(
    "changes", [{}, NORMAL, {"data__views": 2, "data__augment": "word-dropout"}, {"model__packed": False}]
)
def test_private_rounds_are_trained_and_charged_with_the_comparison_of_gradients_on(small, changes):
    experiment = build(small(federation__strategy="prism", adapter__head="trained", **PRIVATE, **changes))
    server = experiment.strategy.begin()
    run_round(experiment, server)
    run_round(experiment, server)
    assert bool(server.row.isfinite().all())
    steps = 2 * experiment.config.federation.local_steps
    assert [client.ledger.steps_taken for client in experiment.participants] == [steps] * 3


def test_one_record_moves_the_sum_that_is_noised_by_the_clipping_norm_at_most(small):
    config = small(federation__strategy="prism", adapter__head="trained", **PRIVATE)
    found = probe_mechanism(build(config), 2)
    assert found.holds and any(move.ratio > 0.99 for move in found.moves)


@pytest.mark.long
def test_canaries_of_its_steps_do_not_disprove_its_epsilon(small):
    found = audit_own(small(federation__strategy="prism", **PRIVATE), canaries=20, seconds=30.0)
    assert found.holds


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"optimizer__name": "adamw"}, r"optimizer\.name='adamw' .*'prism'.* set it to 'sgd'"),
        ({"optimizer__weight_decay": 0.1}, r"optimizer\.weight_decay=0\.1"),
        ({"federation__prox_mu": 0.1}, r"federation\.prox_mu=0\.1"),
        ({"optimizer__keep_moments": True}, r"keep_moments=True.*prism"),
        ({"privacy__mechanism": "banded-mf", **PRIVATE}, r"privacy\.mechanism='banded-mf'.*prism"),
        ({"adapter__method": "vera"}, r"adapter\.method='vera'.*prism"),
    ],
)
def test_what_speaks_of_factors_is_refused(small, changes, said):
    with pytest.raises(ConfigError, match=said):
        build(small(federation__strategy="prism", **changes))
