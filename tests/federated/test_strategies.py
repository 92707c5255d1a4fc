"""Every method against its definition: what the server ends with, what travels, what a client starts from."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_runs import CLIENT_LEVEL, PRIVATE
from transformers import LlamaConfig, LlamaForCausalLM

from ffalora.adapters import attach
from ffalora.config import AdapterConfig, ConfigError
from ffalora.federated import simulate as module
from ffalora.federated.cohort import train_cohort
from ffalora.federated.experiment import build
from ffalora.federated.simulate import close_round, end_round, open_round, run_round, simulate
from ffalora.federated.strategies import STRATEGIES, Answers, aggregation_gap
from ffalora.federated.strategies.factors import factors, low_rank_svd
from ffalora.runs.bundle import evaluate
from ffalora.runs.folder import METRICS
from ffalora.training.engine import Engine

WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
RANKS = [1, 2, 3]


class Case:
    """A method on the tiny model, with random rows of three clients in the place of training."""

    def __init__(self, small, name, **changes):
        self.experiment = build(small(federation__strategy=name, **changes))
        self.adapters, self.strategy = self.experiment.adapters, self.experiment.strategy
        self.untouched = {n: layer.base_weight().double().clone() for n, layer in self.adapters.layers.items()}
        self.server = self.strategy.begin()
        self.generator = torch.Generator().manual_seed(3)

    def round(self, move=0.3):
        """One round with random answers: the products b_k a_k that clients sent, by layer, and the gap."""
        self.strategy.load(self.server, trains=True)
        rows = self.strategy.start(self.server, [0, 1, 2])
        mask = self.strategy.mask(self.server, [0, 1, 2])
        noise = torch.randn(rows.shape, generator=self.generator) * move
        index = self.adapters.layout.parameter_index()
        rows += noise * (1 if mask is None else mask) * (1 if index is None else index >= 0)
        self.sent = {name: factors(self.adapters.layout, name, rows) for name in self.adapters.layers}
        self.rows = rows
        gap = self.strategy.aggregate(self.server, Answers([0, 1, 2], rows, WEIGHTS))
        self.server.round += 1
        self.strategy.load(self.server)
        return gap

    def mean_product(self, name):
        b, a = self.sent[name]
        return self.adapters.layers[name].scale * torch.einsum("c,cnr,crk->nk", WEIGHTS, b, a)

    def effective(self, name):
        """What the model adds to the untouched base weight."""
        layer = self.adapters.layers[name]
        return layer.base_weight().double() - self.untouched[name] + layer.delta().detach().double()


def close(got, wanted, tolerance=1e-5):
    assert float((got - wanted).detach().norm()) <= tolerance * float(wanted.norm())


def test_lora_averages_each_factor_and_measures_what_is_lost(small):
    case = Case(small, "lora")
    gap = case.round()
    missing = total = 0.0
    for name, layer in case.adapters.layers.items():
        b, a = case.sent[name]
        close(layer.lora_B.double(), torch.einsum("c,cnr->nr", WEIGHTS, b))
        close(layer.lora_A.double(), torch.einsum("c,crk->rk", WEIGHTS, a))
        missing += float((case.mean_product(name) - case.effective(name)).square().sum())
        total += float(case.mean_product(name).square().sum())
    assert gap == pytest.approx((missing / total) ** 0.5, rel=1e-4) and gap > 0.1
    assert gap == pytest.approx(aggregation_gap(case.adapters.layout, case.rows, WEIGHTS))


@pytest.mark.parametrize("name", ["ffa", "fedsvd", "rolora", "fedex", "flora"])
def test_exact_methods_end_with_the_average_of_the_products(small, name):
    case = Case(small, name)
    before = {n: torch.zeros_like(w) for n, w in case.untouched.items()}
    for _ in range(3):
        assert case.round() < 1e-6
        for layer in case.adapters.layers:
            wanted = case.mean_product(layer) + (before[layer] if name in ("fedex", "flora") else 0)
            close(case.effective(layer), wanted)
            residual = case.adapters.layers[layer].base_weight().double() - case.untouched[layer]
            before[layer] = residual.clone()


def test_fedsvd_leaves_an_orthonormal_a_and_the_product_unchanged(small):
    case = Case(small, "fedsvd")
    case.round()
    for name, layer in case.adapters.layers.items():
        a = layer.lora_A.detach().double()
        close(a @ a.T, torch.eye(len(a), dtype=torch.float64))
        close(case.effective(name), case.mean_product(name))


def test_fedsvd_keeps_a_while_b_is_zero(small):
    case = Case(small, "fedsvd")
    before = [layer.lora_A.detach().clone() for layer in case.adapters.layers.values()]
    case.round(move=0.0)
    for a, layer in zip(before, case.adapters.layers.values(), strict=True):
        assert torch.equal(a, layer.lora_A) and not layer.lora_B.any()


def test_fedsvd_renews_a_only_every_n_rounds_and_forgets_server_moments_then(small):
    case = Case(small, "fedsvd", federation__refactor_every=2, federation__server_optimizer="fedavgm")
    first = next(iter(case.adapters.layers.values())).lora_A.detach().clone()
    down = case.strategy.wire.bytes_down(case.server, [0])
    case.round()
    layer = next(iter(case.adapters.layers.values()))
    assert torch.equal(layer.lora_A, first) and "server.m.b" in case.server.tensors
    assert case.strategy.wire.bytes_down(case.server, [0]) == down
    case.round()
    assert not torch.equal(layer.lora_A, first) and "server.m.b" not in case.server.tensors
    extra = 4 * sum(each.lora_A.numel() for each in case.adapters.layers.values())
    assert case.strategy.wire.bytes_down(case.server, [0]) == down + extra
    assert case.strategy.wire.bytes_up(case.server) == down


def test_fedsvd_sends_a_renewed_a_to_whoever_may_have_sat_out_the_round_that_followed(small):
    case = Case(small, "fedsvd", federation__refactor_every=2, federation__participation=0.5)
    wire, layers = case.strategy.wire, case.adapters.layers.values()
    b, a = (4 * sum(getattr(layer, name).numel() for layer in layers) for name in ("lora_B", "lora_A"))
    sent = [wire.bytes_down(replace(case.server, round=number), [1]) for number in range(5)]
    assert sent == [b, b, a + b, a + b, a + b]


def test_rolora_alternates_and_leaves_the_other_factor_as_it_was(small):
    case = Case(small, "rolora", adapter__target_modules="all-linear")
    layers = case.adapters.layers.values()
    for number, trained in enumerate(("lora_B", "lora_A", "lora_B")):
        before = [(layer.lora_B.detach().clone(), layer.lora_A.detach().clone()) for layer in layers]
        sent = case.strategy.wire.bytes_up(case.server)
        case.round()
        assert {place.tensor for place in case.adapters.layout.places} == {trained}
        for (b, a), layer in zip(before, layers, strict=True):
            assert torch.equal(b, layer.lora_B) == (trained == "lora_A")
            assert torch.equal(a, layer.lora_A) == (trained == "lora_B")
        sizes = {name: 4 * sum(getattr(layer, name).numel() for layer in layers) for name in ("lora_A", "lora_B")}
        assert sent == sizes[trained]
        case.strategy.load(case.server, trains=True)
        assert case.strategy.wire.bytes_down(case.server, [0, 1, 2]) == 3 * sizes[trained], number


def test_rolora_sends_a_client_that_sat_out_nothing_that_nobody_has_trained(small):
    case = Case(small, "rolora", federation__participation=0.5, adapter__target_modules="all-linear")
    wire, layers = case.strategy.wire, case.adapters.layers.values()
    b, a = (4 * sum(getattr(layer, name).numel() for layer in layers) for name in ("lora_B", "lora_A"))
    sent = [wire.bytes_down(replace(case.server, round=number), [1]) for number in range(4)]
    assert sent == [b, b, a + b, a + b]


def test_fedsa_shares_a_and_leaves_every_client_its_b(small):
    case = Case(small, "fedsa")
    case.round()
    sent = case.sent
    case.strategy.load(case.server, trains=True)
    rows = case.strategy.start(case.server, [2, 0])
    for name in case.adapters.layers:
        b, a = factors(case.adapters.layout, name, rows)
        close(b[0], sent[name][0][2])
        close(b[1], sent[name][0][0])
        close(a[0], torch.einsum("c,crk->rk", WEIGHTS, sent[name][1]))
        assert torch.equal(a[0], a[1])
    numbers = sum(layer.lora_A.numel() for layer in case.adapters.layers.values())
    assert (
        case.strategy.wire.bytes_up(case.server)
        == 4 * numbers
        == 4 * len(case.strategy.wire.upload(case.server, rows[0]))
    )


def test_fedsa_keeps_the_b_of_a_client_that_dropped_out(small):
    experiment = build(small(federation__strategy="fedsa"))
    strategy, server = experiment.strategy, experiment.strategy.begin()
    opened = open_round(experiment, server)
    opened.cohort.arrives[1] = False
    report = train_cohort(experiment, server, opened.cohort, opened.rows)
    close_round(experiment, server, opened, report, 0.0)
    (next_start,) = strategy.start(server, [1])
    own = strategy.wire.personal
    assert torch.equal(next_start[own], opened.rows[1][own]) and bool(next_start[own].any())
    assert torch.equal(next_start[~own], server.row[~own])


def test_fedsa_never_lets_b_leave_the_client(small):
    case = Case(small, "fedsa")
    case.strategy.load(case.server, trains=True)
    row = case.strategy.start(case.server, [0])[0]
    changed = row.clone()
    for place in case.adapters.layout.places:
        if place.tensor == "lora_B":
            changed[place.start : place.start + place.size] += 1
    assert torch.equal(case.strategy.wire.upload(case.server, row), case.strategy.wire.upload(case.server, changed))
    assert torch.equal(case.strategy.wire.received(case.server, case.strategy.wire.upload(case.server, changed)), row)


def test_fedsb_averages_cores_and_sends_r_squared_numbers_a_layer(small):
    case = Case(small, "fedsb", adapter__init="orthonormal")
    case.round()
    for i, (name, layer) in enumerate(case.adapters.layers.items()):
        cores = case.rows[:, 4 * i : 4 * i + 4].view(3, 2, 2).double()
        products = layer.lora_B.double() @ cores @ layer.lora_A.double()
        close(case.effective(name), layer.scale * torch.einsum("c,cnk->nk", WEIGHTS, products))
    assert case.strategy.wire.bytes_up(case.server) == 4 * 4 * len(case.adapters.layers)


@pytest.mark.parametrize("one_pass", ["always", "never"])
def test_a_step_of_a_core_is_the_gradient_of_the_loss_times_the_learning_rate(small, one_pass):
    case = Case(small, "fedsb", federation__one_pass=one_pass, federation__local_steps=1)
    experiment, model = case.experiment, case.experiment.engine.model
    with torch.no_grad():
        for layer in case.adapters.layers.values():
            layer.lora_core.copy_(torch.eye(2))
    case.server.row = case.adapters.state()
    wanted = []
    for client in experiment.participants:
        inputs, targets = experiment.train.collate(experiment.engine.sample(client))
        loss = experiment.task.losses(model(**inputs), targets).mean()
        cores = [layer.lora_core for layer in case.adapters.layers.values()]
        wanted.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, cores)]))
    before, kept = case.server.row.clone(), {}
    original = case.strategy.aggregate
    case.strategy.aggregate = lambda s, answers: (kept.update(rows=answers.rows.clone()), original(s, answers))[1]
    run_round(experiment, case.server)
    close((before - kept["rows"]).double() / 0.5, torch.stack(wanted).double(), 1e-4)


@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_saving_keeps_residuals_in_adapters_of_a_greater_rank(small, name):
    case = Case(small, name)
    for _ in range(2):
        case.round()
    wanted = {layer: case.effective(layer) for layer in case.adapters.layers}
    case.strategy.export(case.server)
    for layer, total in wanted.items():
        assert torch.equal(case.adapters.layers[layer].base_weight().double(), case.untouched[layer])
        close(case.effective(layer), total)


@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_exact_methods_refuse_a_base_of_few_digits(small, name):
    with pytest.raises(ConfigError, match=rf"{name}.*bfloat16.*set model\.dtype=float32"):
        build(small(federation__strategy=name, model__dtype="bfloat16"))


@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_exact_methods_refuse_a_base_weight_that_other_modules_have_too(small, name):
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=True,
        )
    )  # fmt: skip
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["lm_head"], trained="both"))
    with pytest.raises(ConfigError, match=rf"lm_head shares its weight with model.embed_tokens, which .*{name}"):
        STRATEGIES[name](adapters, small(federation__strategy=name), 3)


@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_the_stated_gap_is_that_of_the_weights_the_model_uses(small, name, monkeypatch):
    case = Case(small, name)
    layers = case.adapters.layers
    kind = type(next(iter(layers.values())))
    original = kind.add_to_base

    def coarse(layer, delta):
        original(layer, delta)
        layer.base_layer.weight.data = layer.base_layer.weight.data.bfloat16().float()

    monkeypatch.setattr(kind, "add_to_base", coarse)
    case.round()
    before = {n: layer.base_weight().double() for n, layer in layers.items()}
    gap, missing, total = case.round(move=0.01), 0.0, 0.0
    for n, layer in layers.items():
        got = layer.base_weight().double() - before[n] + layer.delta().detach().double()
        missing += float((case.mean_product(n) - got).square().sum())
        total += float(case.mean_product(n).square().sum())
    assert gap == pytest.approx((missing / total) ** 0.5, rel=1e-3) and gap > 1e-3


def test_fedex_sends_the_residual_to_every_client_as_factors_or_whole(small):
    case = Case(small, "fedex", clients__count=7, adapter__rank=1)
    payload = case.strategy.wire.bytes_down(case.server, [0, 1, 2])
    assert payload == 3 * case.strategy.wire.bytes_up(case.server)
    case.round()
    residual = 4 * sum(min(w.numel(), 3 * sum(w.shape)) for w in case.untouched.values())
    assert case.strategy.wire.bytes_down(case.server, [0, 1, 2]) == payload + 7 * residual


@pytest.mark.parametrize("name", ["fedex", "flora"])
def test_what_was_added_to_the_base_is_sent_once_though_nobody_answers_the_next_round(small, name):
    case = Case(small, name)
    first = case.strategy.wire.bytes_down(case.server, [0, 1, 2])
    case.round()
    assert case.strategy.wire.bytes_down(case.server, [0, 1, 2]) > first
    end_round(case.experiment, case.server, None)
    assert case.strategy.wire.bytes_down(case.server, [0, 1, 2]) == first


def test_flora_starts_anew_each_round_from_another_a(small):
    case = Case(small, "flora")
    layer = next(iter(case.adapters.layers.values()))
    first = layer.lora_A.detach().clone()
    case.round()
    assert not layer.lora_B.any() and not torch.equal(first, layer.lora_A)


def test_flora_download_grows_with_the_sum_of_ranks(small):
    case = Case(small, "flora", clients__ranks=RANKS, adapter__rank=3)
    case.round()
    stack = 4 * sum(min(w.numel(), sum(RANKS) * sum(w.shape)) for w in case.untouched.values())
    assert case.strategy.wire.bytes_down(case.server, [0, 1, 2]) == 3 * stack


def test_flexlora_is_the_best_approximation_of_the_average_product(small):
    case = Case(small, "flexlora", clients__ranks=RANKS, adapter__rank=3)
    gap = case.round()
    missing = total = 0.0
    rows = case.strategy.start(case.server, [0, 1, 2])
    for name, layer in case.adapters.layers.items():
        u, s, vt = torch.linalg.svd(case.mean_product(name) / layer.scale)
        close(case.effective(name) / layer.scale, u[:, :3] * s[:3] @ vt[:3])
        missing, total = missing + float(s[3:].square().sum()), total + float(s.square().sum())
        b, a = factors(case.adapters.layout, name, rows)
        for client, rank in enumerate(RANKS):
            close(b[client] @ a[client], u[:, :rank] * s[:rank] @ vt[:rank])
    assert gap == pytest.approx((missing / total) ** 0.5, rel=1e-5)


def test_hetlora_weights_clients_by_the_norm_of_their_products(small):
    case = Case(small, "hetlora", clients__ranks=RANKS, adapter__rank=3)
    case.round()
    for name, layer in case.adapters.layers.items():
        b, a = case.sent[name]
        assert not b[0, :, 1:].any() and not a[1, 2:].any()
        norms = torch.stack([(b[c] @ a[c]).norm() for c in range(3)])
        close(layer.lora_B.double(), sum(norms[c] * b[c] for c in range(3)) / norms.sum())
        close(layer.lora_A.double(), sum(norms[c] * a[c] for c in range(3)) / norms.sum())


def test_hetlora_keeps_ranks_that_nobody_of_a_round_has(small):
    case = Case(small, "hetlora", adapter__rank=3, clients__ranks=[1, 2, 3])
    case.round()
    layout, before = case.strategy.layout, case.server.row[None].clone()
    rows = case.strategy.start(case.server, [0, 1]) + 0.1 * case.strategy.mask(case.server, [0, 1])
    case.strategy.aggregate(case.server, Answers([0, 1], rows, torch.tensor([0.5, 0.5], dtype=torch.float64)))
    for layer in case.adapters.layers:
        (old_b, old_a), (b, a) = (factors(layout, layer, each) for each in (before, case.server.row[None]))
        assert torch.equal(b[0, :, 2], old_b[0, :, 2]) and bool(b[0, :, 2].any())
        assert torch.equal(a[0, 2], old_a[0, 2]) and bool(a[0, 2].any())
        assert not torch.equal(b[0, :, :2], old_b[0, :, :2]) and not torch.equal(a[0, :2], old_a[0, :2])


def test_hetlora_prunes_ranks_that_shrank_and_keeps_those_that_grew(small):
    case = Case(small, "hetlora", adapter__rank=4, federation__rank_pruning=0.5)
    case.round()
    assert case.strategy.ranks(case.server) == [4, 4, 4]
    case.strategy.load(case.server, trains=True)
    rows = case.strategy.start(case.server, [0, 1, 2])
    rows[0] *= 0.5
    rows[1] *= 2.0
    case.strategy.aggregate(case.server, Answers([0, 1, 2], rows, WEIGHTS))
    case.strategy.load(case.server, trains=True)
    assert case.strategy.ranks(case.server) == [2, 4, 4]
    assert case.strategy.wire.bytes_up(case.server, 0) * 2 == case.strategy.wire.bytes_up(case.server, 1)


def test_hetlora_s_model_has_no_ranks_that_every_client_gave_up(small):
    case = Case(small, "hetlora", adapter__rank=4, federation__rank_pruning=0.5)
    case.round()
    case.strategy.load(case.server, trains=True)
    rows = case.strategy.start(case.server, [0, 1, 2])
    for kept, ranks in ((4, [2, 4, 4]), (2, [2, 2, 2])):
        rows[[0] if kept == 4 else [1, 2]] *= 0.5
        case.strategy.aggregate(case.server, Answers([0, 1, 2], rows, WEIGHTS))
        case.strategy.load(case.server, trains=True)
        assert case.strategy.ranks(case.server) == ranks
        for layer in case.adapters.layers:
            b, a = factors(case.strategy.layout, layer, case.server.row[None])
            assert bool(b[0, :, 2:].any()) == bool(a[0, 2:].any()) == (kept == 4)
        rows = case.strategy.start(case.server, [0, 1, 2])
    assert torch.equal(rows[0], case.server.row)


@pytest.mark.parametrize("name", ["flora", "flexlora", "hetlora"])
def test_layers_of_a_rank_of_their_own_are_counted_and_kept_whole_where_a_client_s_rank_is_not_cut(small, name):
    case = Case(small, name, adapter__rank=2, adapter__rank_pattern={"query": 4})
    layout = case.adapters.layout
    assert case.strategy.wire.bytes_up(case.server, 0) == 4 * layout.size
    case.round()
    if name == "flora":
        stack = sum(min(w.numel(), 3 * case.adapters.layers[n].rank * sum(w.shape)) for n, w in case.untouched.items())
        assert case.strategy.wire.bytes_down(case.server, [0]) == 4 * 3 * stack
    if name == "hetlora":
        case.server.tensors["ranks"][0] = 1
        row = case.strategy.start(case.server, [0, 1])[1]
        assert torch.equal(row, case.server.row)


@pytest.mark.parametrize("name", ["flora", "flexlora", "hetlora"])
@pytest.mark.parametrize("private", [{}, PRIVATE])
def test_a_client_never_gets_numbers_outside_its_rank(small, name, private, monkeypatch):
    case = Case(small, name, clients__ranks=RANKS, adapter__rank=3, **private)
    seen = []
    original = case.strategy.aggregate
    case.strategy.aggregate = lambda server, answers: (seen.append(answers.rows), original(server, answers))[1]
    for _ in range(2):
        run_round(case.experiment, case.server)
    for rows in seen:
        for layer in case.adapters.layers:
            b, a = factors(case.adapters.layout, layer, rows)
            for client, rank in enumerate(RANKS):
                assert not b[client, :, rank:].any() and not a[client, rank:].any()
                assert a[client, :rank].all()


@pytest.mark.parametrize("shape", [(7, 3, 9), (4, 11, 5), (6, 1, 6)])
def test_the_low_rank_svd_is_the_svd_of_the_product(shape):
    n, q, k = shape
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(n, q, generator=generator, dtype=torch.float64)
    down = torch.randn(q, k, generator=generator, dtype=torch.float64)
    u, s, vt = low_rank_svd(up, down)
    close(u * s @ vt, up @ down, 1e-12)
    close(s, torch.linalg.svdvals(up @ down)[: len(s)], 1e-12)
    close(vt @ vt.T, torch.eye(len(s), dtype=torch.float64), 1e-12)


def _ranked(name):
    return {"clients__ranks": RANKS, "adapter__rank": 3} if STRATEGIES[name].takes_ranks else {}


@pytest.mark.long
@pytest.mark.parametrize("name", STRATEGIES)
def test_interrupted_runs_of_every_method_resume_bit_for_bit_and_their_adapter_gives_their_metrics(
    small, tmp_path, monkeypatch, name
):
    config = small(federation__strategy=name, **PRIVATE, **_ranked(name))
    whole = simulate(config, tmp_path / "whole", progress=False)
    fresh = build(config)
    assert whole.summary["trained_numbers"] == fresh.adapters.layout.size, "of the adapter as it was trained, not saved"
    assert whole.summary["bytes_up"] <= 3 * 3 * whole.summary["bytes_up_per_client_round"]
    assert whole.summary["bytes_up_per_client_round"] == fresh.strategy.wire.bytes_up(fresh.strategy.begin())
    original, calls = Engine.train, []

    def stop(*arguments, **options):
        calls.append(1)
        if len(calls) == 5 or (len(calls) == 2 and len(arguments[1]) > 1):
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(Engine, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate(config, tmp_path / "cut", progress=False)
    monkeypatch.setattr(Engine, "train", original)
    simulate(config, tmp_path / "cut", resume=True, progress=False)
    first, second = (load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    rows = [
        [json.loads(line) | {"seconds": 0} for line in (tmp_path / run / METRICS).read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
    if name != "fedsa":
        assert evaluate(tmp_path / "whole") == pytest.approx(whole.rounds[-1]["metrics"], abs=1e-5)


def test_a_finished_run_that_is_resumed_says_of_itself_what_it_said_before(small, tmp_path):
    modules = ["query", "intermediate.dense"]
    config = small(federation__strategy="rolora", federation__rounds=2, adapter__target_modules=modules)
    first = simulate(config, tmp_path / "run", progress=False)
    assert simulate(config, tmp_path / "run", resume=True, progress=False).summary == first.summary


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if s.linear and not (s.personal or s.whitens)])
def test_linear_methods_take_client_level_privacy(small, name):
    experiment = build(small(federation__strategy=name, clients__count=6, **CLIENT_LEVEL))
    server = experiment.strategy.begin()
    for _ in range(2):
        row = run_round(experiment, server)
    assert row["epsilon"] > 0 and server.row.isfinite().all()


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if not s.linear])
@pytest.mark.parametrize(
    "changes,key", [(CLIENT_LEVEL, "privacy.unit"), ({"federation__server_optimizer": "fedadam"}, "server_optimizer")]
)
def test_methods_whose_server_needs_single_rows_refuse_what_needs_sums(small, name, changes, key):
    with pytest.raises(ConfigError, match=rf"{key}.*{name}"):
        build(small(federation__strategy=name, **changes))


def test_client_level_privacy_refuses_methods_with_personal_factors(small):
    assert [n for n, s in STRATEGIES.items() if s.personal] == ["fedsa"]
    with pytest.raises(
        ConfigError, match=r"privacy\.unit='client'.*fedsa.*can: lora, ffa, fedsvd, fedsb, rolora, lalora$"
    ):
        build(small(federation__strategy="fedsa", **CLIENT_LEVEL))
    assert "client level" not in STRATEGIES["fedsa"].facts.privacy


def test_methods_that_give_columns_another_meaning_refuse_to_keep_moments(small):
    with pytest.raises(ConfigError, match="keep_moments"):
        build(small(federation__strategy="fedsvd", optimizer__keep_moments=True))


def test_methods_of_one_rank_refuse_ranks_by_name(small):
    with pytest.raises(ConfigError, match=r"clients\.ranks=.*ffa.*hetlora"):
        build(small(clients__ranks=[1, 1, 2]))


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if s.random_init])
def test_factors_taken_from_the_base_weight_are_refused_where_the_base_is_needed(small, name):
    with pytest.raises(ConfigError, match=r"adapter\.init='pissa'"):
        build(small(federation__strategy=name, adapter__init="pissa"))


@pytest.mark.parametrize("name", ["flexlora", "hetlora"])
def test_factors_taken_from_the_base_weight_are_refused_where_a_client_s_rank_would_cut_them(small, name):
    changes = {"federation__strategy": name, "adapter__init": "pissa", "adapter__rank": 3}
    build(small(clients__ranks=[3, 3, 3], **changes))
    with pytest.raises(ConfigError, match=r"adapter\.init='pissa'.*clients\.ranks=\[1, 3, 3\]"):
        build(small(clients__ranks=[1, 3, 3], **changes))
    if name == "hetlora":
        with pytest.raises(ConfigError, match=r"adapter\.init='pissa'.*federation\.rank_pruning=0\.5"):
            build(small(federation__rank_pruning=0.5, **changes))


def test_all_methods_start_from_the_unchanged_model(small):
    for name in STRATEGIES:
        experiment = build(small(federation__strategy=name))
        module.evaluate_views(experiment, experiment.strategy.begin())
        assert all(not layer.delta().any() for layer in experiment.adapters.layers.values()), name


@pytest.mark.parametrize(("name", "trained"), [("ffa", "both"), ("lora", "a"), ("rolora", "core"), ("fedsb", "both")])
def test_another_trained_factor_than_the_method_s_is_refused(small, name, trained):
    with pytest.raises(ConfigError, match=rf"adapter\.trained='{trained}'.*federation\.strategy='{name}' trains"):
        build(small(federation__strategy=name, adapter__trained=trained))


@pytest.mark.parametrize("name", ["fedprox", "FedProx"])
def test_fedprox_is_answered_with_the_key_that_switches_it_on(small, name):
    with pytest.raises(ConfigError, match=r"federation\.prox_mu.*one of lora, ffa"):
        build(small(federation__strategy=name))


@pytest.mark.parametrize("name", STRATEGIES)
def test_neither_starting_nor_averaging_reads_or_writes_the_trained_factors_of_the_model(small, name):
    case, other = Case(small, name), Case(small, name)
    for layer in other.adapters.layers.values():
        layer.trained_before = {n: factor.detach().clone().fill_(7.0) for n, factor in layer.trained().items()}
    with torch.no_grad():
        for layer in other.adapters.layers.values():
            for n, factor in layer.trained().items():
                factor.copy_(layer.trained_before[n])
    ended = []
    for each in (case, other):
        rows = each.strategy.start(each.server, [0, 1, 2])
        rows = rows + torch.arange(3)[:, None] * 0.1 + 0.1
        each.strategy.aggregate(each.server, Answers([0, 1, 2], rows, WEIGHTS))
        ended.append(each.server.row)
    assert torch.equal(*ended)
    for layer in other.adapters.layers.values():
        assert all(torch.equal(factor, layer.trained_before[n]) for n, factor in layer.trained().items())
