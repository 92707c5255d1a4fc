"""One record moves the clipped sum by at most C; whatever ties samples together is caught by the probe, or refused."""

import bench_path  # noqa: F401
import pytest
import sensitivity as cases
import torch
from mutants import MUTANTS
from test_private_trainer import model as peft_model
from test_private_trainer import trainer
from tiny import participants, tiny_data, tiny_engine

from ffalora.training.sensitivity import FLOAT32_LIMIT, probe_sensitivity
from ffalora.training.step import LogicalStep

DROPOUT = 0.2


def probed(clients=1, dropout=DROPOUT, **config):
    engine, adapters = tiny_engine(**config)
    for layer in adapters.layers.values():
        layer.p_dropout = dropout
    return probe_sensitivity(engine, participants(clients), adapters.state().repeat(clients, 1), records=4)


@pytest.mark.long
@pytest.mark.parametrize("number", range(20))
def test_one_record_moves_the_sum_by_at_most_c_in_random_cases(number):
    assert cases.ratio(cases.Case.random(number)) <= FLOAT32_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20, 500))
def test_one_record_moves_the_sum_by_at_most_c_in_all_random_cases(number):
    assert cases.ratio(cases.Case.random(number)) <= FLOAT32_LIMIT


@pytest.mark.long
@pytest.mark.parametrize(
    "config",
    [
        {"trained": "both", "head": "trained"},
        {"privacy": {"clipping": "per-layer"}},
        {"privacy": {"clipping": "automatic"}},
        {"clients": 3, "token_budget": 30},
    ],
)
def test_the_probe_finds_nothing_in_a_sound_engine_and_comes_near_the_bound(config, fixed_draws):
    found = probed(**config)
    assert found.holds
    assert {move.setting for move in found.moves} == {"start", "moved", "clipped"}
    assert 0.5 < found.largest.ratio <= FLOAT32_LIMIT
    assert "for the owner of the data alone" in str(found)


@pytest.mark.parametrize(
    "mutant",
    [
        "dropout masks by position", "dropout keys by position", "dropout masks fresh in each pass",
        "clipping removed", "clipping norm doubled", "rows counted twice", "collator mixes neighbours",
    ],
)  # fmt: skip
def test_the_probe_catches_what_one_record_moves_too_far(mutant, monkeypatch, fixed_draws):
    MUTANTS[mutant](monkeypatch)
    found = probed(token_budget=1000)
    assert not found.holds
    assert "BROKEN" in str(found)


def test_a_loss_that_depends_on_the_batch_is_refused():
    engine, adapters = tiny_engine()
    inner = engine.losses
    engine.losses = lambda output, targets: inner(output, targets) * (1 + targets.float().mean())
    with pytest.raises(ValueError, match="another sample's loss"):
        probe_sensitivity(engine, participants(1), adapters.state()[None])


def test_a_probe_changes_and_charges_nothing():
    engine, adapters = tiny_engine()
    clients, state = participants(1), adapters.state()[None]
    before, noise, probe = state.clone(), engine.noise, engine.probe
    probe_sensitivity(engine, clients, state)
    assert torch.equal(state, before) and engine.noise is noise and engine.probe is probe
    assert clients[0].ledger.steps_taken == clients[0].steps_taken == 0


def test_nothing_protected_is_nothing_to_probe():
    engine, adapters = tiny_engine(privacy={"unit": "none"})
    with pytest.raises(ValueError, match="where samples are protected"):
        probe_sensitivity(engine, participants(1), adapters.state()[None])


def dropping():
    net = peft_model()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = DROPOUT
    return net


def test_a_trainer_audits_itself_by_one_call_and_stays_as_it_was(tmp_path):
    run = trainer(tmp_path, net=dropping())
    before, mode = run.adapters.state(), run.model.training
    found = run.audit()
    assert found.holds and found.largest.ratio > 0.5
    assert torch.equal(run.adapters.state(), before) and run.model.training == mode
    assert run.ledger is None and not list(tmp_path.iterdir())
    assert {"longest", "shortest", "random"} <= {move.chosen for move in found.moves}


@pytest.mark.parametrize("mutant", ["dropout masks by position", "clipping removed"])
def test_a_trainer_s_audit_catches_broken_mechanisms(mutant, tmp_path, monkeypatch):
    MUTANTS[mutant](monkeypatch)
    run = trainer(tmp_path, net=dropping())
    assert not run.audit().holds


def test_the_passes_of_a_step_leave_the_clipped_sums_of_its_rows():
    engine, adapters = tiny_engine()
    step = LogicalStep(engine, participants(1), adapters.state()[None], None, 0.0, None, None)
    results = step.passes([tiny_data().labels.nonzero()[0][:5]], 1000)
    losses, norms = results.read()
    assert losses.shape == norms.shape == results.rows.shape == (5,)
    assert sum(map(len, results.plan.batches)) == 5
    assert step.total.norm() <= 5 * engine.privacy.max_grad_norm
