"""What a site's own policy refuses, whatever the server asks for, and what server and site must agree on."""

import numpy as np
import pytest
from small_runs import CLIENT_LEVEL, PRIVATE, SIMULATED, WORDS

from ffalora.config import ConfigError
from ffalora.data import DataError
from ffalora.federated.experiment import build
from ffalora.federated.flower.answers import Answer
from ffalora.federated.flower.policy import SitePolicy, load_policy, save_policy
from ffalora.federated.flower.rounds import Exchange, remote_round
from ffalora.federated.flower.site import Site
from ffalora.federated.flower.statement import federation_statement, stated_epsilon, statement_text
from ffalora.federated.flower.terms import Terms
from ffalora.federated.flower.trainer import _told
from ffalora.privacy.accountants import noise_multiplier_for
from ffalora.privacy.accounting import PrivacyLedger

SECURE = PRIVATE | {"privacy__noise": "secure", "federation__weighting": "uniform"}


@pytest.mark.parametrize(
    "changes,policy,said",
    [
        ({}, {}, r"privacy\.unit='none'.*policy"),
        (PRIVATE | {"privacy__noise": "seeded"}, {}, r"privacy\.noise='seeded'.*policy"),
        (SECURE | {"privacy__delta": 1e-3}, {}, r"privacy\.delta=0\.001.*max_delta=1e-05"),
        (SECURE, {"strategies": ["lora"]}, r"federation\.strategy='ffa'.*allows lora"),
        (SECURE | {"federation__weighting": "size"}, {}, r"federation\.weighting='size'.*reports"),
        (CLIENT_LEVEL | {"privacy__noise": "secure"}, {}, r"privacy\.unit='client'.*demands unit: sample"),
        (CLIENT_LEVEL | {"privacy__noise": "secure"}, {"unit": "client"}, r"update without noise"),
        (SECURE, {"unit": "client"}, r"privacy\.unit='sample'.*demands unit: client"),
        (SECURE, {"min_noise_multiplier": 1.5}, r"privacy\.noise_multiplier is .*min_noise_multiplier=1\.5"),
        (SECURE, {"max_epsilon": 0.5}, r"would spend more .*max_epsilon=0\.5"),
        (SECURE, {"max_epsilon": None, "model": "0" * 64}, r"model=0{64}: .*another digest"),
        (SECURE, {"max_epsilon": None, "frozen": "0" * 64}, r"frozen=0{64}: .*another digest"),
        (SECURE, {"max_epsilon": None, "label_names": ["1", "0"]}, r"label_names=\['1', '0'\]"),
    ],
)
def test_a_server_cannot_lower_what_a_site_demands(small, tmp_path, changes, policy, said):
    with pytest.raises(ConfigError, match=said):
        Site(small(**changes), 0, tmp_path, policy=SitePolicy(**policy))


@pytest.mark.parametrize(("rate", "fits"), [(1.0, False), (0.02, True)])
def test_a_policy_for_samples_counts_what_one_sample_spends_where_users_are_protected(rate, fits):
    """A user's removal may spend 8; one of its samples moves the clipped sum by up to 2C."""
    sigma = noise_multiplier_for(2.9 if fits else 8.0, 1e-5, rate, 10, "rdp")
    ledger = PrivacyLedger(0, 100, rate, sigma, 1e-5, 10, accountant="rdp", unit="user")
    SitePolicy(unit="user").check_ledger(ledger)
    if fits:
        SitePolicy().check_ledger(ledger)
        return
    with pytest.raises(ConfigError, match=r"max_epsilon=8 \(counted for one sample.*unit: user"):
        SitePolicy().check_ledger(ledger)


BOUNDED = SECURE | {"privacy__public_size_bound": 60}


def refusal(config, folder, file, **policy):
    """What leaves a site, with these rows, of why it does not take part; None where it does."""
    try:
        Site(config, 0, folder, data=str(file), policy=SitePolicy(max_epsilon=None, **policy), labels=["0", "1"])
    except ValueError as error:
        return type(error).__name__ + _told(error)
    return None


def test_what_is_told_of_a_refusal_does_not_follow_from_how_many_rows_a_site_has(small, tmp_path, caplog):
    files = [save_named(tmp_path / f"{rows}.csv", ["0", "1"], rows) for rows in (30, 31)]
    spent, quiet, large = (
        [refusal(config, tmp_path / f"{number}-{i}", file) for i, file in enumerate(files)]
        for number, config in enumerate(
            [
                small(**SECURE | {"privacy__delta": 1e-5, "privacy__public_size_bound": 29}),
                small(**SECURE),
                small(**BOUNDED),
            ]
        )
    )
    assert spent == ["DataError; the site's log says why"] * 2 and quiet == large == [None, None]
    ledgers = [PrivacyLedger(0, rows, 8 / rows, 0.7, 1e-5, 9, accountant="rdp") for rows in (30, 31)]
    for policy in (SitePolicy(max_epsilon=1.0), SitePolicy(min_noise_multiplier=1.0)):
        told = []
        for ledger in ledgers:
            with pytest.raises(ConfigError) as caught:
                policy.check_ledger(ledger)
            told.append(str(caught.value))
        assert told[0] == told[1]
    assert f"ε would be {ledgers[0].final_epsilon():.4g}" in caplog.text and "σ would be 0.7" in caplog.text


def test_a_site_that_keeps_its_size_secret_answers_every_bound_as_if_it_held_all_it_may(small, tmp_path):
    files = [save_named(tmp_path / f"{rows}.csv", ["0", "1"], rows) for rows in (20, 50)]
    for bound in (None, 19, 35, 49):
        config = small(**SECURE | {"privacy__public_size_bound": bound})
        told = [refusal(config, tmp_path / "site", file, size_bound=50) for file in files]
        assert told[0] == told[1] and f"public_size_bound={bound}: this site's policy keeps its size secret" in told[0]
    config = small(**BOUNDED)
    assert [refusal(config, tmp_path / str(i), file, size_bound=50) for i, file in enumerate(files)] == [None, None]
    assert refusal(config, tmp_path / "over", files[1], size_bound=40) == "DataError; the site's log says why"


def test_a_policy_is_read_from_yaml_and_a_misspelt_key_is_refused(tmp_path):
    wanted = SitePolicy(max_epsilon=2.0, strategies=["ffa"], labels={"good": "positive"})
    save_policy(wanted, tmp_path / "policy.yaml")
    assert load_policy(tmp_path / "policy.yaml") == wanted and load_policy(None) == SitePolicy()
    (tmp_path / "policy.yaml").write_text("max_epsilom: 2\n")
    with pytest.raises(ConfigError, match="max_epsilom"):
        load_policy(tmp_path / "policy.yaml")
    with pytest.raises(ConfigError, match="cannot read the policy"):
        load_policy(tmp_path / "absent.yaml")
    (tmp_path / "policy.yaml").write_text("max_epsilon: 2\nlabels: {no: negative}\nmax_epsilon: 8\n")
    with pytest.raises(ConfigError, match="max_epsilon is given again in line 3"):
        load_policy(tmp_path / "policy.yaml")
    (tmp_path / "policy.yaml").write_text("labels: {no: negative}\n")
    assert load_policy(tmp_path / "policy.yaml").labels == {"no": "negative"}


def test_only_the_data_that_the_policy_names_is_trained_on(tmp_path):
    policy = SitePolicy(data=str(tmp_path / "own.csv"))
    assert policy.allowed_data(None) == str(tmp_path / "own.csv")
    with pytest.raises(ConfigError, match=r"allows data='.*own\.csv' alone"):
        policy.allowed_data(str(tmp_path / "other.csv"))


def save_named(path, names, rows=30, only=None):
    """Sentences whose class says whether words of the first half are in the majority, called by ``names``."""
    lines = ["text,label"]
    for row in range(rows):
        is_first = row % 2 == 0 if only is None else bool(only)
        words = WORDS[:20] if is_first else WORDS[20:]
        lines.append(f"{words[row % 20]} {words[(row * 7) % 20]} {words[(row * 3) % 20]},{names[int(is_first)]}")
    path.write_text("\n".join(lines) + "\n")
    return path


def site_on(config, folder, file, **policy):
    terms = Terms.of(build(config))
    allowed = SIMULATED.model_copy(update=policy)
    return Site(config, 0, folder, data=str(file), policy=allowed, labels=terms.labels), terms


def test_classes_under_other_names_are_refused_until_the_policy_says_which_is_which(small, tmp_path):
    config = small(data__name=str(save_named(tmp_path / "server.csv", ["negative", "positive"])))
    own = save_named(tmp_path / "own.csv", ["poor", "good"])
    with pytest.raises(DataError, match="holds the classes good, poor, but the classes of the model are negative, pos"):
        site_on(config, tmp_path / "state", own)
    site, terms = site_on(config, tmp_path / "state", own, labels={"good": "positive", "poor": "negative"})
    texts, labels = site.experiment.data.train["text"], site.experiment.data.train["label"]
    assert [label == 1 for label in labels] == [text.split()[0] in WORDS[:20] for text in texts]
    answer = site.train(0, site.experiment.strategy.wire.download(site.server).numpy(), terms)
    assert answer.client == 0


def test_a_site_with_one_class_takes_part_with_the_whole_head(small, tmp_path):
    config = small(data__name=str(save_named(tmp_path / "server.csv", ["negative", "positive"])))
    site, terms = site_on(
        config, tmp_path / "state", save_named(tmp_path / "own.csv", ["negative", "positive"], only=1)
    )
    assert set(site.experiment.data.train["label"]) == {1} and site.terms == terms
    site.train(0, site.experiment.strategy.wire.download(site.server).numpy(), terms)


def test_a_head_or_an_order_of_classes_that_differs_is_refused_before_training(small, tmp_path):
    config = small()
    site = Site(config, 1, tmp_path, policy=SIMULATED)
    numbers = site.experiment.strategy.wire.download(site.server).numpy()
    for change, said in (
        ({"labels": ("1", "0")}, "its classes differ .*here 0, 1, there 1, 0"),
        ({"model": "0" * 64}, "its model or head differs"),
        ({"frozen": "0" * 64}, "its frozen factors differ"),
        ({"inputs": 2}, "its number of text columns differs"),
        ({"task": "regression"}, "its task differs"),
        ({"label_range": (0.0, 5.0)}, "its range of labels differs"),
    ):
        other = Terms(**{**vars(site.terms), **change})
        with pytest.raises(ConfigError, match=f"client 1: {said}"):
            site.train(0, numbers, Terms.from_text(other.to_text()))
    site.train(0, numbers, Terms.from_text(site.terms.to_text()))


def test_another_seed_of_the_head_gives_other_terms(small):
    assert Terms.of(build(small(seed=1))).model != Terms.of(build(small())).model


def test_what_the_policy_does_not_report_does_not_leave(small, tmp_path):
    config = small(**SECURE)
    site = Site(config, 0, tmp_path, policy=SitePolicy(max_epsilon=None, reports=[]))
    answer = site.train(0, site.experiment.strategy.wire.download(site.server).numpy(), site.terms)
    assert answer.report() == {"client": 0}
    site.policy = SitePolicy(max_epsilon=None)
    report = site.train(1, answer.numbers, site.terms).report()
    assert set(report) == {"client", "epsilon", "final_epsilon"}
    ledger = site.experiment.ledgers["0"]
    for name, exact in (("epsilon", ledger.epsilon()), ("final_epsilon", ledger.final_epsilon())):
        assert exact <= report[name] < exact + 0.01 and report[name] == round(report[name], 2), (
            "its digits tell the size"
        )


def test_the_summary_of_a_federation_is_over_all_clients_and_all_rounds_and_it_states_its_privacy(small, tmp_path):
    seeded = PRIVATE | {"privacy__noise": "seeded"}
    config = small(federation__rounds=2, federation__one_pass="never", **seeded)
    experiment = build(config)
    server, terms = experiment.strategy.begin(), Terms.of(experiment)
    sites = [Site(config, client, tmp_path / str(client), policy=SIMULATED) for client in range(3)]
    rows = []
    for present in ([0, 1, 2], [0]):
        send = lambda *task, who=present: Exchange([sites[i].train(*task) for i in who])  # noqa: E731
        rows.append(remote_round(experiment, server, send, terms, rows[-1] if rows else None))
    assert set(rows[1]["epsilon_per_client"]) == {"0", "1", "2"}
    true = max(ledger.epsilon() for site in sites for ledger in site.experiment.ledgers.values())
    statement = federation_statement(config, rows)
    assert statement["max_epsilon"] == rows[1]["epsilon"] >= true
    assert [one["client"] for one in statement["clients"]] == [0, 1, 2]
    final = max(rows[1]["final_epsilon_per_client"].values())
    failed = federation_statement(config, [*rows, rows[1] | {"failed": ["1"]}])
    assert stated_epsilon(statement) >= true and stated_epsilon(failed) >= final > stated_epsilon(statement)
    text = statement_text(statement)
    assert "nothing is protected" in text.splitlines()[0] and "Not covered" in text
    measured = {"train_loss", "clipped", "samples", "median_norm", "padding", "nonfinite"}
    assert not measured & set(rows[0]), "the server measured none of these"


def test_a_client_that_does_not_report_its_epsilon_is_named_and_there_is_no_headline_for_all(small):
    config = small(**SECURE)
    experiment = build(config)
    server, terms, rows = experiment.strategy.begin(), Terms.of(experiment), []
    numbers = np.zeros(experiment.adapters.layout.size, np.float32)
    for who in ([0, 1, 2], [0]):
        answers = [Answer(i, numbers, epsilon=(1.5, 0.25, None)[i], final_epsilon=(3.0, 0.5, None)[i]) for i in who]
        row = remote_round(experiment, server, lambda *_, a=answers: Exchange(a), terms, rows[-1] if rows else None)
        rows.append(row)
    assert [row["answered"] for row in rows] == [[0, 1, 2]] * 2 and [row["epsilon"] for row in rows] == [None] * 2
    statement = federation_statement(config, rows)
    assert statement["max_epsilon"] is None and not statement["private"] and stated_epsilon(statement) is None
    assert (statement["max_reported_epsilon"], statement["not_reported"]) == (1.5, [2])
    head = statement_text(statement).splitlines()[0]
    assert (
        "ε = 1.5 at most" in head
        and "of the 2 clients that report it" in head
        and "others" in head
        and head.endswith(": 2")
    )


def test_no_epsilon_of_a_federation_s_statement_is_printed_below_what_a_client_said(small):
    row = {"epsilon_per_client": {"0": 123.41}, "final_epsilon_per_client": {"0": 1234.11}, "failed": []}
    said = statement_text(federation_statement(small(**SECURE), [row]))
    (line,) = (line.split() for line in said.splitlines() if line.split()[:1] == ["0"])
    assert line[1:] == ["123.5", "1235"]


def test_where_a_client_failed_the_headline_is_what_its_ledger_allows(small):
    row = {"epsilon_per_client": {"0": 1.0}, "final_epsilon_per_client": {"0": 3.0}, "failed": ["node 7: gone"]}
    config = small(**SECURE)
    assert federation_statement(config, [row])["max_epsilon"] == 3.0
    assert federation_statement(config, [row | {"failed": []}])["max_epsilon"] == 1.0
    unsaid = federation_statement(config, [row | {"epsilon_per_client": {}, "final_epsilon_per_client": {}}])
    assert unsaid["max_epsilon"] is None and "no client's policy reports" in statement_text(unsaid)
    assert "NOT private" in statement_text(federation_statement(small(), [row]))
