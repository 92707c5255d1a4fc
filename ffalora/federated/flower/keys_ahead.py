"""The keys of a round, asked for with the last message of the one before: SecAgg+ in three messages a round, not four.

A message waits until its site looks for it, so that messages are what a round of secure aggregation costs. Keys
serve one round, as they do in Flower's workflow; clients that do not know of this are asked for theirs as it asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid

from .replies import gathered

#: The record that asks for the next round's keys, and that which holds them.
_AHEAD = "ffalora.keys_ahead"

#: (message, context, app) -> reply, as Flower's mods.
Mod = Callable[[Message, Context, ClientAppCallable], Message]


def answered_with_keys(message: Message, context: Context, call_next: ClientAppCallable, mod: Mod) -> Message:
    """The client's half: what ``mod`` replies, with the keys of the next round where the message asks for them."""
    asked = message.content.config_records.pop(_AHEAD, None)
    reply = mod(message, context, call_next)
    if asked is not None:
        message.content.config_records[RECORD_KEY_CONFIGS] = asked
        keys = mod(message, context, call_next)
        reply.content.config_records[_AHEAD] = keys.content.config_records[RECORD_KEY_CONFIGS]
    return reply


class KeysAhead:
    """The server's half: the grid of all rounds as Flower's workflow sees it.

    The stage that unmasks one round also asks for keys of the next; the stage that asks for keys finds them here, of
    whoever gave them and is asked for the same. Those of other clients are forgotten.

    Attributes:
        bytes_up, bytes_down: of the messages since :meth:`begin`, as serialised.
        failed: since then, the nodes whose answer to a message is missing or cannot be used, and why.
    """

    def __init__(self, grid: Grid):
        self._grid = grid
        self._asked: dict = {}
        self._found: dict[int, Message] = {}
        self.begin([])

    def begin(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """A round begins, in which clients send arrays of these shapes: nothing is counted, and nobody has failed."""
        self._shapes = list(shapes)
        self.bytes_up = self.bytes_down = 0
        self.failed: dict[int, str] = {}

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> list[Message]:
        """Answers to the messages of one stage, of those who give one within ``timeout`` seconds."""
        sent = {message.metadata.dst_node_id: message for message in messages}
        configs = [message.content.config_records[RECORD_KEY_CONFIGS] for message in sent.values()]
        stage, replies = configs[0][Key.STAGE], []
        if stage == Stage.SETUP:
            found = self._found if dict(configs[0]) == self._asked else {}
            replies = [found[node] for node in sent if node in found]
            sent = {node: message for node, message in sent.items() if node not in found}
            self._asked, self._found = dict(configs[0]), {}
        elif stage == Stage.UNMASK:
            for message in sent.values():
                message.content.config_records[_AHEAD] = ConfigRecord(self._asked)
        self.bytes_down += sum(_size(message) for message in sent.values())
        answers, failed = gathered(self._grid, list(sent.values()), timeout)
        if stage == Stage.COLLECT_MASKED_VECTORS:
            failed |= {node: said for node, reply in answers.items() if (said := self._fault(reply))}
            answers = {node: reply for node, reply in answers.items() if node not in failed}
        self.failed |= failed
        for node, reply in answers.items():
            self.bytes_up += _size(reply)
            keys = reply.content.config_records.pop(_AHEAD, None)
            if keys is not None:
                self._found[node] = Message(RecordDict({RECORD_KEY_CONFIGS: keys}), reply_to=sent[node])
        return [*replies, *answers.values()]

    def _fault(self, reply: Message) -> str:
        """Why what a client masked cannot be added up; '' where it can."""
        try:
            sent: Any = reply.content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
            arrays = [bytes_to_ndarray(one) for one in sent]
        except Exception as error:  # whatever a hostile client may think of must not end the round
            return f"what it sent cannot be read ({type(error).__name__}: {error})"
        if [array.shape for array in arrays] == self._shapes and all(array.dtype.kind in "iu" for array in arrays):
            return ""
        found = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
        return f"it sent arrays of {found}, whole numbers of the shapes {self._shapes} are expected"


def _size(message: Message) -> int:
    return recorddict_to_proto(message.content).ByteSize()
