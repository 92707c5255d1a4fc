"""What clients keep between rounds lies on the disk: whole after a kill, unseen changes refused, only what is used."""

import numpy as np
import pytest
import torch

from ffalora.adapters import CheckpointError
from ffalora.federated.client_states import ClientStates

ZERO = torch.zeros(3)


def reopened(states, folder):
    return ClientStates.opened(folder, *states.save(folder))


def files(folder):
    return sorted(int(path.stem) for path in folder.glob("*.safetensors"))


def test_rows_are_the_last_that_were_put_in_memory_and_from_the_disk(tmp_path):
    states, rng, wanted = ClientStates(), np.random.default_rng(0), {}
    for _ in range(12):
        drawn = sorted(rng.choice(40, 6, replace=False).tolist())
        rows = torch.from_numpy(rng.normal(size=(6, 3)).astype(np.float32))
        states.put("b", drawn, rows)
        states.put("age", drawn[:3], torch.arange(3))
        wanted |= dict(zip(drawn, rows, strict=True))
        expected = torch.stack([wanted.get(client, ZERO) for client in range(40)])
        assert torch.equal(states.rows("b", range(40), ZERO), expected)
        states = reopened(states, tmp_path)
        states.sweep()
        assert torch.equal(states.rows("b", range(40), ZERO), expected)
        assert states.known("b") == sorted(wanted)
        assert states.rows("age", drawn[:3], torch.tensor(7)).tolist() == [0, 1, 2]
    held = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert held < 2 * (len(wanted) + 6) * 20 + 200 * len(files(tmp_path)), "about twice what is needed at most"


def test_rows_that_are_kept_are_copies(tmp_path):
    states, rows = ClientStates(), torch.ones(2, 3)
    states.put("b", [4, 5], rows)
    rows.zero_()
    assert states.rows("b", [5, 9], ZERO).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_memory_holds_the_rows_of_the_round_alone(tmp_path):
    states = ClientStates()
    states.put("b", range(100), torch.ones(100, 3))
    states.save(tmp_path)
    assert states._fresh == {} and states.known("b") == list(range(100))


def test_a_kill_before_the_next_checkpoint_leaves_the_rows_of_the_last(tmp_path):
    states = ClientStates()
    states.put("b", [0, 1], torch.ones(2, 3))
    checkpoint = states.save(tmp_path)
    states.sweep()
    states.put("b", [0, 1], 2 * torch.ones(2, 3))
    states.save(tmp_path)  # and killed before its checkpoint is written
    again = ClientStates.opened(tmp_path, *checkpoint)
    assert again.rows("b", [0, 1], ZERO).tolist() == [[1, 1, 1], [1, 1, 1]]
    again.put("b", [0], 3 * torch.ones(1, 3))
    again.save(tmp_path)
    again.sweep()
    assert again.rows("b", [0, 1], ZERO).tolist() == [[3, 3, 3], [1, 1, 1]] and files(tmp_path) == [1, 2]


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes() + b" ")])
def test_a_file_that_is_missing_or_changed_is_refused(tmp_path, spoil):
    states = ClientStates()
    states.put("b", [0], torch.ones(1, 3))
    checkpoint = states.save(tmp_path)
    spoil(tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError, match=r"1\.safetensors is missing, or was changed"):
        ClientStates.opened(tmp_path, *checkpoint)
