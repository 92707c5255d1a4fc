"""Grids: which runs a study consists of, what each is configured to do, and what is refused."""

import pytest
import yaml
from small_grid import DEFINITION, small_grid

from ffalora.config import ConfigError
from ffalora.studies.grid import TUNING_SEEDS, Cell, load_grid, with_seeds
from ffalora.studies.protocol import shipped
from ffalora.studies.study import Study, load_study, study_names, tier_names

CHOSEN = {(m, c): (("optimizer.lr", v),) for m, v in (("lora", 2.0), ("ffa", 8.0)) for c in "ab"}


def changed(path, value):
    """The definition with one part replaced."""
    definition = yaml.safe_load(yaml.safe_dump(DEFINITION))
    *parents, last = path.split("/")
    at = definition
    for part in parents:
        at = at[int(part) if part.isdigit() else part]
    at[last] = value
    return definition


def test_every_cell_is_there_once():
    cells = small_grid().verdict_cells(CHOSEN)
    places = {(cell.method, cell.condition, cell.seed) for cell in cells}
    assert len(cells) == len(places) == len({small_grid().folder_name(cell) for cell in cells}) == 2 * 3 * 2
    assert [cell.seed for cell in cells] == [0] * 6 + [1] * 6, "what is finished of a study is paired"
    assert {seed for _, _, seed in places} == {0, 1}
    assert {cell.seed for cell in with_seeds(small_grid(), 4).verdict_cells(CHOSEN)} == {0, 1, 2, 3}
    assert {cell.seed for cell in with_seeds(small_grid(), 2, 50).verdict_cells(CHOSEN)} == {50, 51}


def test_every_combination_of_what_is_tried_is_run():
    tried = {"lora": {"optimizer.lr": [1, 2], "adapter.alpha": [4, 8, 16]}, "ffa": {"optimizer.lr": [8]}}
    grid = small_grid(tried=tried)
    cells = [(tuple(sorted(dict(cell.chosen).items())), cell.seed) for cell in grid.tuning_cells(("lora", "a"))]
    assert len(set(cells)) == len(cells) == 6 * 3
    assert ((("adapter.alpha", 16), ("optimizer.lr", 2)), TUNING_SEEDS[2]) in cells
    assert len(grid.tuning_cells(("ffa", "a"))) == 3


def test_a_condition_that_is_like_another_takes_its_values():
    grid = small_grid()
    assert grid.tuned_places() == [("lora", "a"), ("ffa", "a"), ("lora", "b"), ("ffa", "b")]
    (cell, *_) = [c for c in grid.verdict_cells(CHOSEN) if (c.method, c.condition) == ("lora", "c")]
    assert cell.chosen == CHOSEN["lora", "a"]


def test_a_factor_multiplies_what_was_chosen_or_configured():
    grid = small_grid()
    plain, off = (grid.config(Cell("lora", name, 1, CHOSEN["lora", "a"])) for name in "ac")
    assert (plain.optimizer.lr, off.optimizer.lr) == (2, 8)
    assert (plain.adapter.alpha, off.adapter.alpha) == (8, 4)
    assert grid.config(Cell("lora", "b", 1, CHOSEN["lora", "b"])).federation.local_steps == 1


def test_values_are_chosen_on_seeds_and_splits_that_no_verdict_uses():
    grid = small_grid({"data": {"evaluate_on": "test"}})
    for cell in grid.tuning_cells(("lora", "a")):
        assert cell.seed in TUNING_SEEDS and grid.config(cell).data.evaluate_on == "validation"
    for cell in grid.verdict_cells(CHOSEN):
        config = grid.config(cell)
        assert cell.seed not in TUNING_SEEDS and config.data.evaluate_on == "test"
        assert config.seed == config.adapter.seed == cell.seed, "methods of one seed do not share their draws"


def test_methods_of_one_seed_differ_in_the_method_alone():
    grid = small_grid()
    one, other = (grid.config(Cell(m, "a", 1, CHOSEN[m, "a"])).model_dump() for m in ("lora", "ffa"))
    for config in (one, other):
        config["federation"].pop("strategy")
        config["optimizer"].pop("lr")
    assert one == other


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("conditions/c/like", "z", "is not one of a, b, c"),
        ("conditions/b/like", "c", "takes its values elsewhere"),
        ("tried", {"fedsvd": {"optimizer.lr": [1]}}, "'fedsvd' is not one of the methods ffa, lora"),
        ("conditions/b/methods", ["nobody"], "'nobody' is not one of the methods ffa, lora"),
        ("claims/0/contrast", {"nobody@a": 1}, "names nothing in the grid"),
        ("questions", "?", "there is no such key"),
        ("conditions/a/sets", {}, "there is no such key"),
    ],
)
def test_a_study_that_names_nothing_there_is_refused(path, value, said):
    with pytest.raises(ConfigError, match=said):
        Study.model_validate(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("conditions/b/set", {"federation.steps": 1}, r"small, b.*|federation\.steps"),
        ("conditions/b/set", {"federation.local_steps": "many"}, "local_steps"),
        ("conditions/c/factor", {"federation.strategy": 2}, r"factor\.federation\.strategy needs a number"),
    ],
)
def test_a_key_or_value_that_does_not_fit_is_refused(path, value, said):
    grid = small_grid(conditions=changed(path, value)["conditions"])
    with pytest.raises(ConfigError, match=said):
        for cell in grid.verdict_cells(CHOSEN):
            grid.config(cell)


@pytest.mark.parametrize("seeds", [0, -1, "abc", 2.5, True])
def test_a_number_of_seeds_that_is_none_is_refused(seeds):
    with pytest.raises(ConfigError, match=f"--seeds {seeds}: .*at least one"):
        with_seeds(load_grid("privacy", "laptop", "smoke"), seeds)


@pytest.mark.parametrize(
    ("key", "value", "setter"),
    [
        ("federation.strategy", "ffa", "method lora"),
        ("optimizer.lr", 0.5, "method lora"),
        ("privacy.target_epsilon", 2, "condition no-dp"),
        ("adapter.seed", 7, "every seed"),
        ("data.evaluate_on", "validation", "the choice of values"),
    ],
)
def test_a_flag_that_cells_would_not_keep_is_refused(key, value, setter):
    with pytest.raises(ConfigError, match=f"--{key}: study privacy sets {key} itself, for {setter}"):
        load_grid("privacy", "laptop", "verdict", {key: value})
    assert load_grid("privacy", "laptop", "verdict", {"federation.rounds": 2}).base["federation"]["rounds"] == 2


def test_no_verdict_is_of_seeds_that_chose_values():
    grid = load_grid("privacy", "laptop", "verdict")
    with pytest.raises(ConfigError, match=r"--first-seed 998: .* 1000, 1001, 1002 choose values"):
        with_seeds(grid, 5, 998)
    assert list(with_seeds(grid, 5, 995).seeds) == [995, 996, 997, 998, 999]


def test_unknown_names_get_a_helpful_answer():
    with pytest.raises(ConfigError, match="no study 'nothing'; choose one of alpha, "):
        load_study("nothing")
    with pytest.raises(ConfigError, match="has no scale 'moon'"):
        load_grid("alpha", "moon", "smoke")
    grid = load_grid("alpha", "laptop", "smoke", {"federation.round": 3})
    with pytest.raises(ConfigError, match=r"federation\.round"):
        grid.config(grid.tuning_cells(("lora", "alpha-8"))[0])


@pytest.mark.parametrize("name", study_names())
@pytest.mark.parametrize("size", ["smoke", "verdict"])
@pytest.mark.parametrize("protocol", shipped("protocols"))
def test_every_cell_of_the_packages_studies_can_be_configured(name, size, protocol):
    grid = load_grid(name, "laptop", size, protocol=protocol)
    for cell in grid.verdict_cells(grid.first_chosen()):
        if cell.seed == 0:
            assert grid.config(cell).data.evaluate_on == "test"
    assert size == "smoke" or len(grid.seeds) >= 5


def test_every_claim_of_the_paper_has_a_study():
    paper = {name: [c for c in load_study(name).claims if c.paper] for name in study_names()}
    assert {name for name, claims in paper.items() if claims} == set(tier_names("A"))
    assert tier_names("A") == ["privacy", "heterogeneity", "stability", "alpha", "cost"]


def test_a_method_is_run_in_the_conditions_that_name_it():
    grid = small_grid(conditions={"a": {}, "b": {"methods": ["ffa"]}, "c": {}})
    assert ("lora", "b") not in grid.places() and ("ffa", "b") in grid.places() and len(grid.places()) == 5


def test_cells_of_one_configuration_share_a_folder_and_no_others():
    grid = small_grid()
    twice = small_grid(conditions={"a": {}, "b": {"says": "the same again"}, "c": {}})
    name = grid.folder_name(Cell("lora", "a", 1, CHOSEN["lora", "a"]))
    assert name == twice.folder_name(Cell("lora", "b", 1, CHOSEN["lora", "a"]))
    others = [Cell("lora", "b", 1, CHOSEN["lora", "a"]), Cell("lora", "a", 2, CHOSEN["lora", "a"])]
    assert name not in [grid.folder_name(cell) for cell in others]
