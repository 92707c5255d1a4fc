"""Runs that protect users: whole users at clients, ledgers of users, and what is refused."""

import json

import numpy as np
import pandas
import pytest
from small_runs import save_model, save_texts, small_config

from ffalora.audits.own import audit_own
from ffalora.cli import main
from ffalora.config import ConfigError, load_config
from ffalora.data import DataError
from ffalora.federated.experiment import build
from ffalora.federated.partition import PartitionError
from ffalora.federated.simulate import simulate
from ffalora.planning.plan import make_plans
from ffalora.privacy.accounting import LedgerMismatch

USER_LEVEL = {
    "privacy__unit": "user",
    "data__user": "author",
    "privacy__noise_multiplier": 1.0,
    "privacy__max_grad_norm": 0.5,
    "privacy__samples_per_user": 4,
    "privacy__delta": 1e-3,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users")
    table = pandas.read_csv(save_texts(folder / "plain.csv"))
    rng = np.random.default_rng(1)
    table["author"] = [f"author {i}" for i in np.sort(rng.zipf(1.7, len(table)).clip(max=25))]
    table["site"] = [["a", "b"][int(author.split()[1]) % 2] for author in table["author"]]
    table["mixed"] = [["a", "b"][row % 2] for row in range(len(table))]
    table.to_csv(folder / "texts.csv", index=False)
    return save_model(folder / "model"), folder


def config_of(places, data="texts.csv", **changes):
    model, folder = places
    return small_config(model, folder / data, **USER_LEVEL | changes)


def users_of(experiment):
    owners = experiment.partition.owners
    return [set(owners.names_in(part)) for part in experiment.partition]


@pytest.mark.parametrize(
    "partition", [{}, {"clients__partition": "quantity", "clients__quantities": [1, 2, 3]}, {"clients__column": "site"}]
)
def test_every_client_holds_whole_users_and_counts_them(places, partition):
    if "clients__column" in partition:
        partition |= {"clients__partition": "column", "clients__count": None}
    experiment = build(config_of(places, **partition))
    held = users_of(experiment)
    assert sum(map(len, held)) == len(set.union(*held))
    for users, participant in zip(held, experiment.participants, strict=True):
        ledger = participant.ledger
        assert (ledger.unit, ledger.group, ledger.dataset_size) == ("user", 1, len(users))
        assert ledger.sample_rate == min(1.0, 8 / len(users)) and " of users sha256:" in ledger.fingerprint


def test_where_samples_are_drawn_each_user_keeps_at_most_k_and_the_ledger_counts_groups(places):
    experiment = build(config_of(places, privacy__draws="samples", clients__count=1))
    (participant,), owners = experiment.participants, experiment.partition.owners
    counts = np.bincount(owners.select(participant.samples).users)
    assert counts.max() == 4 and participant.ledger.group == 4
    assert participant.ledger.dataset_size == len(participant.samples) < len(experiment.train)


@pytest.mark.parametrize("draws", ["users", "samples"])
def test_a_run_protects_users_and_says_so(places, tmp_path, draws):
    simulate(config_of(places, privacy__draws=draws), tmp_path / "run", progress=False)
    said = json.loads((tmp_path / "run/privacy.json").read_text())
    assert said["unit"] == "user" and said["adjacency"].startswith("zero-out one user")
    assert ("groups of 4 samples" in said["mechanism"]) == (draws == "samples")
    assert any("two names of one person are two users" in caveat for caveat in said["caveats"])
    assert any("at several clients" in caveat for caveat in said["caveats"])
    assert not any("The unit is one sample" in caveat for caveat in said["caveats"])
    assert any("who owns how many records" in public for public in said["public"])


def test_baselines_that_protect_samples_are_not_laid_beside_users(places, tmp_path):
    run = simulate(config_of(places, baselines=True, federation__rounds=1), tmp_path / "run", progress=False)
    named = [row["name"] for row in run.summary["baselines"]]
    assert "largest class" in named and not [name for name in named if name.startswith("private")]


def test_a_run_is_evaluated_on_rows_that_are_nobody_s(places, tmp_path):
    simulate(config_of(places, federation__rounds=1), tmp_path / "run", progress=False)
    table = pandas.read_csv(places[1] / "texts.csv")[["text", "label"]]
    table.to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(tmp_path / "run"), str(tmp_path / "new.csv")])
    assert done.value.code == 0


def test_rows_of_a_user_stay_in_one_split(places):
    data = build(config_of(places, clients__count=1)).data
    named = [set(rows["author"]) for rows in data.splits.values()]
    assert sum(map(len, named)) == len(set.union(*named))


def test_another_owner_of_a_row_makes_another_ledger(places):
    folder = places[1]
    table = pandas.read_csv(folder / "texts.csv")
    table["author"] = table["author"].replace("author 2", "author 99")
    table.to_csv(folder / "renamed.csv", index=False)
    one, other = (build(config_of(places, name, clients__count=1)) for name in ("texts.csv", "renamed.csv"))
    prints = [e.participants[0].ledger.fingerprint.partition("sha256:")[2] for e in (one, other)]
    assert prints[0] != prints[1]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"data__user": None}, ConfigError, r"privacy.unit='user' needs data.user: the column"),
        ({"privacy__samples_per_user": 0}, ConfigError, r"privacy.samples_per_user=0: must be at least 1"),
        ({"data__user": "writer"}, DataError, r"data.user='writer': there is no such column"),
        (
            {"privacy__draws": "samples", "privacy__public_size_bound": 99}, ConfigError,
            r"one user more or less changes which samples of others are kept",
        ),
        (
            {"clients__partition": "dirichlet"}, ConfigError,
            r"clients.partition='dirichlet' deals single rows, .* set it to iid, quantity or column",
        ),
        (
            {"clients__partition": "column", "clients__column": "mixed", "clients__count": None}, PartitionError,
            r"user 'author 1' has samples at the clients 'a' and 'b', each of which would spend its own ε",
        ),
    ],
)  # fmt: skip
def test_what_does_not_keep_users_whole_is_refused(places, changes, error, said):
    with pytest.raises(error, match=said):
        build(config_of(places, **changes))


def test_rows_without_a_user_are_refused_by_number_or_left_out(places):
    folder = places[1]
    table = pandas.read_csv(folder / "texts.csv")
    table.loc[[3, 7], "author"] = None
    table.to_csv(folder / "gaps.csv", index=False)
    with pytest.raises(
        DataError, match=r"data.user='author' is empty in 2 of 160 rows: lines 5, 9 of gaps.csv\nFill empty cells"
    ):
        build(config_of(places, "gaps.csv"))
    experiment = build(config_of(places, "gaps.csv", data__drop_empty=True, clients__count=1))
    assert sum(map(len, experiment.data.splits.values())) == 158


def test_several_owners_each_count_where_samples_are_drawn_and_are_refused_where_users_are(places):
    folder = places[1]
    table = pandas.read_csv(folder / "texts.csv")
    rows = table.to_dict("records")
    for row in rows:
        row["author"] = ["author 1"] if row["author"] == "author 1" else [row["author"], "editor"]
    (folder / "shared").mkdir()
    for name, part in (("train", rows[:-4]), ("test", rows[-4:])):
        (folder / "shared" / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in part) + "\n")
    terms = {"clients__count": 1, "data__validation_fraction": 0.0, "data__evaluate_on": "test"}
    with pytest.raises(ValueError, match="records have several owners"):
        build(config_of(places, "shared", **terms))
    experiment = build(config_of(places, "shared", privacy__draws="samples", **terms))
    owners, samples = experiment.partition.owners, experiment.participants[0].samples
    held = dict(zip(owners.names, np.bincount(owners.select(samples).users), strict=True))
    assert held["editor"] == held["author 1"] == 4 and len(samples) == 8


def test_runs_on_other_rows_of_the_same_users_compose(places, tmp_path, monkeypatch):
    monkeypatch.setenv("FFALORA_LEDGERS", str(tmp_path / "ledgers"))
    folder = places[1]
    table = pandas.read_csv(folder / "texts.csv")
    for name, part in (("even.csv", table[::2]), ("odd.csv", table[1::2])):
        part.to_csv(folder / name, index=False)
    secure = {"privacy__noise": "secure", "privacy__ledger": "people", "clients__count": 1, "federation__rounds": 1}
    spent = []
    for name in ("even.csv", "odd.csv"):
        simulate(config_of(places, name, **secure), tmp_path / name, progress=False)
        (client,) = json.loads((tmp_path / name / "privacy.json").read_text())["clients"]
        spent.append((client["own_epsilon"], client["epsilon"]))
    assert spent[0][0] == spent[0][1] and spent[1][1] > spent[1][0]
    with pytest.raises(LedgerMismatch, match="units sample and user do not compose"):
        simulate(config_of(places, "even.csv", **secure, privacy__unit="sample"), tmp_path / "other", progress=False)


@pytest.mark.long
@pytest.mark.parametrize("draws", ["users", "samples"])
def test_a_plan_spends_the_budget_on_what_is_drawn(places, draws):
    terms = {"privacy__noise_multiplier": None, "privacy__target_epsilon": 8.0, "privacy__samples_per_user": 2}
    terms |= {"privacy__accountant": "rdp"}
    plans = make_plans(config_of(places, privacy__draws=draws, clients__count=1, **terms))
    experiment = build(config_of(places, privacy__draws=draws, clients__count=1, **terms))
    ledger = experiment.participants[0].ledger
    assert plans.sizes == (ledger.dataset_size,)
    assert plans.own.sigma == pytest.approx(ledger.noise_multiplier)
    assert max(plan.batch for plan in (plans.chosen, *plans.others)) == ledger.dataset_size


@pytest.mark.long
def test_what_init_writes_for_a_table_of_people_protects_them(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(["init", str(places[1] / "texts.csv"), "--client", "site"])
    config = load_config("texts.yaml", {"model.name": str(places[0]), "adapter.layers_to_transform": [1]})
    assert done.value.code == 0 and (config.privacy.unit, config.data.user) == ("user", "author")
    built = build(config.with_noise("seeded"))
    assert {ledger.unit for ledger in built.ledgers.values()} == {"user"}


@pytest.mark.long
@pytest.mark.parametrize("draws", ["users", "samples"])
def test_an_audit_leaves_users_out_and_every_canary_is_one(places, draws):
    found = audit_own(config_of(places, privacy__draws=draws, clients__count=1, federation__rounds=1), canaries=40)
    assert found.holds and found.sensitivity.unit == "user" and found.tests
    assert 0 < found.sensitivity.largest.ratio <= 1.0001
