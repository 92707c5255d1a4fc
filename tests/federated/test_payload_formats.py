"""Uploads in fewer bits, or in parts: unbiased or made up for later, bounded, counted, the same in the simulator and at
sites, refused under masks.
"""

import math

import numpy as np
import pytest
import torch
from small_runs import CLIENT_LEVEL, PRIVATE
from test_sites import run_simulator, send_to, sites_of

from ffalora.config import ConfigError
from ffalora.federated.experiment import build
from ffalora.federated.flower.answers import read_answer
from ffalora.federated.flower.rounds import check_secure_aggregation, remote_round
from ffalora.federated.flower.terms import Terms
from ffalora.federated.payload import packed, received_row, through_the_wire, unpacked
from ffalora.federated.simulate import simulate
from ffalora.federated.strategies import STRATEGIES
from ffalora.federated.strategies.wire import BLOCK, payload_bytes

KINDS = ("float16", "int8", "top-k")
ABLE = [name for name, method in STRATEGIES.items() if method.linear and method.steady]


def _begun(small, **changes):
    """An experiment at the start of its first round, and rows of two clients that have moved."""
    experiment = build(small(**changes))
    server = experiment.strategy.begin()
    experiment.strategy.load(server, trains=True)
    start = experiment.strategy.start(server, [0, 1])
    generator = torch.Generator().manual_seed(0)
    layout = experiment.strategy.wire.trained_layout(server)
    moved = torch.stack([layout.from_payload(torch.randn(layout.size, generator=generator)) for _ in start])
    return experiment, server, start, start + 0.1 * moved


@pytest.mark.parametrize(
    "kind,bytes_of_1000",
    [("float32", 4000), ("float16", 2000), ("int8", 1000 + 4 * 16), ("top-k", 4 + 125 + 2 * 50)],
)
def test_bytes_are_those_of_the_arrays(kind, bytes_of_1000, small):
    assert payload_bytes(kind, 1000, share=0.05) == bytes_of_1000
    experiment, server, _, rows = _begun(small, federation__payload=kind, federation__payload_share=0.05)
    arrays = packed(experiment.config, experiment.strategy, server, 0, rows[0])
    assert sum(array.nbytes for array in arrays) == experiment.strategy.wire.bytes_up(server)


@pytest.mark.parametrize("name,kind", [("ffa", "float16"), *((name, "int8") for name in STRATEGIES)])
def test_what_arrives_is_within_a_level_of_what_was_sent(name, kind, small):
    ranks = {"clients__ranks": [1, 2, 2]} if STRATEGIES[name].takes_ranks else {}
    experiment, server, start, rows = _begun(small, federation__payload=kind, federation__strategy=name, **ranks)
    found = through_the_wire(experiment.config, experiment.strategy, server, [0, 1], rows)
    moved = (rows - start).abs()
    level = moved.max() / 127 if kind == "int8" else moved.max() * 2**-10
    assert 0 < float((found - rows).abs().max()) <= float(level) * (1 + 1e-5)
    assert torch.equal(through_the_wire(experiment.config, experiment.strategy, server, [0, 1], start), start)


def test_stochastic_rounding_is_right_on_average_and_differs_between_clients_and_rounds(small):
    experiment, server, start, rows = _begun(small, federation__payload="int8")
    found = []
    for server.round in range(400):
        found.append(through_the_wire(experiment.config, experiment.strategy, server, [3], rows[:1])[0] - start[0])
    found = torch.stack(found)
    level, moved = (rows[0] - start[0]).abs().max() / 127, rows[0] - start[0]
    assert float((found.mean(0) - moved).abs().max()) < 5 * float(level) / 2 / math.sqrt(400)
    assert not torch.equal(found[0], found[1])
    other = through_the_wire(experiment.config, experiment.strategy, server, [4], rows[:1])[0] - start[0]
    assert not torch.equal(other, found[-1])


@pytest.mark.parametrize("name", ABLE)
def test_the_largest_moves_are_sent_first_and_the_others_later(name, small):
    """What was sent in all rounds and what is left are the moves of all rounds."""
    experiment, server, start, rows = _begun(small, federation__payload="top-k", federation__strategy=name)
    wire, sums, seen = experiment.strategy.wire, [], []
    moved = wire.upload(server, rows[0]) - wire.upload(server, start[0])
    for server.round in range(40):
        (found,) = through_the_wire(experiment.config, experiment.strategy, server, [1], rows[:1])
        sums.append(wire.upload(server, found) - wire.upload(server, start[0]))
        seen.append(sums[-1] != 0)
    count = math.ceil(0.1 * len(moved))
    assert all(int(each.sum()) <= count for each in seen)
    torch.testing.assert_close(seen[0].nonzero().flatten(), moved.abs().topk(count).indices.sort().values)
    left = server.clients.rows("payload.left", [1], torch.zeros_like(moved))[0]
    torch.testing.assert_close(torch.stack(sums).sum(0) + left, 40 * moved, rtol=1e-4, atol=1e-4)
    assert float(left.abs().max()) <= float(moved.abs().max()) / 0.1, "whatever waits is sent when its turn comes"
    assert torch.stack(seen).any(0).sum() > 5 * count
    assert server.clients.known("payload.left") == [1]


def test_whoever_does_not_arrive_has_sent_nothing_and_an_update_that_is_not_finite_changes_nothing_kept(small):
    experiment, server, _, rows = _begun(small, federation__payload="top-k")
    kept = []
    for arrives, change in (([True, True], 0.0), ([True, False], 0.0), ([False, True], math.nan)):
        rows[1, 0] += change
        found = through_the_wire(experiment.config, experiment.strategy, server, [0, 1], rows, arrives)
        kept.append(server.clients.rows("payload.left", [0, 1], torch.zeros(experiment.adapters.layout.size)))
    assert torch.equal(kept[0][1], kept[1][1]) and not torch.equal(kept[0][0], kept[1][0])
    assert torch.equal(kept[1], kept[2]) and torch.equal(found[0], rows[0])


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ABLE])
def test_moves_that_come_a_round_late_are_refused_where_columns_are_no_longer_the_same(name, small):
    with pytest.raises(ConfigError, match=rf"federation.payload='top-k' does not go with .*{name}.*can: lora, ffa"):
        build(small(federation__payload="top-k", federation__strategy=name))


@pytest.mark.parametrize(
    "changes,said", [(CLIENT_LEVEL, "privacy.unit='client'"), ({"federation__robust_mean": "median"}, "robust_mean")]
)
def test_parts_of_updates_are_refused_where_rows_are_compared_or_noised_by_the_server(changes, said, small):
    with pytest.raises(ConfigError, match=said):
        build(small(**changes, federation__payload="top-k"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_not_finite_stays_so(kind, small):
    experiment, server, _, rows = _begun(small, federation__payload=kind)
    rows[0, 0], rows[1, 0] = math.nan, -math.inf
    found = through_the_wire(experiment.config, experiment.strategy, server, [0, 1], rows)
    assert not found.isfinite().all(1).any()


@pytest.mark.long
@pytest.mark.parametrize(
    "kind,name",
    [(kind, name) for kind in KINDS for name in ("ffa", "fedsa", "rolora") if kind != "top-k" or name in ABLE],
)
def test_sites_end_where_the_simulator_ends(kind, name, small, tmp_path):
    config = small(federation__strategy=name, federation__one_pass="never", federation__payload=kind)
    experiment = build(config)
    server, terms = experiment.strategy.begin(), Terms.of(experiment)
    for _ in range(2):
        send = send_to(sites_of(config, tmp_path), lambda answer: read_answer(answer.report(), answer.arrays, kind))
        row = remote_round(experiment, server, send, terms)
        assert row["failed"] == []
    _, here, rows = run_simulator(config, 2)
    torch.testing.assert_close(server.row, here.row, rtol=0, atol=1e-6)
    assert rows[0]["bytes_up"] == 3 * build(config).strategy.wire.bytes_up(experiment.strategy.begin())


@pytest.mark.long
@pytest.mark.parametrize("name", ["ffa", "flora", "fedsa"])
def test_runs_in_fewer_bits_end_near_those_in_all(name, small, tmp_path):
    config, whole = (small(federation__strategy=name, federation__payload=kind) for kind in ("int8", "float32"))
    few, all_bits = (simulate(c, tmp_path / n, progress=False) for n, c in (("int8", config), ("float32", whole)))
    assert few.summary["bytes_up"] < 0.4 * all_bits.summary["bytes_up"]
    assert few.summary["metrics"]["loss"] == pytest.approx(all_bits.summary["metrics"]["loss"], rel=0.05)


@pytest.mark.long
@pytest.mark.parametrize("unit,kind", [(PRIVATE, "int8"), (CLIENT_LEVEL, "int8"), (PRIVATE, "top-k")])
def test_fewer_bits_change_no_epsilon_and_runs_are_repeated(unit, kind, small, tmp_path):
    config = small(**unit, federation__payload=kind)
    result = simulate(config, tmp_path / "run", progress=False)
    again = simulate(config, tmp_path / "again", progress=False)
    plain = simulate(small(**unit), tmp_path / "plain", progress=False)
    assert result.summary["epsilon"] == plain.summary["epsilon"]
    assert result.summary["metrics"] == again.summary["metrics"]


def parts(count, bits, moves):
    return [np.array(count, np.int32), np.zeros(bits, np.uint8), np.zeros(moves, np.float16)]


@pytest.mark.parametrize(
    "kind,arrays,said",
    [
        ("float32", [np.zeros(5, np.float16)], "1 arrays of float16; federation.payload=float32 is 1 of float32"),
        ("float16", [np.zeros(5, np.float32)], "arrays of float32; federation.payload=float16"),
        ("int8", [np.zeros(5, np.int8)], "federation.payload=int8 is 2 of int8, float32"),
        ("int8", [np.zeros(65, np.int8), np.zeros(1, np.float32)], "1 scales for 65 numbers in blocks of 64"),
        ("int8", [np.zeros((1, 5), np.int8), np.zeros(1, np.float32)], "2 arrays of int8, float32"),
        ("int8", ["codes", None], "2 arrays of str, NoneType"),
        ("top-k", [np.zeros(5, np.float16)], "federation.payload=top-k is 3 of int32, uint8, float16"),
        ("top-k", parts([9], 1, 0), "1 bytes of bits, a count .9. of numbers"),
        ("top-k", parts([-1], 0, 0), "0 bytes of bits, a count .-1. of numbers"),
        ("top-k", parts([], 0, 0), "0 bytes of bits"),
        ("top-k", parts([8], 1, 1), "1 moves for 0 numbers that moved"),
    ],
)
def test_arrays_of_another_format_are_refused(kind, arrays, said):
    with pytest.raises(ValueError, match=said):
        unpacked(kind, arrays)
    with pytest.raises(ValueError, match=f"client 3: .*{said}"):
        read_answer({"client": 3}, arrays, kind)


def test_another_count_of_numbers_is_refused_and_scales_of_infinity_arrive_as_no_row(small):
    experiment, server, _, _ = _begun(small, federation__payload="int8")
    with pytest.raises(ValueError, match=r"5 numbers, \d+ expected"):
        received_row("int8", experiment.strategy, server, 0, np.zeros(5, np.float32))
    codes = np.ones(BLOCK, np.int8)
    assert not np.isfinite(unpacked("int8", [codes, np.array([np.inf], np.float32)])).any()


@pytest.mark.parametrize("kind", KINDS)
def test_secure_aggregation_refuses_formats_that_masks_cannot_add_up(kind, small):
    config = small(federation__payload=kind, federation__weighting="uniform")
    with pytest.raises(ConfigError, match=rf"federation.payload='{kind}' is not what masks add up.*float32"):
        check_secure_aggregation(STRATEGIES["ffa"], config)
