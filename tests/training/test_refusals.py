"""What a private run refuses before it spends anything: each test sets one thing wrong and expects its name."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import ledger, losses, participants, tiny_data, tiny_engine
from torch import nn

from ffalora.adapters import AdapterConfig, attach
from ffalora.data.tasks import logits_of
from ffalora.privacy.accountants import Spent
from ffalora.privacy.accounting import PrivacyBudgetSpent
from ffalora.privacy.noise import SeededNoise
from ffalora.training.admission import check_cohort
from ffalora.training.gradients import segment_gradients
from ffalora.training.independence import SamplesNotIndependent, check_losses_independence
from ffalora.training.participant import Participant
from ffalora.training.private_gradient import PrivateGradient


def _train(engine, adapters, clients, steps=1):
    state = adapters.state().repeat(len(clients), 1)
    engine.train(clients, state, steps)
    return state


def _refused(engine, adapters, clients, match, error=ValueError):
    """Refused with that message, nothing charged and nothing changed."""
    before = [c.ledger.steps_taken for c in clients if c.ledger]
    state = adapters.state().repeat(len(clients), 1)
    with pytest.raises(error, match=match):
        engine.train(clients, state, steps=1)
    assert [c.ledger.steps_taken for c in clients if c.ledger] == before
    assert torch.equal(state, adapters.state().repeat(len(clients), 1))


# ---- tensors outside clipping and noise ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "thawed",
    [
        "bert.encoder.layer.0.output.LayerNorm.weight",
        "bert.encoder.layer.1.output.LayerNorm.bias",
        "bert.embeddings.word_embeddings.weight",
        "classifier.bias",
        "bert.encoder.layer.0.attention.self.query.base_layer.weight",
        "bert.encoder.layer.0.attention.self.query.lora_A",
    ],
)
def test_a_tensor_thawed_after_the_engine_was_made_is_refused_by_name(thawed):
    engine, adapters = tiny_engine()
    engine.model.get_parameter(thawed).requires_grad_(True)
    _refused(engine, adapters, participants(1), match=thawed.replace(".", r"\."))


def test_a_tensor_outside_the_state_is_refused_where_gradients_are_asked_for():
    engine, adapters = tiny_engine()
    norm = engine.model.bert.encoder.layer[0].output.LayerNorm.requires_grad_(True)
    with pytest.raises(ValueError, match=r"layer\.0\.output\.LayerNorm\.weight.*neither clipped nor noised"):
        segment_gradients(engine.model, adapters, losses, *tiny_data().collate(np.arange(4)))
    assert norm.weight.grad is None


def plain_losses(outputs, targets):
    return F.cross_entropy(logits_of(outputs), targets, reduction="none")


def test_a_clipped_sum_asked_for_by_itself_looks_again_at_a_model_that_was_changed():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    adapters = attach(model, AdapterConfig(r=2, target_modules=["0"]))
    batch = (np.arange(3), {"input": torch.randn(3, 4)}, torch.tensor([0, 1, 0]))
    private = PrivateGradient(model, adapters, plain_losses, ledger(0, 3, 3), 1.0, SeededNoise(0))
    private.clipped_sum(0, [batch])
    model[1].requires_grad_(True)
    with pytest.raises(ValueError, match=r"1\.weight.*neither clipped nor noised"):
        private.clipped_sum(0, [batch])


@pytest.mark.parametrize("trained", ["b", "both"])
def test_a_model_of_float64_is_refused_by_the_layer_that_samples_gradients_would_round(trained):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    adapters = attach(model, AdapterConfig(r=2, target_modules=["0"], trained=trained))
    batch = {"input": torch.randn(3, 4).double()}, torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match=r"0 is float64.*model\.float\(\)"):
        PrivateGradient(model, adapters, plain_losses, ledger(0, 3, 3), 1.0, SeededNoise(0))
    with pytest.raises(ValueError, match=r"0 is float64.*model\.float\(\)"):
        segment_gradients(model, adapters, plain_losses, *batch)


def test_a_head_tied_to_another_layer_is_refused():
    engine, adapters = tiny_engine(head="trained")
    engine.model.bert.pooler.tied = nn.Linear(32, 3)
    engine.model.bert.pooler.tied.weight = engine.model.classifier.base_layer.weight
    _refused(engine, adapters, participants(1), match="classifier.*tied", error=RuntimeError)


# ---- loaders that are not Poisson ------------------------------------------------------------------------------------


def test_a_draw_that_is_not_known_to_be_poisson_is_refused():
    engine, adapters = tiny_engine()
    engine.draw = lambda client_id, step, n, rate: np.arange(round(n * rate))
    _refused(engine, adapters, participants(1), match="not known to be Poisson")


@pytest.mark.parametrize("counted,used", [("poisson", "shuffled"), ("shuffled", "poisson")])
def test_a_ledger_of_another_sampling_is_refused(counted, used):
    engine, adapters = tiny_engine(privacy={"sampling": used})
    clients = [Participant(0, np.arange(40), ledger(0, 40, 8, sampling=counted))]
    _refused(engine, adapters, clients, match=f"sampling='{counted}', but privacy.sampling='{used}'")


def test_shuffled_batches_that_were_asked_for_are_not_amplified():
    engine, adapters = tiny_engine(privacy={"sampling": "shuffled"})
    client = Participant(0, np.arange(40), ledger(0, 40, 8, sampling="shuffled"))
    _train(engine, adapters, [client], steps=3)
    poisson = ledger(0, 40, 8)
    poisson.charge(3)
    assert client.ledger.adjacency == "replace one sample"
    assert client.ledger.epsilon() > 3 * poisson.epsilon()


# ---- losses and models that mix samples ------------------------------------------------------------------------------


def test_a_scalar_loss_is_refused():
    engine, adapters = tiny_engine()
    engine.losses = lambda output, targets: losses(output, targets).mean()
    _refused(engine, adapters, participants(1), match=r"one loss a sample is needed, \[S\]")


def test_losses_that_are_not_one_a_sample_are_refused():
    engine, adapters = tiny_engine(privacy={"unit": "none"})
    engine.losses = lambda output, targets: losses(output, targets)[:-1]
    with pytest.raises(ValueError, match=r"one loss a sample is needed, \[S\]"):
        _train(engine, adapters, [Participant(0, np.arange(40))])


def _averaged(output, targets):
    values = losses(output, targets)
    return values / len(values)


def _balanced(output, targets):
    values, counts = losses(output, targets), torch.bincount(targets, minlength=3)
    return values / counts[targets]


def _contrastive(output, targets):
    unit = F.normalize(output.logits, dim=-1)
    return -torch.log_softmax(unit @ unit.T, dim=-1).diagonal()


@pytest.mark.parametrize("mixing", [_averaged, _balanced, _contrastive])
def test_a_loss_that_lets_in_the_other_samples_is_refused(mixing):
    engine, adapters = tiny_engine()
    engine.losses = mixing
    match = "averages over the batch or compares samples"
    _refused(engine, adapters, participants(1), match, SamplesNotIndependent)


def test_dropout_is_not_taken_for_a_mixing_of_samples():
    engine, adapters = tiny_engine()
    engine.model.train()
    _train(engine, adapters, participants(1))


def test_losses_of_every_task_are_accepted():
    from ffalora.data.tasks import TASKS

    torch.manual_seed(0)
    shapes = {
        "classification": (torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])),
        "image-classification": (torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])),
        "regression": (torch.randn(5, 1), torch.randn(5)),
        "causal-lm": (torch.randn(5, 6, 11), torch.randint(0, 11, (5, 6))),
    }
    for name, task in TASKS.items():
        check_losses_independence(task.losses, *shapes[name])


def test_batch_normalisation_in_training_is_refused_even_for_batches_of_one_sample():
    engine, adapters = tiny_engine()
    engine.model.bert.pooler.norm = nn.BatchNorm1d(32).requires_grad_(False).train()
    _refused(engine, adapters, participants(1), match=r"bert\.pooler\.norm is a BatchNorm1d")
    engine.model.bert.pooler.norm.eval()
    _train(engine, adapters, participants(1))


class _KeepsStatistics(nn.Module):
    def __init__(self, keeps):
        super().__init__()
        self.norm, self.body = nn.InstanceNorm1d(8, track_running_stats=keeps), nn.Linear(8, 3)

    def forward(self, x):
        return self.body(self.norm(x.transpose(1, 2)).transpose(1, 2)).tanh().mean(1)


@pytest.mark.parametrize("samples", [1, 6])
def test_running_statistics_of_private_samples_are_refused_and_put_back(samples):
    for keeps in (True, False):
        model = _KeepsStatistics(keeps).train()
        adapters = attach(model, AdapterConfig(r=2, target_modules=["body"]))
        private = PrivateGradient(model, adapters, plain_losses, ledger(0, 6, 3), 1.0, SeededNoise(0))
        batch = np.arange(samples), {"x": 3 + torch.randn(samples, 5, 8)}, torch.zeros(samples, dtype=torch.long)
        if keeps:
            with pytest.raises(SamplesNotIndependent, match=r"norm\.running_mean is a buffer.*of 2, 2 are"):
                private.step(0, [batch])
            assert not model.norm.running_mean.any() and (model.norm.running_var == 1).all()
        else:
            private.step(0, [batch])
        assert private.ledger.steps_taken == (0 if keeps else 1)


class _AddsBatchMean(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, hidden):
        return self.base(hidden + 0.1 * hidden.mean(0, keepdim=True))


class _RoutesByCapacity(nn.Module):
    """Only as many samples as fit, the largest first, pass: a sample can push another one out."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, hidden):
        kept = hidden.sum(-1).topk(max(1, len(hidden) // 2)).indices
        gate = torch.zeros(len(hidden), 1).index_fill_(0, kept, 1.0)
        return self.base(hidden * gate) + 0.01 * gate.roll(1, 0)


@pytest.mark.parametrize("mixing", [_AddsBatchMean, _RoutesByCapacity])
def test_a_layer_that_mixes_samples_is_refused(mixing):
    engine, adapters = tiny_engine()
    engine.model.classifier = mixing(engine.model.classifier)
    with pytest.raises(SamplesNotIndependent, match="mixes samples"):
        _train(engine, adapters, participants(1))


def test_a_first_batch_of_one_sample_leaves_the_probe_on():
    engine, adapters = tiny_engine(token_budget=1)
    engine.model.classifier = _AddsBatchMean(engine.model.classifier)
    _train(engine, adapters, participants(1))
    engine.token_budget = 1000
    with pytest.raises(SamplesNotIndependent, match="mixes samples"):
        _train(engine, adapters, participants(1))


def test_a_sample_that_reads_the_same_backwards_does_not_hide_the_mixing():
    data = tiny_data()
    data.input_ids.flat[:] = np.repeat(np.arange(40) + 5, data.lengths)  # each sample one word over and over
    engine, adapters = tiny_engine(data=data, token_budget=1000)
    engine.model.classifier = _AddsBatchMean(engine.model.classifier)
    with pytest.raises(SamplesNotIndependent, match="mixes samples"):
        _train(engine, adapters, participants(1))


# ---- privacy units packed together -----------------------------------------------------------------------------------


def test_two_samples_packed_into_one_row_are_refused():
    engine, adapters = tiny_engine()
    plain = engine.data

    def packed(indices):
        inputs, targets = plain.collate(indices)
        return {name: value.reshape(1, -1) for name, value in inputs.items()}, targets

    engine.data = SimpleNamespace(lengths=plain.lengths, collate=packed)
    with pytest.raises(ValueError, match="packed into one row share one gradient"):
        _train(engine, adapters, participants(1))


def test_a_sample_listed_twice_is_refused():
    engine, adapters = tiny_engine()
    clients = [Participant(0, np.array([1, 2, 3, 3]), ledger(0, 4, 2))]
    _refused(engine, adapters, clients, match="more than once")


# ---- ledgers that do not fit -----------------------------------------------------------------------------------------


def test_a_ledger_of_other_data_is_refused():
    engine, adapters = tiny_engine()
    clients = [Participant(0, np.arange(20), ledger(0, 40, 8))]
    _refused(engine, adapters, clients, match="dataset_size=40, but it holds 20 samples")


def test_a_ledger_of_whole_clients_is_refused_for_samples():
    engine, adapters = tiny_engine()
    clients = [Participant(0, np.arange(40), ledger(0, 40, 8, unit="client"))]
    _refused(engine, adapters, clients, match="unit='client'")


def test_a_target_that_earlier_runs_spent_is_not_spent_again():
    engine, adapters = tiny_engine()
    earlier = (Spent(1.0, 0.2, 100),)
    spent = ledger(0, 40, 8, sigma=2.0, target_epsilon=3.0, prior=earlier)
    assert spent.epsilon() > 3.0
    _refused(
        engine, adapters, [Participant(0, np.arange(40), spent)], "target_epsilon=3.0 allows 0", PrivacyBudgetSpent
    )


def test_a_participant_set_back_is_refused_for_its_noise_would_repeat():
    engine, adapters = tiny_engine()
    (client,) = participants(1)
    _train(engine, adapters, [client], steps=2)
    _refused(
        engine, adapters, [Participant(0, client.samples, client.ledger)], match="noise of a step would be used twice"
    )


def test_two_rows_of_one_client_id_are_refused():
    engine, adapters = tiny_engine()
    clients = [Participant(7, half, ledger(7, 20, 4)) for half in np.array_split(np.arange(40), 2)]
    _refused(engine, adapters, clients, match="client_id=7 is in the cohort more than once")


def test_one_client_in_two_simulated_runs_is_taken_with_seeded_noise_and_refused_with_secure_noise():
    cohort = [Participant(7, np.arange(20), ledger(7, 20, 4), run=run) for run in (0, 1)]
    privacy = tiny_engine()[0].privacy
    check_cohort(cohort, privacy, seeded=True)
    with pytest.raises(ValueError, match="client_id=7 is in the cohort more than once"):
        check_cohort(cohort, privacy, seeded=False)


# ---- calls that would clip or protect something else -----------------------------------------------------------------


def _gradients(**options):
    engine, adapters = tiny_engine()
    batch = tiny_data().collate(np.arange(4))
    return segment_gradients(engine.model, adapters, losses, *batch, **options), adapters.layout.width


@pytest.mark.parametrize("norm", [float("nan"), -1.0, torch.tensor([[float("nan")]], dtype=torch.float64)])
def test_a_clipping_norm_that_bounds_nothing_is_refused(norm):
    found, width = _gradients()
    total = torch.zeros(1, width, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"max_grad_norm=(nan|-1) bounds nothing"):
        found.clip_into_(total, norm)
    assert not total.any()


@pytest.mark.parametrize("ends", [(0, 16), (8, None), (0, 16, 8, None), (0, 10**6)])
def test_groups_that_leave_columns_out_are_refused(ends):
    found, width = _gradients()
    columns = torch.tensor([width if end is None else end for end in ends], dtype=torch.int32)
    norms = torch.ones(1, len(ends) - 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"group_columns=\[.*\] must rise from 0 to the"):
        found.clip_into_(torch.zeros(1, width, dtype=torch.float64), norms, columns)


def test_samples_of_a_segment_that_lie_apart_are_refused():
    with pytest.raises(ValueError, match="do not lie side by side"):
        _gradients(together=np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"together has shape \(3,\) for 4 samples"):
        _gradients(together=np.array([0, 0, 1]))


def test_segments_are_in_the_order_of_the_batch_whatever_their_names():
    named = np.array([7, 7, 7, 3])
    found, _ = _gradients(together=named)
    expected = torch.stack([found.losses[:3].mean(), found.losses[3]])
    torch.testing.assert_close(found.mean_losses(named), expected)


def _loop(client_ledger=None, model=None, adapters=None, losses=losses, **options):
    if model is None:
        engine, adapters = tiny_engine()
        model = engine.model
    return PrivateGradient(model, adapters, losses, client_ledger or ledger(0, 40, 8), 1.0, SeededNoise(1), **options)


def _batch(*samples):
    return np.array(samples), *tiny_data().collate(np.array(samples))


@pytest.mark.parametrize("unit", ["client", "user"])
def test_a_loop_that_clips_samples_takes_no_ledger_of_another_unit(unit):
    with pytest.raises(ValueError, match=f"unit='{unit}', but users are not given, so that samples are clipped"):
        _loop(ledger(0, 40, 8, unit=unit))


def test_a_seeded_step_is_taken_once():
    private = _loop()
    private.step(3, [])
    with pytest.raises(ValueError, match="step number=3 was taken before"):
        private.step(3, [])
    assert private.ledger.steps_taken == 1


@pytest.mark.parametrize("sample", [-1, 40])
def test_a_sample_that_is_not_of_the_data_is_refused(sample):
    private, (_, inputs, targets) = _loop(), _batch(0, 1)
    with pytest.raises(ValueError, match=f"sample {sample} is not of the 40 that the ledger counts"):
        private.step(0, [(np.array([0, sample]), inputs, targets)])
    assert private.ledger.steps_taken == 0


def test_batches_may_be_made_one_after_another():
    gradients = [_loop().step(0, batches)[0] for batches in ([_batch(0, 1, 2)], (_batch(0, 1, 2) for _ in range(1)))]
    assert torch.equal(*gradients)


class _OfNoLength(nn.Module):
    """A wrapped model that Python takes for false, as it would a compiled one."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def __len__(self):
        return 0

    def forward(self, **inputs):
        self.calls += 1
        return self.model(**inputs)


def test_a_wrapped_model_is_called_whatever_its_length():
    private = _loop()
    wrapped = _OfNoLength(private.model)
    private.step(0, [_batch(0, 1, 2)], wrapped)
    assert wrapped.calls


class _TwoTowers(nn.Module):
    """Scores every user with every item of the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items, self.query = nn.Embedding(9, 8), nn.Embedding(9, 8), nn.Linear(8, 8)
        self.requires_grad_(False)

    def forward(self, user, item):
        return self.query(self.users(user)) @ self.query(self.items(item)).T


def _contrast(output, targets):
    return F.cross_entropy(logits_of(output), torch.arange(len(targets)), reduction="none")


def _beside_the_mean(output, targets):
    own = logits_of(output)[:, 0]
    return own - own.mean()


@pytest.mark.parametrize("user,compared", [(torch.arange(6), _contrast), (torch.ones(6).long(), _beside_the_mean)])
def test_samples_that_are_compared_are_refused_although_inputs_are_one_number_each(user, compared):
    """The second batch holds one sample six times: no change of an input tells, and the losses alone do."""
    model = _TwoTowers()
    adapters = attach(model, AdapterConfig(rank=2, target_modules=["query"]))
    private = _loop(model=model, adapters=adapters, losses=compared, check_gradients=False)
    with pytest.raises(SamplesNotIndependent):
        private.step(0, [(np.arange(6), {"user": user, "item": user + 1}, torch.zeros(6, dtype=torch.long))])
    assert private.ledger.steps_taken == 0
