"""SecAgg+ with sums of whole numbers, in one process: exact, through clients that vanish, refused below the least."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'ffalora[flower]'")
from flwr.app import Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarray_to_bytes, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat
from flwr.supercore.task_identity import TaskIdentity
from small_runs import CLIENT_LEVEL

from ffalora.config import ConfigError
from ffalora.federated.flower import secagg as module
from ffalora.federated.flower.keys_ahead import KeysAhead, answered_with_keys
from ffalora.federated.flower.masked_sum import mask, masked_by_client
from ffalora.federated.flower.secagg import LEVELS, MaskedRounds
from ffalora.federated.flower.server import NobodyAnswered, drawn, serve
from ffalora.federated.flower.terms import Terms
from ffalora.privacy.distributed import NoiseShares

NOISE = CLIENT_LEVEL | {"privacy__noise_at": "clients"}
SHARES = NoiseShares(1.0, 1.0, 40, 4, 1, 0, 14, 0)
NUMBERS = np.random.default_rng(0).integers(0, 2**14, (4, 64))
TERMS = Terms(model="", frozen="", labels=None, task="", inputs=1)


@pytest.fixture(autouse=True)
def _server_task(monkeypatch):
    """Messages name the task that sends them, which Flower sets in a server's process."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class LocalGrid:
    """Clients in this process; ``vanishing`` maps a node to the stage from which it does not answer, ``refusing`` to
    that which it answers with an error, and ``hostile`` to a stage and what it does to its answer.
    """

    def __init__(self, vanishing=(), least=SHARES.least, mod=None, numbers=NUMBERS, refusing=(), hostile=()):
        self.vanishing, self.numbers, self.refusing, self.hostile = (
            dict(vanishing),
            numbers,
            dict(refusing),
            dict(hostile),
        )
        self.masked, self.refused, self.asked = [], [], []
        self.mod = mod or partial(masked_by_client, bits=SHARES.bits, least=least)
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in range(1, 5)}

    def push_messages(self, messages):
        self.arrived = {f"message {i}": self.reply(message) for i, message in enumerate(messages)}
        return list(self.arrived)

    def pull_messages(self, names):
        for name in [name for name in names if self.arrived.get(name) is not None]:
            reply = self.arrived.pop(name)
            reply.metadata._reply_to_message_id = name
            yield reply

    def reply(self, message):
        node, stage = message.metadata.dst_node_id, message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        content, to = deepcopy(message.content), {"dst_node_id": node, "message_type": message.metadata.message_type}
        message = Message(content, group_id=message.metadata.group_id, **to)  # as a wire does: nobody shares it
        self.asked.append((node, stage))
        if self.vanishing.get(node) == stage:
            self.contexts.pop(node)
        if self.refusing.get(node) == stage:
            return Message(Error(code=0, reason=f"client {node - 1} refuses"), reply_to=message)
        if node not in self.contexts:
            return None

        def app(message, context):
            result = FitRes(
                Status(Code.OK, ""), ndarrays_to_parameters([self.numbers[node - 1]]), 1, {"client": node - 1}
            )
            return Message(recorddict_compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)

        try:
            answer = answered_with_keys(message, self.contexts[node], app, self.mod)
        except ValueError as error:
            self.refused.append(str(error))
            return None
        if stage == Stage.COLLECT_MASKED_VECTORS:
            self.masked.append(answer.content)
        when, spoil = self.hostile.get(node, (None, None))
        if when == stage:
            spoil(answer.content.config_records[RECORD_KEY_CONFIGS])
        return answer


def exchange(grid, nodes=(1, 2, 3, 4), keyed=None):
    rounds = MaskedRounds(keyed or KeysAhead(grid), Context(1, 0, {}, RecordDict(), {}), 0.2)
    return rounds.shares(list(nodes), 0, np.zeros(3, np.float32), TERMS, SHARES)


VANISHING = [
    ({}, [0, 1, 2, 3]),
    ({2: Stage.SETUP}, [0, 2, 3]),
    ({3: Stage.SHARE_KEYS}, [0, 1, 3]),
    ({4: Stage.COLLECT_MASKED_VECTORS}, [0, 1, 2]),
    ({1: Stage.UNMASK}, [0, 1, 2, 3]),  # it has sent its numbers
]


@pytest.mark.parametrize(("vanishing", "stayed"), VANISHING)
def test_the_sum_of_whole_numbers_is_exact_whenever_a_client_vanishes(vanishing, stayed):
    grid = LocalGrid(vanishing)
    got = exchange(grid)
    assert np.array_equal(got.shares, NUMBERS[stayed].sum(0) % 2**14)
    assert sorted(answer.client for answer in got.answers) == stayed and got.bytes_up > 4 * 128


TWO = {1: Stage.SHARE_KEYS, 4: Stage.COLLECT_MASKED_VECTORS}


@pytest.mark.parametrize(("vanishing", "stayed"), [*VANISHING, (TWO, [1, 2])])
def test_the_average_is_right_to_its_quantisation_whenever_a_client_vanishes(vanishing, stayed):
    numbers = NUMBERS / 2**14 - 0.5
    grid = LocalGrid(vanishing, mod=secaggplus_mod, numbers=numbers)
    rounds = MaskedRounds(KeysAhead(grid), Context(1, 0, {}, RecordDict(), {}), 0.2)
    got = rounds.average([1, 2, 3, 4], 0, np.zeros(3, np.float32), TERMS, 1.0, 64)
    assert np.abs(got.sum_only - numbers[stayed].mean(0)).max() <= 2.0 / LEVELS + 1e-7


def test_a_round_brings_the_keys_of_the_next_and_no_key_serves_two():
    grid = LocalGrid()
    keyed = KeysAhead(grid)
    for _ in range(3):
        assert np.array_equal(exchange(grid, keyed=keyed).shares, NUMBERS.sum(0) % 2**14)
    stages = [stage for node, stage in grid.asked if node == 1]
    assert stages == [Stage.SETUP, *[Stage.SHARE_KEYS, Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK] * 3]
    sent = [_vector(content) for content in grid.masked]
    assert len(set(sent)) == 12, "the same numbers, under other masks"


def test_a_client_that_lost_its_keys_between_rounds_is_left_out_of_one():
    grid = LocalGrid()
    keyed = KeysAhead(grid)
    for stayed in ([0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3]):
        assert np.array_equal(exchange(grid, keyed=keyed).shares, NUMBERS[stayed].sum(0) % 2**14)
        if len(stayed) == 4:
            grid.contexts[4] = Context(1, 4, {}, RecordDict(), {})


def test_a_changed_cohort_is_asked_for_keys_again():
    grid = LocalGrid()
    keyed = KeysAhead(grid)
    for nodes in ((1, 2, 3, 4), (1, 2, 3)):
        grid.asked.clear()
        got = exchange(grid, nodes, keyed)
        assert np.array_equal(got.shares, NUMBERS[: len(nodes)].sum(0) % 2**14)
        assert [node for node, stage in grid.asked if stage == Stage.SETUP] == list(nodes)


def test_what_a_client_sends_does_not_show_its_numbers():
    grid = LocalGrid()
    exchange(grid)
    sent = [np.frombuffer(_vector(content), np.uint16)[-64:] for content in grid.masked]
    assert len(sent) == 4 and all(not np.array_equal(one % 2**14, own) for one in sent for own in NUMBERS)
    assert all(not content.array_records["fitres.parameters"] for content in grid.masked)


def _vector(content):
    return content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS][0]


@pytest.mark.parametrize("stage", [Stage.SHARE_KEYS, Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK])
def test_fewer_than_the_least_show_nothing(stage):
    got = exchange(LocalGrid({1: stage, 2: stage}))
    assert got.shares is None and "halted" in got.failed[-1]


def test_a_round_that_is_halted_names_whoever_failed_and_why_and_nobody_twice():
    keyed = KeysAhead(grid := LocalGrid())
    rounds = MaskedRounds(keyed, Context(1, 0, {}, RecordDict(), {}), 0.2)
    ask = (0, np.zeros(3, np.float32), TERMS, SHARES)
    assert rounds.shares([1, 2, 3, 4], *ask).failed == []
    grid.refusing, grid.vanishing = {1: Stage.COLLECT_MASKED_VECTORS}, {2: Stage.COLLECT_MASKED_VECTORS}
    assert rounds.shares([1, 2, 3, 4], *ask).failed == [
        "client 0 (node 1): client 0 refuses",
        "client 1 (node 2): no answer within 0.2 s",
        "secure aggregation was halted: too few clients stayed",
    ]
    fresh = exchange(LocalGrid(refusing=dict.fromkeys(range(1, 5), Stage.SETUP)))
    assert fresh.failed[:4] == [f"node {node}: client {node - 1} refuses" for node in range(1, 5)]
    one = exchange(LocalGrid(refusing={1: Stage.COLLECT_MASKED_VECTORS}))
    assert one.failed == ["node 1: client 0 refuses"] and np.array_equal(one.shares, NUMBERS[1:].sum(0) % 2**14)


def test_a_run_in_which_nobody_answered_ends_with_the_reasons_and_saves_no_adapter(small, tmp_path):
    grid = LocalGrid(refusing=dict.fromkeys(range(1, 5), Stage.SETUP))
    grid.get_node_ids = lambda: [1, 2, 3, 4]
    changes = {"federation__participation": 1.0, "federation__rounds": 2, "clients__count": 4}
    context = Context(1, 0, {}, RecordDict(), {})
    with pytest.raises(NobodyAnswered, match=r"in any of 2 rounds.*node 1: client 0 refuses; node 2: client 1 refuses"):
        serve(grid, context, small(**NOISE | changes), tmp_path / "run", 0.2)
    assert not (tmp_path / "run/adapter").exists() and not (tmp_path / "run/summary.json").exists()


def sends(*arrays):
    """Has a client send these in the place of its masked numbers."""
    return Stage.COLLECT_MASKED_VECTORS, lambda said: said.update({Key.MASKED_PARAMETERS: list(arrays)})


@pytest.mark.parametrize(
    ("said", "hostile"),
    [
        ("uint16 (3,)", sends(ndarray_to_bytes(np.zeros(3, np.uint16)))),
        ("uint16 (2, 64)", sends(ndarray_to_bytes(np.zeros((2, 64), np.uint16)))),
        ("float64 (64,)", sends(ndarray_to_bytes(np.zeros(64)))),
        ("cannot be read", sends(b"PK\x03\x04")),
        ("cannot be read", (Stage.COLLECT_MASKED_VECTORS, lambda said: said.clear())),
    ],
)
def test_masked_numbers_that_cannot_be_added_up_are_left_out_by_name_and_the_round_goes_on(said, hostile):
    got = exchange(LocalGrid(hostile={1: hostile}))
    assert np.array_equal(got.shares, NUMBERS[1:].sum(0) % 2**14)
    (failed,) = got.failed
    assert failed.startswith("node 1: ") and said in failed


@pytest.mark.parametrize(
    "hostile",
    [
        (Stage.SETUP, lambda said: said.clear()),
        (Stage.UNMASK, lambda said: said.update({Key.NODE_ID_LIST: [9, 2, 3, 4]})),
        (Stage.UNMASK, lambda said: said.update({Key.SHARE_LIST: [share[:-1] for share in said[Key.SHARE_LIST]]})),
    ],
)
def test_a_client_that_breaks_the_protocol_costs_a_round_and_not_the_run(hostile):
    grid = LocalGrid(hostile={1: hostile})
    keyed = KeysAhead(grid)
    got = exchange(grid, keyed=keyed)
    assert got.shares is None and "secure aggregation was halted: what a client sent" in got.failed[-1]
    grid.hostile = {}
    assert np.array_equal(exchange(grid, keyed=keyed).shares, NUMBERS.sum(0) % 2**14)


def test_more_clients_than_a_sum_of_levels_has_room_for_are_refused(monkeypatch):
    monkeypatch.setattr(module, "LEVELS", 2**30)
    rounds = MaskedRounds(KeysAhead(LocalGrid(mod=secaggplus_mod)), Context(1, 0, {}, RecordDict(), {}), 0.2)
    with pytest.raises(ConfigError, match=r"4 clients in a round: .* room for 3"):
        rounds.average([1, 2, 3, 4], 0, np.zeros(3, np.float32), TERMS, 1.0, 64)


def test_a_server_that_would_unmask_fewer_is_refused_by_its_clients():
    grid = LocalGrid(least=4)  # the server's shares.least is 3
    got = exchange(grid)
    assert got.shares is None and len(grid.refused) == 4 and "at least 4" in grid.refused[0] and not grid.masked


def test_a_client_sends_nothing_where_its_sum_could_be_its_own():
    grid = LocalGrid(least=1)
    assert exchange(grid).shares is None and "a sum of one" in grid.refused[0] and not grid.masked


def test_too_few_connected_clients_are_not_asked():
    got = exchange(LocalGrid(), nodes=(1, 2))
    assert got.shares is None and "at least 3 must bring noise" in got.failed[0]


@pytest.mark.parametrize("connected", [10, 9, 6, 5, 3])
def test_as_many_clients_are_drawn_as_must_bring_the_noise_also_where_some_are_away(small, connected):
    config = small(clients__count=10, **NOISE | {"federation__participation": 0.5})
    nodes = list(range(connected))
    chosen = drawn(config, nodes, 1)
    assert len(chosen) == min(5, connected) and set(chosen) <= set(nodes)


def test_masks_are_uniform_and_a_function_of_the_whole_key():
    key = bytes(range(32))
    drawn = mask(key, 40_000, 4)
    assert np.abs(np.bincount(drawn, minlength=16) / 40_000 - 1 / 16).max() < 5 * np.sqrt(1 / 16 / 40_000)
    for place in (0, 31):
        other = bytearray(key)
        other[place] ^= 1
        assert (mask(bytes(other), 1000, 14) != mask(key, 1000, 14)).mean() > 0.99
