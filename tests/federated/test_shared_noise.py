"""Client-level rounds whose noise the clients bring: as private as promised, near the server's own, refused by name."""

import numpy as np
import pytest
import torch
from small_runs import CLIENT_LEVEL, SIMULATED

from ffalora.config import ConfigError
from ffalora.federated.experiment import build
from ffalora.federated.flower.policy import SitePolicy
from ffalora.federated.flower.rounds import Exchange, check_remote, remote_round
from ffalora.federated.flower.site import Site
from ffalora.federated.flower.statement import federation_statement
from ffalora.federated.flower.terms import Terms
from ffalora.federated.simulate import run_round, simulate
from ffalora.files.numbers import rounded_up
from ffalora.privacy.accountants import epsilon

SHARES = CLIENT_LEVEL | {
    "privacy__noise_at": "clients",
    "privacy__noise_multiplier": 2.0,
    "federation__participation": 1.0,
    "federation__rounds": 2,
}


def test_a_run_whose_clients_bring_the_noise_states_what_it_spent(small, tmp_path):
    config = small(clients__count=4, privacy__dropouts=1, privacy__noise="secure", **SHARES)
    run = simulate(config.with_noise("secure"), tmp_path / "run", progress=False)
    said = (tmp_path / "run/privacy.txt").read_text()
    assert run.rounds[-1]["epsilon"] == pytest.approx(epsilon(2.0, 1.0, 2, 1e-5, "rdp", "by-server"), rel=1e-3)
    for words in ("share of Skellam noise", "no amplification", "at most 1 of a round's clients", "whole numbers"):
        assert words in said, words
    assert "trusted to clip and add noise" not in said
    assert "update_gap" not in run.rounds[0]  # it compares single updates


def test_rounds_end_near_those_with_the_servers_noise(small, monkeypatch):
    """With nearly no noise both are the average of clipped updates, to the multiples that numbers are rounded to."""
    ends = {}
    for at in ("clients", "server"):
        config = small(clients__count=4, **SHARES | {"privacy__noise_at": at, "privacy__noise_multiplier": 1e-3})
        experiment = build(config)
        server = experiment.strategy.begin()
        run_round(experiment, server)
        ends[at] = server.row
    size = float(ends["server"].norm())
    assert 0 < float((ends["clients"] - ends["server"]).norm()) < 0.05 * size


def test_a_client_without_a_finite_update_brings_its_noise_all_the_same(small, monkeypatch):
    from ffalora.federated import simulate as rounds

    real = rounds.train_cohort

    def broken(experiment, server, cohort, rows, *rest):
        report = real(experiment, server, cohort, rows, *rest)
        rows[1] = torch.nan
        return report

    monkeypatch.setattr(rounds, "train_cohort", broken)
    experiment = build(small(clients__count=3, **SHARES))
    server = experiment.strategy.begin()
    row = run_round(experiment, server)
    assert row["rejected"] == [] and bool(server.row.isfinite().all()) and bool(server.row.any())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"privacy__unit": "sample"}, "own small share"),
        ({"privacy__clipping": "adaptive"}, "norms that nobody may see"),
        ({"privacy__noise_multiplier": 0.0}, "nothing to share"),
        ({"privacy__noise_at": "server", "privacy__dropouts": 1}, "dropouts=1 is of noise_at"),
        ({"privacy__dropouts": 2, "privacy__colluders": 1}, "leave 0 of 3 clients"),
        ({"federation__payload": "int8"}, "federation.payload='int8'.*set it to float32"),
        ({"federation__payload": "float16"}, "federation.payload='float16'.*set it to float32"),
    ],
)
def test_what_shares_of_noise_do_not_protect_is_refused_by_name(small, changes, said):
    with pytest.raises(ConfigError, match=said):
        build(small(clients__count=3, **SHARES | changes))


@pytest.mark.parametrize(("bits", "size"), [(16, 2), (20, 4)])
def test_a_share_counts_as_the_whole_numbers_in_which_it_travels(small, tmp_path, bits, size):
    config = small(clients__count=3, adapter__rank=3, privacy__sum_bits=bits, **SHARES)
    run = simulate(config, tmp_path / "run", progress=False)
    length = build(config).client_level.shares.length
    assert length == 256 > 4 * 3 * 16  # four layers' b, padded to a power of two
    assert run.rounds[0]["bytes_up"] == 3 * length * size
    assert run.summary["bytes_up_per_client_round"] == length * size


def test_dropouts_beyond_the_stated_number_leave_the_state_and_are_charged(small, monkeypatch):
    from ffalora.federated import cohort

    def one_stays(config, round_number, clients):
        return np.full(clients, config.federation.local_steps), np.arange(clients) == 0

    monkeypatch.setattr(cohort, "_faults", one_stays)
    experiment = build(small(clients__count=3, privacy__dropouts=1, federation__dropout_rate=0.5, **SHARES))
    server = experiment.strategy.begin()
    before = server.row.clone()
    with pytest.warns(UserWarning, match="1 of 3 clients stayed"):
        run_round(experiment, server)
    assert torch.equal(server.row, before) and experiment.client_level.ledger.steps_taken == 1


@pytest.mark.parametrize("strategy", ["ffa", "rolora"])
def test_sites_that_bring_the_noise_end_where_the_simulator_ends(small, tmp_path, strategy):
    config = small(clients__count=3, federation__strategy=strategy, federation__one_pass="never", **SHARES)
    config = config.with_noise("seeded")
    check_remote(config)
    simulated, remote = build(config), build(config)
    ours, theirs, rows, terms = simulated.strategy.begin(), remote.strategy.begin(), [], Terms.of(remote)
    sites = [Site(config, client, tmp_path / str(client), policy=SIMULATED) for client in range(3)]

    def send(*task):
        answers = [site.train(*task) for site in sites]
        assert all(answer.numbers is None and answer.arrays[0].dtype == np.int64 for answer in answers)
        total = remote.client_level.shares.sum_of(answer.arrays[0] for answer in answers)
        return Exchange(answers, shares=total)

    for _ in range(2):
        run_round(simulated, ours)
        rows.append(remote_round(remote, theirs, send, terms, None))
    assert torch.allclose(ours.row, theirs.row, atol=1e-6) and float(ours.row.norm()) > 0
    assert rows[1]["epsilon"] == rounded_up(simulated.client_level.ledger.epsilon(), decimals=2)
    assert all(site.experiment.client_level.ledger.steps_taken == 2 for site in sites)
    assert "set to zero" in federation_statement(config, rows)["adjacency"]


def test_sites_on_one_machine_are_charged_each_for_itself(small, tmp_path):
    """They share the ledger of their data set, and not their rows."""
    config = small(clients__count=3, **SHARES).with_noise("secure")
    sites = [
        Site(config, client, tmp_path / str(client), policy=SitePolicy(unit="client", max_epsilon=None))
        for client in range(3)
    ]
    for site in sites:
        answer = site.train(0, site.experiment.strategy.wire.download(site.server).numpy(), site.terms)
        assert answer.epsilon == rounded_up(epsilon(2.0, 1.0, 1, 1e-5, "rdp", "by-server"), decimals=2)
        assert answer.final_epsilon == rounded_up(epsilon(2.0, 1.0, 2, 1e-5, "rdp", "by-server"), decimals=2)


def test_without_a_sum_the_state_stays_and_sites_have_paid(small):
    experiment = build(small(clients__count=3, **SHARES))
    server = experiment.strategy.begin()
    before = server.row.clone()
    remote_round(experiment, server, lambda *task: Exchange([], failed=["halted"]), Terms.of(experiment))
    assert torch.equal(server.row, before) and server.round == 1


def test_over_flower_a_sum_needs_two_clients_of_a_known_number(small):
    with pytest.raises(ConfigError, match="at least two clients"):
        check_remote(small(clients__count=3, privacy__dropouts=2, **SHARES))
