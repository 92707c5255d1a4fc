"""Clients at their own sites against the simulator, in one process: equal adapters, own accounts, faults by name."""

import json

import numpy as np
import pytest
import torch
from small_runs import CLIENT_LEVEL, PRIVATE, SIMULATED

from ffalora.config import ConfigError
from ffalora.data.embedded import EMBEDDED
from ffalora.federated.batch import with_batch
from ffalora.federated.experiment import build
from ffalora.federated.flower.policy import SitePolicy
from ffalora.federated.flower.rounds import Exchange, check_range, check_remote, check_secure_aggregation, remote_round
from ffalora.federated.flower.site import NobodyWaits, Site
from ffalora.federated.flower.terms import Terms
from ffalora.federated.partition import Partition
from ffalora.federated.simulate import run_round
from ffalora.federated.strategies import STRATEGIES
from ffalora.files.numbers import rounded_up
from ffalora.privacy.accounting import PrivacyBudgetSpent


def sites_of(config, folder, clients=range(3)):
    return [Site(config, client, folder / str(client), policy=SIMULATED) for client in clients]


def send_to(sites, change=lambda answer: answer):
    def send(round_number, numbers, terms):
        answers, failed = [], []
        for site in sites:
            try:
                answers.append(change(site.train(round_number, numbers, terms)))
            except Exception as error:
                failed.append(str(error))
        return Exchange(answers, failed=failed)

    return send


def run_remote(config, folder, rounds):
    experiment = build(config)
    server, terms = experiment.strategy.begin(), Terms.of(experiment)
    rows, sites = [], sites_of(config, folder)
    for number in range(rounds):
        if number:  # the first stays, the others start again
            sites = [sites[0], *sites_of(config, folder, (1, 2))]
        rows.append(remote_round(experiment, server, send_to(sites), terms, rows[-1] if rows else None))
    return experiment, server, rows


def run_simulator(config, rounds):
    experiment = build(config)
    server = experiment.strategy.begin()
    rows = [run_round(experiment, server) for _ in range(rounds)]
    return experiment, server, rows


@pytest.mark.long
@pytest.mark.parametrize(
    "name,private", [*((name, {}) for name in STRATEGIES), ("ffa", PRIVATE), ("rolora", PRIVATE), ("fedsa", PRIVATE)]
)
def test_every_method_ends_where_the_simulator_ends_whether_clients_stay_or_restart_each_round(
    small, tmp_path, name, private
):
    ranks = {"clients__ranks": [1, 2, 2]} if STRATEGIES[name].takes_ranks else {}
    config = small(federation__strategy=name, federation__one_pass="never", **private, **ranks)
    _, there, remote = run_remote(config, tmp_path, 2)
    simulated, here, local = run_simulator(config, 2)
    torch.testing.assert_close(there.row, here.row, rtol=0, atol=1e-6)
    if name != "fedsa":
        assert remote[-1]["metrics"] == pytest.approx(local[-1]["metrics"], abs=1e-5)
    exact = [ledger.epsilon() for ledger in simulated.ledgers.values()]
    assert remote[-1]["epsilon"] == (rounded_up(max(exact), decimals=2) if exact else None)


def test_kept_moments_stay_with_the_client_across_restarts(small, tmp_path):
    config = small(optimizer__momentum=0.9, optimizer__keep_moments=True, federation__one_pass="never")
    _, there, _ = run_remote(config, tmp_path, 3)
    _, here, _ = run_simulator(config, 3)
    torch.testing.assert_close(there.row, here.row, rtol=0, atol=1e-6)


def test_ffa_sends_exactly_its_trained_numbers_both_ways(small, tmp_path):
    config = small()
    experiment = build(config)
    server = experiment.strategy.begin()
    seen = []

    def send(round_number, numbers, terms):
        seen.append(numbers)
        return send_to(sites_of(config, tmp_path), lambda answer: (seen.append(answer.numbers), answer)[1])(
            round_number, numbers, terms
        )

    remote_round(experiment, server, send, Terms.of(experiment))
    assert [each.shape for each in seen] == [(experiment.adapters.layout.size,)] * 4


@pytest.mark.parametrize("fault", ["nan", "shape"])
def test_a_client_that_sends_nonsense_is_named_and_the_round_goes_on(small, tmp_path, fault):
    from dataclasses import replace

    config = small()
    experiment = build(config)
    server = experiment.strategy.begin()

    def spoil(answer):
        if answer.client != 1:
            return answer
        bad = np.full_like(answer.numbers, np.nan) if fault == "nan" else answer.numbers[:-1]
        return replace(answer, numbers=bad)

    row = remote_round(experiment, server, send_to(sites_of(config, tmp_path), spoil), Terms.of(experiment))
    assert row["rejected"] == [1]
    assert server.row.isfinite().all() and server.row.any()


def test_another_frozen_a_is_refused_by_the_client_that_has_it(small, tmp_path):
    sites = [*sites_of(small(), tmp_path)[:2], Site(small(adapter__seed=1), 2, tmp_path / "2", policy=SIMULATED)]
    experiment = build(small())
    row = remote_round(experiment, experiment.strategy.begin(), send_to(sites), Terms.of(experiment))
    assert len(row["failed"]) == 1 and "client 2: its frozen factors differ" in row["failed"][0]
    assert row["metrics"]


def test_a_round_without_answers_leaves_the_state_and_is_written_down(small):
    experiment = build(small())
    server = experiment.strategy.begin()
    before = server.row.clone()
    row = remote_round(experiment, server, lambda *_: Exchange([], failed=["all gone"]), Terms.of(experiment))
    assert torch.equal(server.row, before) and row["failed"] == ["all gone"] and row["round"] == 1


def test_a_client_killed_in_mid_round_has_paid_for_the_steps_it_took(small, tmp_path):
    config = small(federation__local_steps=4, **PRIVATE)
    experiment = build(config)
    server = experiment.strategy.begin()
    numbers, mark = experiment.strategy.wire.download(server).numpy(), Terms.of(experiment)
    site = Site(config, 1, tmp_path, policy=SIMULATED)
    original = site.experiment.engine.train

    def die(*arguments, **options):
        def stop(step):
            if step == 2:
                raise KeyboardInterrupt

        return original(*arguments, on_step=stop, **options)

    site.experiment.engine.train = die
    with pytest.raises(KeyboardInterrupt):
        site.train(0, numbers, mark)
    again = Site(config, 1, tmp_path, policy=SIMULATED)
    assert again.experiment.ledgers["1"].steps_taken == 3
    again.train(0, numbers, mark)
    assert again.experiment.ledgers["1"].steps_taken == 7
    assert json.loads((tmp_path / "1.json").read_text())["steps_taken"] == 7


def test_no_step_is_charged_once_nobody_waits_for_the_round(small, tmp_path):
    config = small(federation__local_steps=4, **PRIVATE)
    experiment = build(config)
    numbers, mark = experiment.strategy.wire.download(experiment.strategy.begin()).numpy(), Terms.of(experiment)
    site, asked = Site(config, 1, tmp_path, policy=SIMULATED), []
    with pytest.raises(NobodyWaits, match="client 1: whoever asked for round 1 has gone"):
        site.train(0, numbers, mark, is_wanted=lambda: asked.append(1) or len(asked) <= 2)
    assert json.loads((tmp_path / "1.json").read_text())["steps_taken"] == 2
    assert Site(config, 1, tmp_path, policy=SIMULATED).experiment.participants[0].steps_taken == 2


def test_a_site_that_stays_sees_what_other_runs_spend_on_its_records(small, tmp_path):
    config = small(**PRIVATE | {"privacy__noise": "secure", "privacy__accountant": "rdp"})
    policy = SitePolicy(max_epsilon=None, reports=["samples", "epsilon"])
    site = Site(config, 1, tmp_path / "one", policy=policy)
    numbers, mark = site.experiment.strategy.wire.download(site.server).numpy(), site.terms
    alone = site.experiment.ledgers["1"].final_epsilon()
    site.train(0, numbers, mark)
    Site(config, 1, tmp_path / "other", policy=policy).train(0, numbers, mark)
    site.policy = SitePolicy(max_epsilon=alone)
    with pytest.raises(ConfigError, match="policy allows"):
        site.train(1, numbers, mark)


def test_a_client_without_budget_for_a_round_refuses_it(small, tmp_path):
    config = small(federation__rounds=1, federation__local_steps=2, **PRIVATE)
    experiment = build(config)
    server = experiment.strategy.begin()
    numbers, mark = experiment.strategy.wire.download(server).numpy(), Terms.of(experiment)
    Site(config, 0, tmp_path, policy=SIMULATED).train(0, numbers, mark)
    with pytest.raises(PrivacyBudgetSpent, match="client 0"):
        Site(config, 0, tmp_path, policy=SIMULATED).train(0, numbers, mark)


def test_real_clients_refuse_noise_that_the_server_could_subtract(small, tmp_path):
    with pytest.raises(ConfigError, match=r"privacy\.noise='seeded'"):
        Site(small(**PRIVATE | {"privacy__noise": "seeded"}), 0, tmp_path)


def test_a_client_with_data_of_its_own_trains_on_all_of_it(small, tmp_path):
    from small_runs import save_texts

    data = save_texts(tmp_path / "own.csv", rows=50)
    config = small(**PRIVATE | {"privacy__noise": "secure"})
    policy = SitePolicy(max_epsilon=None, reports=["samples", "epsilon"])
    site = Site(config, 2, tmp_path / "state", data=str(data), policy=policy)
    answer = site.train(0, site.experiment.strategy.wire.download(site.server).numpy(), site.terms)
    assert answer.client == 2 and answer.samples == 50 and answer.epsilon > 0
    assert site.experiment.ledgers["2"].dataset_size == answer.samples


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_a_site_begins_with_the_head_of_the_federation_s_data_whatever_its_own_is_called(small, tmp_path, head):
    """Data with a name brings the texts of its classes and public texts, from which head and centre follow."""
    data, known = tmp_path / "own.csv", EMBEDDED["movie-reviews"]
    rows = [f"word{i} word{i + 1},{known.label_names[i % 2]}" for i in range(30)]
    data.write_text("\n".join(["text,label", *rows]) + "\n")
    texts = {name: list(of_class) for name, of_class in known.label_texts.items()}
    said = {"data__name": "elsewhere", "data__label_texts": texts, "data__public_texts": list(known.public_texts)}
    named, spelt, unsaid = (
        Site(small(adapter__head=head, **changes), 1, tmp_path / "state", str(data), SIMULATED, known.label_names)
        for changes in ({"data__name": known.name}, said, {})
    )
    assert named.terms == spelt.terms != unsaid.terms


@pytest.mark.parametrize("name", ["trimmed-mean", "krum", "multi-krum"])
def test_a_client_with_data_of_its_own_takes_part_whatever_average_the_server_takes(small, tmp_path, name):
    from small_runs import save_texts

    data = save_texts(tmp_path / "own.csv", rows=50)
    config = small(clients__count=5, federation__robust_mean=name)
    site = Site(config, 2, tmp_path / "state", data=str(data), policy=SIMULATED)
    assert site.train(0, site.experiment.strategy.wire.download(site.server).numpy(), site.terms).samples == 50


def test_an_id_that_the_federation_does_not_have_is_refused_also_with_data_of_its_own(small, tmp_path):
    from small_runs import save_texts

    data = save_texts(tmp_path / "own.csv", rows=50)
    for client in (-1, 3):
        with pytest.raises(ConfigError, match=rf"client={client}: the configuration has clients 0 … 2"):
            Site(small(), client, tmp_path / "state", data=str(data), policy=SIMULATED)


def test_a_site_with_data_of_its_own_charges_and_trains_with_one_batch_found_as_a_run_finds_it(small, tmp_path):
    from small_runs import save_texts

    data = save_texts(tmp_path / "own.csv", rows=4000)
    private = PRIVATE | {"privacy__noise_multiplier": None, "privacy__target_epsilon": 6.0}
    config = small(optimizer__batch_size="auto", **private)
    site = Site(config, 0, tmp_path / "state", data=str(data), policy=SIMULATED)
    ledger = site.experiment.ledgers["0"]
    three = Partition(("0", "1", "2"), tuple(np.arange(12_000).reshape(3, -1)), 12_000)
    wanted = with_batch(config, three).optimizer.batch
    assert 64 < site.experiment.engine.optimizer.batch == wanted == pytest.approx(ledger.expected_batch)


def test_sites_with_data_of_their_own_agree_on_the_number_of_clients(small, tmp_path):
    from small_runs import save_texts

    data, rates = save_texts(tmp_path / "own.csv", rows=50), {"optimizer__lr": "auto", "optimizer__normalize": True}

    def site(client, **clients):
        config = small(clients__count=None, **clients, **rates, **PRIVATE)
        return Site(config, client, tmp_path / str(client), data=str(data), policy=SIMULATED)

    first, last = (site(client).experiment.participants[0].lr for client in (0, 2))
    assert first == last
    with pytest.raises(ConfigError, match=r"client=5: the configuration has clients 0 … 2"):
        site(5)
    with pytest.raises(ConfigError, match=r"client=2: the configuration has clients 0 … 1"):
        site(2, clients__partition="quantity", clients__quantities=[1, 2])
    with pytest.raises(ConfigError, match=r"clients\.partition='column'.*set clients\.count"):
        site(0, clients__partition="column", clients__column="who")


@pytest.mark.parametrize(("name", "gap"), [("lora", None), ("lalora", None), ("ffa", 0.0), ("fedsvd", 0.0)])
def test_a_server_that_knows_nothing_but_a_sum_states_no_gap_unless_its_method_has_none(small, name, gap):
    experiment = build(small(federation__strategy=name, federation__weighting="uniform"))
    server, wire = experiment.strategy.begin(), experiment.strategy.wire
    total = wire.upload(server, experiment.strategy.start(server, [0])[0]).numpy() + 0.1
    row = remote_round(experiment, server, lambda *_: Exchange([], sum_only=total), Terms.of(experiment))
    assert row["update_gap"] == gap


def test_a_server_states_no_gap_of_factors_that_its_clients_keep(small, tmp_path):
    _, _, rows = run_remote(small(federation__strategy="fedsa"), tmp_path, 1)
    assert rows[0]["update_gap"] is None


@pytest.mark.parametrize("round_number", [-1, 3])
def test_a_round_that_the_run_does_not_have_is_refused_uncharged_and_the_site_goes_on(small, tmp_path, round_number):
    config = small(**PRIVATE)
    site = Site(config, 1, tmp_path, policy=SIMULATED)
    numbers = site.experiment.strategy.wire.download(site.server).numpy()
    site.train(0, numbers, site.terms)
    with pytest.raises(ConfigError, match=rf"round {round_number}: the run's are 0 … 2"):
        site.train(round_number, numbers, site.terms)
    again = Site(config, 1, tmp_path, policy=SIMULATED)
    assert again.experiment.ledgers["1"].steps_taken == 2
    again.train(1, numbers, again.terms)


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if not s.linear])
def test_secure_aggregation_is_refused_by_name_where_single_rows_are_needed(small, name):
    with pytest.raises(ConfigError, match=rf"{name}.*ffa, fedsvd"):
        check_secure_aggregation(STRATEGIES[name], small(federation__weighting="uniform"))


@pytest.mark.parametrize("changes", [CLIENT_LEVEL, {"federation__dropout_rate": 0.1}])
def test_what_only_simulations_can_do_is_refused_for_real_clients(small, changes):
    with pytest.raises(ConfigError, match=r"privacy\.unit='client'|federation\.dropout_rate=0\.1"):
        check_remote(small(**changes))


def test_a_server_says_that_it_has_no_client_s_own_b(small, caplog):
    check_remote(small(federation__strategy="lora"))
    assert not caplog.records
    check_remote(small(federation__strategy="fedsa"))
    assert "each site keeps its own b" in caplog.text


def test_secure_aggregation_refuses_weights_by_size(small):
    with pytest.raises(ConfigError, match=r"federation\.weighting='size'"):
        check_secure_aggregation(STRATEGIES["ffa"], small())


@pytest.mark.parametrize(
    "numbers,message", [([1.0, np.nan], "NaN"), ([1.0], "expected"), ([1.0, 9.0], "outside the quantised range")]
)
def test_what_cannot_be_masked_is_stopped_at_the_client(numbers, message):
    with pytest.raises(ValueError, match=message):
        check_range(np.array(numbers, dtype=np.float32), 8.0, 2)
