"""Values are chosen by the mean of several seeds, from grids that grow until the best lies inside."""

import math
from pathlib import Path

import pytest
from small_grid import small_grid

from ffalora.studies import tuning
from ffalora.studies.grid import TUNING_SEEDS
from ffalora.studies.results import CellResult, best_of
from ffalora.studies.tuning import choose_values, edges


def runs(grid, accuracy):
    """A stand-in for training: accuracy by method, learning rate and seed."""

    def run(cells):
        found = [(c, accuracy(c.method, dict(c.chosen)["optimizer.lr"], c.seed)) for c in cells]
        return [CellResult(cell, {"accuracy": value, "loss": 1.0}, Path()) for cell, value in found]

    return choose_values(grid, run)


def test_a_grid_grows_until_its_best_value_is_inside():
    best = {"lora": 30.0, "ffa": 8}
    results, chosen = runs(small_grid(), lambda m, lr, seed: 0.8 - 0.01 * abs(math.log(lr / best[m])))
    assert dict(chosen["lora", "a"]) == {"optimizer.lr": 32}
    tried = sorted({dict(r.cell.chosen)["optimizer.lr"] for r in results})
    assert tried == [1, 2, 4, 8, 16, 32, 64]
    assert edges({"optimizer.lr": tried}, chosen["lora", "a"]) == []


def test_a_grid_stops_growing_and_its_edge_is_known():
    results, chosen = runs(small_grid(), lambda m, lr, seed: 1 - 1 / lr)
    tried = sorted({dict(r.cell.chosen)["optimizer.lr"] for r in results})
    assert tried == [2.0**i for i in range(3 + tuning.MOST_WIDENINGS)]
    assert edges({"optimizer.lr": tried}, chosen["lora", "a"]) == ["optimizer.lr"]


def test_one_lucky_seed_does_not_choose():
    lucky = {(1, TUNING_SEEDS[0]): 0.9}
    _, chosen = runs(small_grid(), lambda m, lr, seed: lucky.get((lr, seed), {1: 0.6, 2: 0.75}.get(lr, 0.7)))
    assert dict(chosen["lora", "a"]) == {"optimizer.lr": 2}


@pytest.mark.parametrize("losses", [(0.5, 0.4, 0.6), (0.4, 0.3, 0.5)])
def test_of_two_equally_accurate_values_the_one_with_the_lower_loss_is_chosen(losses):
    cells = [c for c in small_grid().tuning_cells(("lora", "a")) if c.seed == TUNING_SEEDS[0]]
    found = [CellResult(c, {"accuracy": 0.7, "loss": x}, Path()) for c, x in zip(cells, losses, strict=True)]
    assert best_of(found, "accuracy") == cells[1].chosen


def test_as_many_right_answers_are_equally_accurate_however_their_mean_is_rounded():
    right = {1: (702, 702, 702), 2: (699, 702, 705)}  # of 1,007 each

    def found(losses):
        cells = [c for c in small_grid().tuning_cells(("lora", "a")) if dict(c.chosen)["optimizer.lr"] in right]
        rates = [dict(cell.chosen)["optimizer.lr"] for cell in cells]
        seeds = [TUNING_SEEDS.index(cell.seed) for cell in cells]
        rows = [{"accuracy": right[r][s] / 1007, "loss": losses[r]} for r, s in zip(rates, seeds, strict=True)]
        return [CellResult(cell, row, Path()) for cell, row in zip(cells, rows, strict=True)]

    for best in right:
        chosen = best_of(found({rate: 0.4 if rate == best else 0.5 for rate in right}), "accuracy")
        assert dict(chosen)["optimizer.lr"] == best


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
@pytest.mark.parametrize("diverged", [{}, {"accuracy": math.nan, "perplexity": math.nan, "loss": math.nan}])
def test_a_run_without_the_metric_or_whose_metric_is_no_number_is_the_worst(metric, diverged):
    cells = [c for c in small_grid().tuning_cells(("lora", "a")) if c.seed == TUNING_SEEDS[0]]
    found = [CellResult(c, {metric: 0.1, "loss": 1.0} if i else diverged, Path()) for i, c in enumerate(cells)]
    assert best_of(found, metric) != cells[0].chosen


def test_of_perplexities_the_lowest_is_the_best():
    cells = [c for c in small_grid().tuning_cells(("lora", "a")) if c.seed == TUNING_SEEDS[0]]
    found = [CellResult(c, {"perplexity": x}, Path()) for c, x in zip(cells, (3.0, 2.0, 4.0), strict=False)]
    assert best_of(found, "perplexity") == cells[1].chosen
