"""The study of theory: what it measures on a tiny federation, what it says, what it reads back, what it refuses."""

import html
import json
from pathlib import Path

import pytest
from small_runs import PRIVATE, save_model, save_texts, small_config

from ffalora.config import ConfigError
from ffalora.federated.simulate import simulate
from ffalora.studies.theory import Effort, measure, read_theory, run_theory, study, theory_command, theory_config
from ffalora.studies.theory.answers import fit_rows
from ffalora.studies.theory.folder import read_csv, to_csv
from ffalora.studies.theory.noise_alone import discordance_by_noise
from ffalora.studies.theory.plots import theory_plots
from ffalora.studies.theory.words import compared, multiple, percent, span, text

EFFORT = Effort(every=5, samples=12, curvature_samples=6, draws=4)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Both methods on the tiny model, two seeds, private, clients of equal weight."""
    folder = tmp_path_factory.mktemp("theory")
    methods = {name: {"federation.strategy": name} for name in ("ffa", "lora")}
    return small_config(
        save_model(folder / "model"), save_texts(folder / "texts.csv"), seeds=2, methods=methods,
        federation__rounds=5, federation__weighting="uniform", **PRIVATE,
    )  # fmt: skip


@pytest.mark.long
def test_it_measures_answers_and_reads_back_what_is_complete(small, tmp_path, monkeypatch):
    result = measure(small, tmp_path, progress=False, effort=EFFORT)
    assert len(result.verdicts) == 5 and len(result.tables) == 5 and len(result.plots) == 5
    assert "ffa averages exactly, in all 10 rounds" in result.verdicts[0]
    assert "lora misses" in result.verdicts[0] and "±" in result.verdicts[0]
    for (method, _), rows in result.rows.items():
        alone = discordance_by_noise(rows, small.runs()[method])
        assert list(alone) == [1, 2, 3, 4, 5] and all((value == 0) == (method == "ffa") for value in alone.values())
        assert [row["round"] for row in rows] == list(range(6))
        assert 0.5 < rows[-1]["noise"]["ratio"] < 2
        assert (rows[-1]["noise"]["share"] == 0) == (method == "ffa")
        assert all(row["smoothness"]["factors"] <= row["smoothness"]["bound"] for row in rows if "smoothness" in row)

    def unwanted(*_):
        raise AssertionError("a finished method was run again")

    lines = (tmp_path / "lora" / "seed-1" / "theory.jsonl").read_text().splitlines()
    (tmp_path / "lora" / "seed-1" / "theory.jsonl").write_text("\n".join(lines[:3]) + "\n")
    calls = []
    real = study.Measurements
    monkeypatch.setattr(study, "Measurements", lambda *terms: calls.append(terms[0].seed) or real(*terms))
    again = measure(small, tmp_path, progress=False, effort=EFFORT)
    assert calls == [1] and again.verdicts == result.verdicts
    monkeypatch.setattr(study, "Measurements", unwanted)
    assert measure(small, tmp_path, progress=False, effort=EFFORT).rows == again.rows


def test_results_of_another_configuration_are_refused(small, tmp_path):
    one = small.model_copy(update={"seeds": 1, "methods": {"ffa": small.methods["ffa"]}})
    measure(one, tmp_path, progress=False, effort=EFFORT)
    with pytest.raises(ConfigError, match="another configuration"):
        measure(one, tmp_path, progress=False, effort=Effort(every=5, samples=8, curvature_samples=6, draws=4))


def test_every_seed_draws_a_anew_and_methods_share_it(small, tmp_path, monkeypatch):
    drawn = {}

    def run(config, place, effort, bar):
        layers = study.Measurements(config, effort).experiment.adapters.layers
        drawn[config.federation.strategy, config.seed] = next(iter(layers.values())).lora_A.detach().clone()
        return [{"seconds": 0.0}]

    monkeypatch.setattr(study, "_run", run)
    monkeypatch.setattr(study, "answer", lambda rows, config: ([], [], []))
    measure(small, tmp_path, progress=False, effort=EFFORT)
    assert not drawn["ffa", 0].equal(drawn["ffa", 1])
    assert all(drawn["ffa", seed].equal(drawn["lora", seed]) for seed in range(2))


def test_training_is_what_simulate_does(small, tmp_path):
    one = small.model_copy(update={"seeds": 1, "methods": {"lora": small.methods["lora"]}})
    rows = next(iter(measure(one, tmp_path / "theory", progress=False, effort=EFFORT).rows.values()))
    run = simulate(one.runs()["lora"].model_copy(update={"seeds": 1}), tmp_path / "run", progress=False)
    assert [row["epsilon"] for row in rows[1:]] == [row["epsilon"] for row in run.rounds]
    gaps = [row["discordance"]["total"] for row in rows[1:]]
    assert all(gap > 0 for gap in gaps) and all(row["update_gap"] > 0 for row in run.rounds)
    first = rows[1]["discordance"]
    assert first["total"] / first["update"] == pytest.approx(run.rounds[0]["update_gap"], rel=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer__name", "adamw"),
        ("federation__strategy", "fedsvd"),
        ("model__dtype", "bfloat16"),
        ("optimizer__normalize", True),
        ("optimizer__weight_decay", 0.1),
        ("federation__prox_mu", 0.1),
        ("federation__robust_mean", "median"),
    ],
)
def test_what_the_formulas_do_not_describe_is_refused(tmp_path, key, value):
    config = small_config(Path("no-model"), Path("no-data"), **{key: value})
    with pytest.raises(ConfigError, match=key.replace("__", ".")):
        measure(config, tmp_path, progress=False, effort=EFFORT)


def test_the_configurations_that_ship_are_described_by_the_formulas():
    for smoke in (False, True):
        config = theory_config(smoke)
        assert set(config.runs()) == {"ffa", "lora"} and config.model.dtype == "float32"
    assert theory_config().seeds >= 3


def test_rows_are_json_that_every_reader_takes(small, tmp_path):
    one = small.model_copy(update={"seeds": 1, "methods": {"ffa": small.methods["ffa"]}})
    result = measure(one, tmp_path, progress=False, effort=EFFORT)
    for line in (tmp_path / "ffa" / "seed-0" / "theory.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(word))
    assert fit_rows(next(iter(result.rows.values())))


def test_words_say_means_with_intervals_and_own_up_to_what_is_missing():
    assert text([1.0]) == "1" and text([]) == "–" and text([float("nan")]) == "–"
    assert text([1.0, 2.0, 3.0]) == "2 ± 2.5" and text([2.0, float("inf")]) == "2 (1 not finite)"
    assert percent([0.5, 0.5]) == "50 ± 0%"
    assert multiple([2.0, 8.0]) == "4 (0.0006 to 2.7e+04)" and multiple([1.0, 1.0]) == "1" and multiple([0.0]) == "–"
    assert multiple([2.0, 0.0]) == "2 (1 without a logarithm)" and multiple([8999.0]) == "9000"
    assert text([1234.0, 1240.0]) == "1240 ± 38" and text([2e5]) == "2e+05"
    assert span([3.0, 1.0, 2.0]) == "1 to 3" and span([]) == "–"


@pytest.mark.parametrize(
    ("ones", "others", "said"),
    [
        ([2.0, 2.1, 1.9], [1.0, 1.0, 1.0], "larger"),
        ([1.0, 1.0, 1.0], [2.0, 2.1, 1.9], "smaller"),
        ([1.0, 3.0, 0.4], [1.0, 1.0, 1.0], "undecided"),
        ([2.0], [1.0], "without an interval"),
        ([float("nan")], [1.0], "cannot be compared"),
    ],
)
def test_a_comparison_decides_only_where_the_interval_of_the_ratio_leaves_out_one(ones, others, said):
    assert compared("growth", "lora", ones, "ffa", others).endswith(said)


def test_an_interval_of_a_positive_quantity_stays_above_zero_in_its_plot():
    seeds = [[{"round": r, "loss": loss, "discordance": None} for r in (0, 1)] for loss in (0.1, 0.1, 8.0, 0.0)]
    (plot,) = theory_plots({"lora": seeds[:3]})
    axes = plot.figure.axes[0]
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    middle = 0.8 ** (1 / 3) / 10 ** (1 / 3)
    assert "geometric" in plot.title and axes.get_yscale() == "log" and heights.min() > 0
    assert heights.min() * heights.max() == pytest.approx(middle**2)
    assert axes.lines[0].get_ydata() == pytest.approx([middle] * 2)
    assert theory_plots({"lora": seeds}) == []  # without a logarithm there is nothing to draw


@pytest.mark.long
def test_its_page_holds_every_verdict_and_how_to_repeat_it(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Effort, "of", classmethod(lambda cls, config: EFFORT))
    result = run_theory(small, tmp_path, progress=False, command="ffalora study theory --seeds 2")
    page = html.unescape((tmp_path / "study.html").read_text())
    assert all(verdict in page for verdict in result.verdicts) and "ffalora study theory --seeds 2" in page
    assert len(list((tmp_path / "plots").glob("*.svg"))) == len(result.plots) == page.count("<svg")
    stored, read = read_theory(tmp_path)
    assert stored == small and (read.verdicts, read.tables) == (result.verdicts, result.tables)
    assert read.seconds == result.seconds > 0 and f"4 runs; {result.seconds:.0f} seconds of training" in page
    assert json.loads((tmp_path / "environment.json").read_text())["device"] in page
    with pytest.raises(ConfigError, match="--resume"):
        run_theory(small, tmp_path, progress=False)
    assert run_theory(small, tmp_path, resume=True, progress=False).verdicts == result.verdicts


def test_numbers_come_through_the_table_unchanged(tmp_path):
    row = {
        "round": 1,
        "trained": "b",
        "loss": 0.1 + 0.2,
        "epsilon": float("inf"),
        "discordance": {"layers": {"0.query": 1e-300, "1": 3.0}, "total": 0.0},
        "gradients": {"all": {"quantiles": [1 / 3, 2.0]}},
    }
    first = {"round": 0, "trained": "b", "loss": 0.5, "epsilon": None, "discordance": None}
    (tmp_path / "results.csv").write_text(to_csv({("ffa", 3): [first, row], ("lora", 4): [row]}))
    assert read_csv(tmp_path / "results.csv") == {("ffa", 3): [first | {"gradients": None}, row], ("lora", 4): [row]}


def test_its_command_repeats_the_same_measurements():
    assert theory_command(theory_config()) == "ffalora study theory --size verdict"
    assert theory_command(theory_config(smoke=True), "smoke") == "ffalora study theory --size smoke"
    changed = theory_config(overrides={"federation.rounds": 12})
    assert theory_command(changed) == "ffalora study theory --size verdict --federation.rounds 12"
