"""Runs, methods and seeds on one data set: every step of a secure run is charged to it, whoever else trains."""

import json
from functools import partial
from pathlib import Path

import pytest
from small_runs import CLIENT_LEVEL, PRIVATE, save_apart

from ffalora.adapters import CheckpointError
from ffalora.config import ConfigError
from ffalora.data import DataError
from ffalora.federated.experiment import build
from ffalora.federated.flower.policy import SitePolicy
from ffalora.federated.flower.site import Site
from ffalora.federated.flower.terms import Terms
from ffalora.federated.simulate import Run, run_round, simulate
from ffalora.privacy.accountants import epsilon_of
from ffalora.privacy.accounting import LedgerMismatch
from ffalora.privacy.data_ledger import find_data_ledger
from ffalora.privacy.ledger_table import total_spent
from ffalora.privacy.prior import read_prior
from ffalora.runs.folder import LEDGERS

SECURE = PRIVATE | {"privacy__noise": "secure"}


def statement(folder):
    return json.loads((folder / "privacy.json").read_text())


def test_methods_and_seeds_on_one_data_set_compose(small, tmp_path):
    simulate(small(**SECURE), tmp_path / "ffa", progress=False)
    simulate(small(**SECURE, federation__strategy="lora"), tmp_path / "lora", progress=False)
    simulate(small(**SECURE, seed=1), tmp_path / "seed-1", progress=False)
    spent = [statement(tmp_path / name)["clients"][0] for name in ("ffa", "lora", "seed-1")]
    alone = spent[0]["epsilon"]
    assert all(client["own_epsilon"] == pytest.approx(alone) for client in spent)
    assert alone < spent[1]["epsilon"] < spent[2]["epsilon"]
    assert sum(part[2] for part in spent[1]["history"]) == 2 * spent[0]["steps_taken"]


def save_months(folder, small, sites=("north", "south", "west")):
    """Files of January's and of February's rows, each of which says whose it is; February's spell the names anew."""

    def anew(name):
        return str(int(name)) if name.isdigit() else name.upper()

    rows = Path(small().data.name).read_text().splitlines()
    for month, part, spell in (("january", rows[1:81], str), ("february", rows[81:], anew)):
        lines = [f"{line},{spell(sites[i % len(sites)])}" for i, line in enumerate(part)]
        (folder / f"{month}.csv").write_text("\n".join([f"{rows[0]},site", *lines]) + "\n")
    return [str(folder / f"{month}.csv") for month in ("january", "february")]


ONE_ROUND = CLIENT_LEVEL | {"privacy__noise": "secure", "privacy__delta": 1e-2, "federation__rounds": 1}
BY_SITE = {"clients__partition": "column", "clients__column": "site", "clients__count": None}


@pytest.mark.parametrize(
    ("who", "sites"),
    [(BY_SITE, ("north", "south", "west")), (BY_SITE, ("007", "008", "009")), ({}, ("north", "south"))],
    ids=["by a column", "by numbers", "dealt"],
)
def test_what_one_client_spends_composes_whichever_rows_its_runs_hold(small, tmp_path, who, sites):
    january, february = save_months(tmp_path, small, sites)
    for month in (january, february):
        run = Run.open(
            build(small(data__name=month, privacy__ledger="sites", **ONE_ROUND, **who)),
            tmp_path / Path(month).stem,
            False,
        )
        run_round(run.experiment, run.server)
    ledger = run.experiment.ledgers["population"]
    both = epsilon_of([ledger.steps(2)], ledger.delta, ledger.accountant)
    assert ledger.epsilon() == pytest.approx(both) and total_spent(find_data_ledger("sites", ""))[0] >= epsilon_of(
        [ledger.steps(2)], ledger.delta
    )


def test_other_clients_are_not_charged_for_what_some_spend_and_the_same_rows_always_meet(small, tmp_path):
    named = {"privacy__ledger": "sites"} | ONE_ROUND
    here, _ = save_months(tmp_path, small)
    (tmp_path / "there").mkdir()
    _, there = save_months(tmp_path / "there", small, ("east", "inland", "islands"))
    spent = []
    for number, (data, who) in enumerate([(here, BY_SITE), (there, BY_SITE), (here, {})]):
        run = Run.open(build(small(data__name=data, **named, **who)), tmp_path / str(number), resume=False)
        run_round(run.experiment, run.server)
        spent.append(run.experiment.ledgers["population"])
    first, other, dealt = (sum(part.steps for part in ledger.history) for ledger in spent)
    assert (first, other, dealt) == (1, 1, 2)


def test_a_site_s_own_client_level_runs_compose_and_its_policy_sees_it(small, tmp_path):
    config = small(
        **ONE_ROUND | {"privacy__noise_at": "clients", "federation__participation": 1.0, "privacy__delta": 1e-5}
    )
    server = build(config, caches_layers=False)
    numbers, terms = server.strategy.wire.download(server.strategy.begin()).numpy(), Terms.of(server)
    january, february = save_months(tmp_path, small)
    site = partial(
        Site, config, 0, policy=SitePolicy(unit="client", max_epsilon=5.0), labels=["0", "1"], ledger="hospital"
    )
    assert 2.5 < site(tmp_path / "1", data=january).train(0, numbers, terms).epsilon < 5
    with pytest.raises(ConfigError, match="max_epsilon=5"):
        site(tmp_path / "2", data=february)


def test_two_runs_on_one_folder_charge_every_step(small, tmp_path):
    runs = [Run.open(build(small(**SECURE)), tmp_path / "run", resume=False) for _ in range(2)]
    for run in runs:
        run_round(run.experiment, run.server)
    taken = 2 * runs[0].experiment.config.federation.local_steps
    for file in (tmp_path / "run" / LEDGERS).glob("*.json"):
        assert json.loads(file.read_text())["steps_taken"] == taken
    assert all(ledger.steps_taken == taken for ledger in runs[1].experiment.ledgers.values())


def test_two_sites_on_one_folder_charge_every_step(small, tmp_path):
    config = small(**SECURE, federation__weighting="uniform")
    sites = [Site(config, 0, tmp_path / "site", policy=SitePolicy(max_epsilon=1e6)) for _ in range(2)]
    numbers = sites[0].experiment.strategy.wire.download(sites[0].server).numpy()
    for site in sites:
        site.train(0, numbers, site.terms)
    taken = 2 * config.federation.local_steps
    assert json.loads((tmp_path / "site" / "0.json").read_text())["steps_taken"] == taken


def test_a_seeded_run_is_charged_nowhere(small, tmp_path):
    simulate(small(**PRIVATE), tmp_path / "seeded", progress=False)
    simulate(small(**PRIVATE, privacy__ledger="texts"), tmp_path / "named", progress=False)
    book = find_data_ledger("texts", "")
    assert {(entry.noise, entry.steps.steps) for entry in book.entries} == {("seeded", 0)}
    assert statement(tmp_path / "named")["simulation"] is True


def test_a_prior_is_part_of_a_runs_epsilon(small, tmp_path):
    simulate(small(**PRIVATE), tmp_path / "first", progress=False)
    again = small(**PRIVATE, privacy__prior=[str(tmp_path / "first")])
    simulate(again, tmp_path / "second", progress=False)
    first, second = (statement(tmp_path / name)["clients"][0] for name in ("first", "second"))
    assert second["epsilon"] > first["epsilon"] == pytest.approx(second["own_epsilon"])
    with pytest.raises(LedgerMismatch, match="do not compose"):
        build(small(**CLIENT_LEVEL, privacy__prior=[str(tmp_path / "first")]))


def test_a_secret_size_enters_rate_and_noise_by_its_bound_alone(small, tmp_path):
    secret = {"privacy__public_size_bound": 400, "clients__count": 1}
    more, fewer = (save_apart(tmp_path / str(rows), rows) for rows in (160, 120))
    bounded = [build(small(**PRIVATE | secret | apart)) for apart in (more, fewer)]
    assert bounded[0].participants[0].samples.size > bounded[1].participants[0].samples.size
    terms = [[(p.ledger.sample_rate, p.ledger.noise_multiplier, p.noise_std(1.0), p.ledger.expected_batch)
              for p in one.participants] for one in bounded]  # fmt: skip
    assert terms[0] == terms[1] and bounded[0].ledgers["0"].adjacency == "add/remove one sample"
    with pytest.raises(ConfigError, match=r"federation\.weighting='size' shows"):
        build(small(**PRIVATE, privacy__public_size_bound=400, federation__weighting="size"))
    with pytest.raises(DataError, match=r"public_size_bound=3: client 0 holds more samples"):
        build(small(**PRIVATE | secret | more | {"privacy__public_size_bound": 3}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data__max_samples": 90, "clients__count": 1}, r"data\.max_samples=90"),
        ({"federation__weighting": "uniform"}, r"clients\.partition='iid' .* by their number"),
        (
            {"clients__count": 1},
            r"data\.validation_fraction=0\.1 and data\.test_fraction=0\.2 .* held out by how many there are",
        ),
        ({"clients__count": 1, "data__validation_fraction": 0.0}, r"^data\.test_fraction=0\.2 with"),
    ],
)
def test_a_secret_size_is_refused_where_one_record_more_changes_which_others_are_used(small, changes, said):
    with pytest.raises(ConfigError, match=said):
        build(small(**PRIVATE | {"privacy__public_size_bound": 400} | changes))


def test_nothing_that_is_written_tells_on_which_side_of_the_bound_s_size_a_secret_one_is(small, tmp_path):
    """The product of rounds, steps and batch lies between the sizes: cached layers pay for one of them."""
    terms = {"privacy__public_size_bound": 400, "clients__count": 1, "adapter__layers_to_transform": [1]}
    tables = [
        build(small(**PRIVATE | terms | save_apart(tmp_path / str(rows), rows), optimizer__batch_size=23)).cached_layers
        for rows in (120, 160)
    ]
    assert tables[0] == tables[1]


def test_a_ledger_is_not_named_where_nothing_is_protected(small, tmp_path):
    with pytest.raises(ConfigError, match=r"privacy\.ledger='hospital' with privacy\.unit='none'"):
        simulate(small(privacy__ledger="hospital"), tmp_path / "run", progress=False)


def test_what_a_killed_run_leaves_holds_what_others_spent_on_its_records(small, tmp_path):
    for name in ("first", "killed"):
        simulate(small(**SECURE, privacy__ledger="reviews"), tmp_path / name, progress=False)
    finished = read_prior([tmp_path / "killed"])
    (tmp_path / "killed/privacy.json").unlink()
    left = read_prior([tmp_path / "killed"])
    assert left == finished and sum(part.steps for part in left) > 6


def test_a_frozen_factor_in_another_dtype_is_refused_on_resume(small, tmp_path):
    config = small(**PRIVATE)
    simulate(config, tmp_path / "run", progress=False)
    experiment = build(config)
    for layer in experiment.adapters.layers.values():
        layer.lora_A.data.copy_(layer.lora_A.data.bfloat16().float())
    with pytest.raises(CheckpointError, match="other frozen factors"):
        Run.open(experiment, tmp_path / "run", resume=True)


def test_adam_is_corrected_for_secure_noise(small, tmp_path):
    adam = {"optimizer__name": "adamw", "optimizer__lr": 0.01, "optimizer__dp_bias_correction": True}
    moved = []
    for name, corrected in (("with", True), ("without", False)):
        run = Run.open(
            build(small(**SECURE, **adam | {"optimizer__dp_bias_correction": corrected})), tmp_path / name, resume=False
        )
        before = run.server.row.clone()
        run_round(run.experiment, run.server)
        moved.append(float((run.server.row - before).norm()))
    assert moved[0] > 1.2 * moved[1]  # noise makes up the second moment: without it, steps are longer
