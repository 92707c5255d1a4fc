"""Sums of whole numbers modulo a power of two under SecAgg+ (Bell et al., CCS 2020).

Keys, their exchange and their shares are Flower's; the two stages that touch numbers are here. Flower's own clip what
is summed to less than the modulus, so that nothing can be sent modulo the power of two of the sum, and expand each key
into masks through a generator with a seed of 32 bits. Here masks are SHAKE-256 (FIPS 202) of the whole key, and whoever
vanished before sharing its keys does not end the round.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    check_configs,
    check_stage,
    secaggplus_mod,
)
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import ndarray_to_bytes, parameters_to_ndarrays
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_separate
from flwr.compat.common import recorddict_compat
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from numpy.typing import NDArray

from ...privacy.distributed import unsigned


def mask(key: bytes, length: int, bits: int) -> NDArray[np.int64]:
    """Uniform whole numbers below ``2**bits``, int64 ``[length]``: a function of a secret key of 32 bytes or more."""
    words = np.frombuffer(hashlib.shake_256(b"ffalora mask" + key).digest(4 * length), dtype="<u4")
    return words.astype(np.int64) % 2**bits


def masked_by_client(
    message: Message, context: Context, call_next: ClientAppCallable, bits: int, least: int
) -> Message:
    """The client's half: the app is called for the one stage that trains, and what it returns leaves masked.

    Args:
        bits, least: of :class:`~ffalora.privacy.distributed.NoiseShares`. A server that would unmask a sum of fewer
            than ``least``, or in another modulus, is refused before keys are made.

    Raises:
        ValueError: such a server, or messages that do not belong to the protocol.
    """
    if least < 2:
        raise ValueError(f"least={least}: a sum of one shows it; set clients.count, or lower privacy.dropouts")
    configs = message.content.config_records[RECORD_KEY_CONFIGS]
    if configs[Key.STAGE] == Stage.SETUP:
        wanted = (2**bits, least)
        if (configs[Key.MOD_RANGE], configs[Key.THRESHOLD]) != wanted or configs[Key.SAMPLE_NUMBER] < least:
            raise ValueError(
                f"the server asks for {configs[Key.SAMPLE_NUMBER]} clients, {configs[Key.THRESHOLD]} to unmask and "
                f"sums modulo {configs[Key.MOD_RANGE]}; this configuration is for at least {least}, and 2**{bits}"
            )
    if configs[Key.STAGE] != Stage.COLLECT_MASKED_VECTORS:
        return secaggplus_mod(message, context, call_next)
    state = SecAggPlusState(**context.state.config_records[RECORD_KEY_STATE])
    check_stage(state.current_stage, configs)
    state.current_stage = str(configs.pop(Key.STAGE))
    check_configs(state.current_stage, configs)
    others = _take_shares(state, configs)
    if len(others) + 1 < least:
        raise ValueError(f"{len(others) + 1} clients have shared their keys, at least {least} must: nothing is sent")
    content = call_next(message, context).content
    answer = recorddict_compat.recorddict_to_fitres(content, keep_input=True)
    (numbers,) = parameters_to_ndarrays(answer.parameters)
    masked = numbers.astype(np.int64) + mask(state.rd_seed, len(numbers), bits)
    for other in others:
        shared = _shared_key(state.sk1, state.public_keys_dict[other][0])
        masked += (1 if state.nid > other else -1) * mask(shared, len(numbers), bits)
    for record in content.array_records.values():
        record.clear()
    sent = (masked % 2**bits).astype(unsigned(bits))
    context.state.config_records[RECORD_KEY_STATE] = ConfigRecord(state.to_dict())
    content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord({Key.MASKED_PARAMETERS: [ndarray_to_bytes(sent)]}, False)
    return Message(content, reply_to=message)


def _take_shares(state: SecAggPlusState, configs: ConfigRecord) -> list[int]:
    """Keeps the shares that others sent of their keys; who they are."""
    sources: Any = configs[Key.SOURCE_LIST]
    texts: Any = configs[Key.CIPHERTEXT_LIST]
    for source, text in zip(sources, texts, strict=True):
        found, destination, seed, key = share_keys_plaintext_separate(decrypt(state.ss2_dict[source], text))
        if (found, destination) != (source, state.nid):
            raise ValueError(f"node {state.nid}: a share from {source} says that it is from {found} to {destination}")
        state.rd_seed_share_dict[source], state.sk1_share_dict[source] = seed, key
    return list(sources)


def _shared_key(private: bytes, public: bytes) -> bytes:
    return generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))


class KeyedWorkflow(SecAggPlusWorkflow):
    """Flower's workflow, in which whoever vanished before it shared its keys does not end the round."""

    def share_keys_stage(self, grid: Any, context: Any, state: Any) -> bool:
        """As Flower's; those who did not share their keys mask nothing and are masked by nobody."""
        enough = super().share_keys_stage(grid, context, state)
        state.sampled_node_ids = set(state.active_node_ids)
        state.nid_to_neighbours = {
            node: state.nid_to_neighbours[node] & state.sampled_node_ids for node in state.sampled_node_ids
        }
        return enough


class SumModulo(KeyedWorkflow):
    """The server's half: after a call, ``total`` is the sum, int64 ``[n]``, or None where too few clients stayed.

    Args:
        bits, least: as in :func:`masked_by_client`; ``least`` is also how many shares give a key back.
        timeout: seconds that a stage waits.
    """

    def __init__(self, bits: int, least: int, timeout: float):
        super().__init__(
            1.0,
            least,
            max_weight=1.0,
            clipping_range=1.0,
            quantization_range=1,
            modulus_range=2**bits,
            timeout=timeout,
        )
        self.bits = bits
        self.total: NDArray[np.int64] | None = None

    def unmask_stage(self, grid: Any, context: Any, state: Any) -> bool:
        """Takes the masks off the sum: the own ones of those who stayed, the pairwise ones of those who vanished."""
        stayed, vanished = set(state.active_node_ids), state.sampled_node_ids - state.active_node_ids
        shares = self._shares_of_keys(grid, context, state, stayed, vanished)
        if any(len(found) < state.threshold for found in shares.values()):
            return False
        (summed,) = state.aggregate_ndarrays
        total = summed.astype(np.int64)
        for node, found in shares.items():
            secret = combine_shares(found)
            if node in stayed:
                total -= mask(secret, len(total), self.bits)
                continue
            for other in stayed:
                shared = _shared_key(secret, state.nid_to_publickeys[other][0])
                total += (1 if node > other else -1) * mask(shared, len(total), self.bits)
        self.total = total % 2**self.bits
        context.strategy.aggregate_fit(0, state.legacy_results, state.failures)
        return True

    def _shares_of_keys(
        self, grid: Any, context: Any, state: Any, stayed: set[int], vanished: set[int]
    ) -> dict[int, list[bytes]]:
        """For each node, what those who stayed hold of its key."""
        group = str(context.state.config_records[MAIN_CONFIGS_RECORD][WorkflowKey.CURRENT_ROUND])
        asked = {
            Key.STAGE: Stage.UNMASK,
            Key.ACTIVE_NODE_ID_LIST: sorted(stayed),
            Key.DEAD_NODE_ID_LIST: sorted(vanished),
        }
        messages = [
            Message(
                RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(asked)}),
                dst_node_id=node,
                message_type=MessageType.TRAIN,
                group_id=group,
            )
            for node in sorted(stayed)
        ]
        shares: dict[int, list[bytes]] = {node: [] for node in stayed | vanished}
        for reply in grid.send_and_receive(messages, timeout=self.timeout):
            if reply.has_error():
                state.failures.append(Exception(reply.error))
                continue
            record = reply.content.config_records[RECORD_KEY_CONFIGS]
            for node, share in zip(record[Key.NODE_ID_LIST], record[Key.SHARE_LIST], strict=True):
                shares[node].append(share)
        return shares
