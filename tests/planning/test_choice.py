"""A private choice: only the best trial stays, and the data set pays for the choice once, whatever happens."""

import json
import logging
import random
import sys

import pytest
from small_runs import PRIVATE

from ffalora.config import ConfigError
from ffalora.federated.simulate import simulate
from ffalora.planning import choice
from ffalora.planning.choice import BEST, CHOICE, TRIAL, candidates, choose, prepare
from ffalora.privacy.data_ledger import find_data_ledger
from ffalora.runs.folder import LEDGERS, RunResult

SECURE = {"privacy__unit": "sample", "privacy__target_epsilon": 8.0, "privacy__delta": 1e-3}
RATES = {"optimizer.lr": [0.25, 0.5, 1.0]}
ANSWERS = {"data__task": "causal-lm", "data__answer_tokens": 4}


class Scripted(random.Random):
    """Chance that ends a choice after so many trials, whose values are drawn in order."""

    def __init__(self, trials):
        super().__init__(0)
        self.left, self.drawn = trials, -1

    def random(self):
        self.left -= 1
        return 0.0 if self.left == 0 else 0.999

    def randrange(self, count):
        self.drawn = (self.drawn + 1) % count
        return self.drawn


@pytest.fixture
def chance(monkeypatch):
    """A function that scripts the operating system's generator."""

    def script(trials):
        scripted = Scripted(trials)
        monkeypatch.setattr(choice.secrets, "SystemRandom", lambda: scripted)

    return script


def scored(scores, begun=None):
    """A trainer that writes next to nothing, and whose accuracy is given for each rate."""

    def train(config, folder, resume, progress):
        (folder / "made").write_text(str(config.optimizer.lr))
        if begun is not None:
            begun.append((config.seed, config.optimizer.lr))
            if len(begun) == 1:
                raise KeyboardInterrupt
        return RunResult(folder, {"metrics": {"accuracy": scores[config.optimizer.lr], "loss": 1.0}}, [])

    return train


def test_the_best_trial_stays_and_nothing_tells_of_the_others(small, tmp_path, chance):
    chance(7)
    config = prepare(small(**SECURE), RATES, 10.0)
    found = choose(config, RATES, tmp_path, scored({0.25: 0.5, 0.5: 0.9, 1.0: 0.7}))
    assert (found.values, found.score, found.metric) == ({"optimizer.lr": 0.5}, 0.9, "accuracy")
    assert (tmp_path / BEST / "made").read_text() == "0.5" and not (tmp_path / TRIAL).exists()
    assert json.loads((tmp_path / CHOICE).read_text())["trials"] is None


def test_what_is_seen_of_a_choice_is_the_same_however_many_trials_it_takes(small, tmp_path, chance, caplog, capfd):
    config = small(**SECURE | {"federation__rounds": 1, "privacy__ledger": "notes"})

    def train(config, folder, resume, progress):
        logging.getLogger("a library").warning("loaded for %s", config.optimizer.lr)
        print("half of it", file=sys.stderr)
        print("all of it")
        return simulate(config, folder, resume, progress)

    seen = []
    for trials in (1, 3):
        chance(trials)
        caplog.clear()
        choose(prepare(config, RATES, 10.0), RATES, tmp_path / str(trials), train)
        seen.append(([record.name for record in caplog.records], capfd.readouterr()))
    assert seen[0] == seen[1] == (["ffalora.privacy.accounts"], ("", ""))
    logging.getLogger("a library").warning("is heard again")
    assert caplog.records[-1].getMessage() == "is heard again"


def test_a_lower_loss_and_a_number_beat_a_higher_one_and_none(small, tmp_path, chance):
    chance(3)
    config = prepare(small(**SECURE), RATES, 10.0)

    def train(config, folder, resume, progress):
        loss = {0.25: float("nan"), 0.5: 3.0, 1.0: 2.0}[config.optimizer.lr]
        return RunResult(folder, {"metrics": {"loss": loss}}, [])

    assert choose(config, RATES, tmp_path, train, metric="loss").values == {"optimizer.lr": 1.0}


def test_an_interrupted_trial_is_taken_up_with_the_values_it_began_with(small, tmp_path, chance):
    chance(2)
    config, begun = prepare(small(**SECURE), RATES, 10.0), []
    train = scored({0.25: 0.5, 0.5: 0.9, 1.0: 0.7}, begun)
    with pytest.raises(KeyboardInterrupt):
        choose(config, RATES, tmp_path, train)
    with pytest.raises(ConfigError, match="--resume to continue it"):
        choose(config, RATES, tmp_path, train)
    with pytest.raises(ConfigError, match="must not depend on what was seen"):
        choose(config, {"optimizer.lr": [4.0, 8.0]}, tmp_path, train, resume=True)
    choose(config, RATES, tmp_path, train, resume=True)
    assert [rate for _, rate in begun] == [0.25, 0.25, 1.0]


def test_seeded_choices_repeat_and_their_trials_have_noise_of_their_own(small, tmp_path):
    config, runs = prepare(small(**SECURE, privacy__noise="seeded"), RATES, 4.0), []
    for name in ("one", "two"):
        begun = [None]
        (tmp_path / name).mkdir()
        choose(config, RATES, tmp_path / name, scored({0.25: 0.5, 0.5: 0.9, 1.0: 0.7}, begun))
        runs.append(begun[1:])
    assert runs[0] == runs[1] and [seed for seed, *_ in runs[0]] == list(range(len(runs[0])))


@pytest.mark.long
def test_the_data_set_pays_once_and_the_best_run_states_the_epsilon_of_the_choice(small, tmp_path, chance):
    chance(3)
    config = prepare(small(**SECURE, federation__rounds=1), RATES, 10.0)
    choose(config, RATES, tmp_path / "choice", simulate)
    said = json.loads((tmp_path / "choice" / BEST / "privacy.json").read_text())
    assert 7.9 < said["max_epsilon"] <= 8 and "10 on average" in said["mechanism"] and not said["simulation"]
    book = find_data_ledger(None, config.data.name)
    assert [(entry.steps.steps, entry.steps.trials, entry.steps.trial_steps) for entry in book.entries] == 3 * [
        (1, 10.0, 2)
    ]
    assert len(list((tmp_path / "choice" / BEST / LEDGERS).glob("*.json"))) == 3
    alone = prepare(small(**SECURE, federation__rounds=1), RATES, 10.0)
    simulate(alone.model_copy(update={"privacy": alone.privacy.model_copy(update={"trials": 1.0})}), tmp_path / "later")
    later = json.loads((tmp_path / "later" / "privacy.json").read_text())
    assert later["clients"][0]["epsilon"] > said["max_epsilon"] > later["clients"][0]["own_epsilon"] * 0.9


def test_methods_and_values_are_mixed(small):
    config = prepare(small(**SECURE, methods={"ffa": {}, "lora": {"federation.strategy": "lora"}}), RATES, 10.0)
    found = candidates(config, RATES)
    assert len(found) == 6 and found[3][0] == {"method": "lora", "optimizer.lr": 0.25}
    assert {one.federation.strategy for _, one in found} == {"ffa", "lora"} and found[0][1].privacy.trials == 10


def test_what_does_not_change_what_a_step_spends_may_be_tried(small):
    config = small(**SECURE, data__augment="word-dropout")
    prepare(config, {"data.views": [1, 4], "data.augment_rate": [0.1, 0.2], "privacy.max_grad_norm": [0.5, 1.0]}, 10.0)


@pytest.mark.parametrize(
    ("changes", "tried", "trials", "said"),
    [
        ({}, {"optimizer.batch_size": [4, 8]}, 10.0, "would not spend what the others do"),
        ({}, {"federation.rounds": [1, 2]}, 10.0, "federation.rounds was 1 and is 2"),
        ({}, {"privacy.delta": [1e-3, 1e-4]}, 10.0, "privacy.delta was"),
        ({}, {"optimizer.lr": [1.0]}, 10.0, "one candidate"),
        ({}, {"optimizer.rate": [1.0, 2.0]}, 10.0, "optimizer.rate"),
        ({}, RATES, 1.0, "--trials 1: must lie above 1"),
        ({"seeds": 2}, RATES, 10.0, "seeds=2"),
        ({"report_to": ["trackio"]}, RATES, 10.0, "keep the metrics of every trial"),
        ({"privacy__unit": "none", "privacy__target_epsilon": None}, RATES, 10.0, "protects samples or users"),
        ({"privacy__mechanism": "blt"}, RATES, 10.0, "trials=10 is not derived for mechanism='blt'"),
    ],
)
def test_what_a_choice_cannot_be_made_of_is_refused(small, changes, tried, trials, said):
    with pytest.raises(ConfigError, match=said):
        prepare(small(**SECURE | changes), tried, trials)


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, "'classification' have accuracy, macro_f1, loss;"),
        ({"data__task": "regression"}, "'regression' have mse, pearson, loss;"),
        (ANSWERS, "'causal-lm' have perplexity, token_accuracy, loss, rouge_l, exact_match;"),
    ],
)
def test_a_metric_that_the_task_does_not_have_is_refused_before_anything_trains(small, tmp_path, changes, known):
    config, begun = prepare(small(**PRIVATE, **changes), RATES, 10.0), []
    with pytest.raises(ConfigError, match=f"--metric f2: runs of data.task={known}"):
        choose(config, RATES, tmp_path / "choice", scored({}, begun), metric="f2")
    assert not begun and not (tmp_path / "choice").exists()


def test_a_metric_that_the_data_lack_is_refused_and_another_may_follow_before_any_score(small, tmp_path, chance):
    chance(1)
    config, train = prepare(small(**PRIVATE, **ANSWERS), RATES, 10.0), scored({0.25: 0.5})
    with pytest.raises(ConfigError, match="runs have accuracy, loss"):
        choose(config, RATES, tmp_path, train, metric="exact_match")
    assert choose(config, RATES, tmp_path, train, metric="loss", resume=True).score == 1.0
    with pytest.raises(ConfigError, match="must not depend on what was seen"):
        choose(config, RATES, tmp_path, train, metric="rouge_l", resume=True)
