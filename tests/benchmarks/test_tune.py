"""Tuning keeps what it measured, goes on where it stopped, and tries a configuration on one family alone."""

import bench_path  # noqa: F401
import pytest

pytest.importorskip("triton")
import tune

from ffalora_kernels.triton import configs


@pytest.fixture
def few(monkeypatch) -> None:
    monkeypatch.setattr(tune, "RANKS", (16, 64))
    monkeypatch.setattr(tune, "CANDIDATES", {"backward": [(32, 64, 4, 2), (64, 64, 4, 2)], "expand": [(32, 64, 4, 2)]})


def test_a_configuration_is_tried_on_its_family_alone() -> None:
    tried = configs.Config(1, 2, 3, 4)
    with tune.trying("backward", tried):
        assert configs.choose("backward", "sm_90", 2, 64) == tried
        assert configs.choose("project", "sm_90", 2, 64) != tried
        assert configs.choose("expand", "sm_90", 2, 64, aligned=False) != tried
    assert configs.choose("backward", "sm_90", 2, 64) != tried


def test_it_goes_on_where_it_stopped_and_keeps_every_row(few, tmp_path) -> None:
    seen, path = [], tmp_path / "runs" / "tune.csv"

    def measure(family: str, r: int, config: configs.Config) -> float:
        seen.append((family, r, config.block_t))
        if (family, r) == ("expand", 64):
            raise RuntimeError("wrong\nresult")
        return config.block_t * r / 1000

    left = iter([True, True, False])
    assert not tune.tune(path, "a part", "sm_90", measure, lambda: next(left))
    assert len(tune.read(path)) == 2
    assert tune.tune(path, "a part", "sm_90", measure, lambda: True)
    assert len(seen) == len(set(seen)) == len(tune.read(path)) == 6
    assert tune.tune(path, "a part", "sm_90", measure, lambda: False), "nothing was left to measure"
    assert [row["status"] for row in tune.read(path).values()].count("wrong result") == 1


def test_the_table_names_the_fastest_of_each_rank_on_this_part(few, tmp_path) -> None:
    path = tmp_path / "tune.csv"
    tune.tune(path, "a part", "sm_90", lambda family, r, config: 1 / config.block_t, lambda: True)
    tune.tune(path, "another", "sm_80", lambda family, r, config: config.block_t, lambda: True)
    text = tune.table(tune.read(path).values(), "a part", "sm_90")
    assert text.count("16: Config(64, 64, 4, 2)") == 1 and text.count("64: Config(64, 64, 4, 2)") == 1
    assert text.count("16: Config(32, 64, 4, 2)") == 1, "expand has one candidate"


def test_every_candidate_that_is_frozen_today_is_among_those_that_are_tried() -> None:
    for family, candidates in tune.CANDIDATES.items():
        for r in tune.RANKS:
            frozen = configs.choose(family, "sm_90", 2, r)
            assert (frozen.block_t, frozen.block_n, frozen.num_warps, frozen.num_stages) in candidates
