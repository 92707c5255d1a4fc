"""Messages out, replies in, over Flower's grid: asked for more often than Flower itself does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from .supernode import pause_after


def replies_of(grid: Grid, messages: Sequence[Message], timeout: float | None) -> Iterator[tuple[int, Message]]:
    """Nodes and their replies as they come, one a message, until all are here or ``timeout`` seconds are over.

    It asks the SuperLink ten times a second at first, and ever less often, see ``pause_after``.
    """
    messages = list(messages)
    asked = [message.metadata.dst_node_id for message in messages]
    waiting = {name: node for name, node in zip(grid.push_messages(messages), asked, strict=True) if name}
    started = time.monotonic()
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield node, reply
        waited = time.monotonic() - started
        if not waiting or (timeout is not None and waited > timeout):
            return
        time.sleep(pause_after(waited))
