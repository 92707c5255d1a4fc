"""PrivateTrainer and one's own loop on several processes: the result of one, one noise, one ledger."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from ranks import on_ranks
from test_private_trainer import N, Padding, arguments, data, model, state
from torch.nn.parallel import DistributedDataParallel

import ffalora
from ffalora.data.tasks import classification_losses
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.noise import SecureNoise, SeededNoise
from ffalora.privacy.sampling import SystemDraw
from ffalora.trainer import LEDGER_FILE, PrivacyArguments, PrivateTrainer
from ffalora.training.private_gradient import PrivateGradient
from ffalora.training.workers import LeadStopped, drawn_alike

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SEEDED = PrivacyArguments(noise_multiplier=1.0, max_grad_norm=0.5, noise="seeded")
SECURE = PrivacyArguments(noise_multiplier=1.0, max_grad_norm=0.5)


def _as_launched(workers):
    """What torchrun and accelerate launch tell a process, and accelerate as it starts there."""
    names = {"RANK": workers.rank, "LOCAL_RANK": workers.rank, "WORLD_SIZE": workers.size}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for kept in (AcceleratorState, PartialState, GradientState):
        kept._reset_state()


def _trainer(folder, privacy, **changes):
    return PrivateTrainer(
        model(), arguments(folder, **changes), privacy, train_dataset=data(), eval_dataset=data(8, 1),
        data_collator=Padding(),
    )  # fmt: skip


def _logged(run):
    return [{k: row[k] for k in ("loss", "epsilon") if k in row} for row in run.state.log_history]


@pytest.mark.long
@pytest.mark.parametrize("size,batch", [(2, 3), (3, 2)])
def test_processes_end_where_one_ends_at_the_same_effective_batch(size, batch, tmp_path):
    alone = _trainer(tmp_path / "alone", SEEDED)
    alone.train()

    def train(workers):
        _as_launched(workers)
        accumulation = 6 // (batch * size)
        changes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        run = _trainer(tmp_path / "shared", SEEDED, save_strategy="steps", save_steps=2, **changes)
        run.train()
        return state(run.model), run.expected_batch, run.ledger.steps_taken, _logged(run)

    for theirs, expected, steps, logged in on_ranks(size, train):
        assert expected == 6 and steps == 4
        torch.testing.assert_close(theirs, state(alone.model), rtol=1e-4, atol=1e-6)
        for ours, whole in zip(logged[:4], _logged(alone)[:4], strict=True) if logged else ():
            assert ours["epsilon"] == whole["epsilon"] and ours["loss"] == pytest.approx(whole["loss"], rel=1e-3)
    assert json.loads((tmp_path / "shared" / "checkpoint-4" / LEDGER_FILE).read_text())["steps_taken"] == 4


def test_secure_processes_charge_once_and_agree(tmp_path):
    def train(workers):
        _as_launched(workers)
        noise = []
        add, SecureNoise.add_ = SecureNoise.add_, lambda self, *a: (noise.append(1), add(self, *a))
        run = _trainer(tmp_path, SECURE)
        run.train()
        before = state(run.model)
        with pytest.raises(ValueError if workers.leads else LeadStopped, match="was trained on already"):
            _trainer(tmp_path, SECURE).train()
        return before, len(noise), run.ledger.steps_taken

    (first, noise, steps), (second, silent, counted) = on_ranks(2, train)
    assert torch.equal(first, second) and (noise, silent) == (4, 0) and steps == counted == 4
    assert json.loads((tmp_path / LEDGER_FILE).read_text())["steps_taken"] == 4


def _own_loop(workers, wraps, given=None):
    """Gradient of one step in a loop of one's own; ``given`` are this process's samples instead of its share."""
    net = model()
    adapters = ffalora.convert(net)
    ledger = PrivacyLedger(0, N, 0.5, 1.0, 1e-3, 5, accountant="rdp")
    called = DistributedDataParallel(net) if wraps else net
    private = PrivateGradient(called, adapters, classification_losses, ledger, 0.5, SeededNoise(3))
    samples = np.arange(0, N, 2)
    lengths = np.array([len(row["input_ids"]) for row in data()])
    mine = samples[workers.share(lengths[samples])] if given is None else given
    inputs = Padding()([data()[int(i)] for i in mine])
    return private.step(0, [(mine, inputs, inputs.pop("labels"))], called)[0]


@pytest.mark.parametrize("wraps", [True, False], ids=["DDP", "no wrapper"])
def test_a_loop_of_ones_own_gets_the_gradient_of_one_process(wraps):
    from ffalora.training.workers import ALONE

    expected = _own_loop(ALONE, wraps=False)
    for found in on_ranks(2, lambda workers: _own_loop(workers, wraps)):
        assert float((found - expected).norm() / expected.norm()) <= 1e-5


def test_a_sample_that_two_processes_hold_is_refused_before_anything_is_charged():
    def step(workers):
        with pytest.raises(ValueError, match=r"sample 5 was given to more than one of 2 processes.*workers\.share"):
            _own_loop(workers, False, given=np.array([5, 6 + workers.rank]))

    on_ranks(2, step)


def test_processes_draw_alike_from_the_operating_system():
    draws = on_ranks(3, lambda workers: drawn_alike(SystemDraw(), workers)(0, 0, 500, 0.2))
    assert all(np.array_equal(draw, draws[0]) for draw in draws) and 50 < len(draws[0]) < 150


_SCRIPT = """
import sys
sys.path[:0] = {paths!r}
from test_trainer_processes import _trainer, SECURE, state
run = _trainer({folder!r}, SECURE)
run.train()
if run.args.process_index == 0:
    print("ended at", run.args.world_size, run.ledger.steps_taken, type(run.model_wrapped).__name__)
"""


@pytest.mark.slow
def test_accelerate_launch_trains_on_two_processes(tmp_path):
    root = Path(__file__).resolve().parents[1]
    paths = [str(root / name) for name in ("trainer", "adapters", "training", "federated", "")]
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(paths=paths, folder=str(tmp_path / "run")))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    done = subprocess.run(
        [*command, "--mixed_precision", "no", "--dynamo_backend", "no", str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("ended at")]
    assert len(said) == 1 and said[0].split()[2:] == ["2", "4", "DistributedDataParallel"]
    assert json.loads((tmp_path / "run" / LEDGER_FILE).read_text())["steps_taken"] == 4
