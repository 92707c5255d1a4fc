"""PRISM's steps: those of the product of two factors, clipped and noised in coordinates that no split of it changes."""

import numpy as np
import pandas
import pytest
import torch
from small_runs import CLIENT_LEVEL, PRIVATE, save_texts

from ffalora.audits.mechanism import probe_mechanism
from ffalora.audits.own import audit_own
from ffalora.config import ConfigError
from ffalora.federated import simulate as simulate_module
from ffalora.federated.experiment import build
from ffalora.federated.simulate import run_round, simulate
from ffalora.training.coordinates import ProductCoordinates, Whitening, _inverse_roots
from ffalora.training.detectors import UpdateLost
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
    client, width = experiment.participants[0], experiment.adapters.layout.width
    rates = torch.full((width,), 0.01, dtype=torch.float64)  # a small λ, which does not follow a split
    whitening = Whitening.of(experiment.adapters, [client], rates, 1, experiment.engine.workers)
    one, other = (norms_of(experiment, row, samples, whitening) for row in rows)
    torch.testing.assert_close(one, other, rtol=1e-2, atol=0)
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
        sigma, batch = client.ledger.noise_multiplier, client.ledger.expected_batch
        noise = sigma / batch * (engine.whitened * max(a.shape[1], len(b))) ** 0.5
        damped = (client.lr * units[name] * (1 + noise)) ** 2, 1e-4 * lengths[name] ** 2
        mixes[name] = [
            whitening(gram, own, lengths[name]) for gram, own in ((a @ a.T, damped[1]), (b.T @ b, damped[0]))
        ]

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
    """``b`` is zero, so that ``a`` has no gradient; there is next to no noise here."""
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
        torch.testing.assert_close(value, wanted if wanted is not None else value, rtol=2e-3, atol=1e-6)  # λ of a


@pytest.mark.parametrize("lr", [1.0, 0.01])
def test_noise_turns_a_by_less_than_its_own_length_in_a_whole_run(small, lr):
    """At every rate; LoRA's ``a`` moves with the rate."""
    noisy = PRIVATE | {"privacy__noise_multiplier": 30.0, "adapter__init": "orthonormal"}
    experiment = build(small(federation__strategy="prism", **noisy, **NORMAL | {"optimizer__lr": lr}))
    strategy, client, layout = experiment.strategy, experiment.participants[0], experiment.adapters.layout
    state = strategy.begin().row[None].clone()
    layout.scatter(state[0])
    lengths, before = lengths_of(experiment.adapters), factors_of(layout, state[0].clone())
    steps = experiment.engine.whitened
    experiment.engine.train([client], state, 1)
    after = factors_of(layout, state[0])
    for name, length in lengths.items():
        turned = float((after[name, "lora_A"] - before[name, "lora_A"]).norm(dim=1).mean()) / length
        assert turned < 1.5 / steps**0.5
        b, a, old = after[name, "lora_B"], after[name, "lora_A"], before[name, "lora_A"]
        assert float((b @ (a - old)).norm()) < 1.5 / steps**0.5 * float((b @ old).norm())


def test_a_step_that_is_lost_between_coordinates_and_state_is_noticed(small, monkeypatch):
    experiment = build(small(federation__strategy="prism", **PRIVATE, privacy__check_gradients=False))
    turned = ProductCoordinates.turned
    lost = lambda self, row: turned(self, row) if row.dtype == torch.float64 else torch.zeros_like(row)  # noqa: E731
    monkeypatch.setattr(ProductCoordinates, "turned", lost)
    with pytest.raises(UpdateLost, match="lora_B"):
        run_round(experiment, experiment.strategy.begin())


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(small, tmp_path, monkeypatch):
    config = small(federation__strategy="prism", adapter__head="trained", **PRIVATE)
    whole = simulate(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(simulate_module.Run, "is_over", lambda self: self.server.round == 1)
        simulate(config, tmp_path / "cut", progress=False)
    cut = simulate(config, tmp_path / "cut", resume=True, progress=False)
    assert [row["metrics"] for row in cut.rounds] == [row["metrics"] for row in whole.rounds]


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


def test_all_rows_of_a_user_move_the_sum_by_the_clipping_norm_at_most(small, tmp_path):
    table = pandas.read_csv(save_texts(tmp_path / "texts.csv"))
    table["author"] = [f"author {row // 3}" for row in range(len(table))]
    table.to_csv(tmp_path / "texts.csv", index=False)
    users = PRIVATE | {"privacy__unit": "user", "data__user": "author", "privacy__delta": 1e-3}
    experiment = build(small(data__name=str(tmp_path / "texts.csv"), federation__strategy="prism", **users))
    assert probe_mechanism(experiment, 2).holds
    row = run_round(experiment, experiment.strategy.begin())
    assert row["epsilon"] > 0


def test_canaries_that_would_read_nothing_are_refused(small):
    with pytest.raises(ConfigError, match=r"federation\.strategy='prism': canaries are read from .* set canaries to 0"):
        audit_own(small(federation__strategy="prism", **PRIVATE), canaries=20)


def test_several_participants_have_no_coordinates_in_common(small):
    experiment = build(small(federation__strategy="prism", **PRIVATE))
    rows = experiment.strategy.begin().row.repeat(2, 1)
    with pytest.raises(ValueError, match="one participant's"):
        experiment.engine.train(experiment.participants[:2], rows, 1)


def test_factors_that_are_not_finite_give_no_error_but_nan():
    found = _inverse_roots({("x", 0): torch.full((2, 2), torch.nan).double()}, {("x", 0): (1e-3, 0.0)})
    assert bool(found["x", 0].isnan().all())


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"optimizer__name": "adamw"}, r"optimizer\.name='adamw' .*'prism'.* set it to 'sgd'"),
        ({"optimizer__momentum": 0.9}, r"optimizer\.momentum=0\.9"),
        ({"adapter__rank": 17}, r"adapter\.rank=17: layer .* has no more than 16 directions"),
        (CLIENT_LEVEL, r"privacy\.unit='client'.*'prism'"),
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
