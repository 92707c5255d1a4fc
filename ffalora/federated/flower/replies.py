"""Messages out, replies in, over Flower's grid: asked for more often than Flower itself does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from .supernode import pause_after


def gathered(grid: Grid, messages: Sequence[Message], timeout: float) -> tuple[dict[int, Message], dict[int, str]]:
    """Answers by node, one message a node, and of the nodes that did not answer within ``timeout`` seconds, or with an
    error, why.
    """
    replies = dict(replies_of(grid, messages, timeout))
    answers = {node: reply for node, reply in replies.items() if not reply.has_error()}
    failed = {node: str(reply.error.reason) for node, reply in replies.items() if reply.has_error()}
    silent = {message.metadata.dst_node_id for message in messages} - set(replies)
    return answers, failed | dict.fromkeys(sorted(silent), f"no answer within {timeout:g} s")


def named(node: int, known: Mapping[int, int]) -> str:
    """A node as people know it: by the client that it said it is."""
    return f"client {known[node]} (node {node})" if node in known else f"node {node}"


def replies_of(grid: Grid, messages: Sequence[Message], timeout: float) -> Iterator[tuple[int, Message]]:
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
        if not waiting or waited > timeout:
            return
        time.sleep(pause_after(waited))
