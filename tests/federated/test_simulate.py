"""Runs: what their folder holds, that an interruption changes nothing, and that faults of clients stop no round."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import CLIENT_LEVEL, PRIVATE, save_apart, save_texts

from ffalora.adapters import CheckpointError
from ffalora.config import ConfigError, from_mapping, load_config, merge
from ffalora.data.errors import DataError
from ffalora.federated import simulate as module
from ffalora.federated.checkpoint import Checkpoint, read_checkpoint
from ffalora.federated.checks import find_strategy
from ffalora.federated.cohort import client_weights, draw_cohort
from ffalora.federated.experiment import build, make_participants
from ffalora.federated.one_site import train
from ffalora.federated.simulate import run_round, simulate
from ffalora.files.numbers import rounded_up
from ffalora.privacy.accounting import LedgerMismatch
from ffalora.privacy.sampling import SeededDraw
from ffalora.report import read_runs, write_report
from ffalora.report.live import live_state
from ffalora.runs.bundle import evaluate, load_bundle
from ffalora.runs.folder import CHECKPOINT, METRICS, run_places


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_run_writes_its_whole_folder(small, tmp_path):
    result = simulate(small(), tmp_path / "run", progress=False)
    names = (
        "config.yaml",
        "environment.json",
        "partition.json",
        "privacy.json",
        "privacy.txt",
        "summary.json",
        METRICS,
    )
    assert all((tmp_path / "run" / name).exists() for name in (*names, CHECKPOINT, "adapter/adapter_config.json"))
    assert len(result.rounds) == 3
    assert set(result.rounds[-1]["metrics"]) == {"accuracy", "macro_f1", "loss"}
    assert result.rounds[-1]["bytes_up"] == 3 * 4 * 4 * 16 * 2  # clients x bytes x layers x N x R


def test_training_moves_the_loss_down(small, tmp_path):
    result = simulate(
        small(federation__rounds=10, federation__local_steps=4, optimizer__lr=1.0), tmp_path / "run", progress=False
    )
    losses = [row["metrics"]["loss"] for row in result.rounds]
    assert losses[-1] < 0.9 * losses[0]


class _Stop:
    """Raises KeyboardInterrupt in the middle of a round."""

    def __init__(self, at: int):
        self.calls, self.at = 0, at

    def __call__(self, original):
        def train(*arguments, **options):
            self.calls += 1
            if self.calls == self.at:
                options["on_step"] = self._interrupt
            return original(*arguments, **options)

        return train

    @staticmethod
    def _interrupt(step):
        raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{}, PRIVATE], ids=["plain", "private"])
def test_packed_batches_give_the_result_of_padded_ones(small, tmp_path, changes):
    for packed in (False, True):
        simulate(small(model__packed=packed, **changes), tmp_path / str(packed), progress=False)
    padded, packed = adapter_of(tmp_path / "False"), adapter_of(tmp_path / "True")
    for name in padded:
        torch.testing.assert_close(packed[name], padded[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("packed", ["auto", True])
@pytest.mark.parametrize("head", [{}, {"adapter__head": "auto"}], ids=["frozen", "as by default"])
def test_batches_are_packed_wherever_the_head_starts(small, packed, head):
    assert build(small(model__packed=packed, model__head_start="zero", **head)).engine.packed


def test_packing_a_model_that_pools_by_position_is_refused(small, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.packed=true needs model\.pooling=mean"):
        simulate(small(model__packed=True, model__pooling="model"), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            **PRIVATE,
            "optimizer__name": "adamw",
            "optimizer__lr": 0.01,
            "optimizer__keep_moments": True,
            "federation__payload": "top-k",
        },
        {"federation__server_optimizer": "fedadam", "federation__server_lr": 0.01, "optimizer__schedule": "cosine"},
        CLIENT_LEVEL,
        {**PRIVATE, "privacy__clipping": "adaptive"},
        {**CLIENT_LEVEL, "privacy__clipping": "adaptive", "clients__count": 6},
        {"federation__participation": 0.7, "federation__dropout_rate": 0.3, "adapter__dropout": 0.1},
    ],
    ids=["plain", "private-adamw", "server-adam", "client-level", "adaptive", "client-level-adaptive", "faults"],
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(small, tmp_path, monkeypatch, changes):
    config = small(federation__one_pass="always", **changes)
    simulate(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        engine = module.build(config).engine.__class__
        patch.setattr(engine, "train", _Stop(at=4 if "federation__dropout_rate" in changes else 2)(engine.train))
        with pytest.raises(KeyboardInterrupt):
            simulate(config, tmp_path / "cut", progress=False)
    assert 1 <= len(rows_of(tmp_path / "cut")) < 3
    simulate(config, tmp_path / "cut", resume=True, progress=False)
    whole, cut = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "cut")
    assert (tmp_path / "whole/privacy.txt").read_text() == (tmp_path / "cut/privacy.txt").read_text()


def test_resuming_with_another_configuration_names_every_key_that_differs(small, tmp_path):
    simulate(small(federation__rounds=1), tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match=r"optimizer\.lr was 0\.5 and is 0\.25"):
        simulate(small(federation__rounds=1, optimizer__lr=0.25), tmp_path / "run", resume=True, progress=False)


def test_a_second_run_in_the_same_folder_is_refused(small, tmp_path):
    simulate(small(federation__rounds=1), tmp_path / "run", progress=False)
    with pytest.raises(CheckpointError, match="holds a run already"):
        simulate(small(federation__rounds=1), tmp_path / "run", progress=False)


def test_a_folder_in_which_another_process_trains_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    for resume in (False, True):
        with ExitStack() as held:
            module.hold_folder(tmp_path / "run", resume, held)
            with pytest.raises(CheckpointError, match=r"run: another process is training in this folder"):
                simulate(small(federation__rounds=1), tmp_path / "run", resume=resume, progress=False)
            assert not (tmp_path / "run" / CHECKPOINT).exists()
    simulate(small(federation__rounds=1), tmp_path / "run", progress=False)


def test_several_runs_are_no_single_one(small, tmp_path):
    for several, named in (({"seeds": 3}, "seeds=3"), ({"methods": {"lora": {}}}, r"methods=\['lora'\]")):
        config = small(**several)
        with pytest.raises(ConfigError, match=f"{named}: this trains a single run"):
            simulate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        assert len(run_places(config, tmp_path)) == config.seeds


def test_a_run_that_began_while_another_was_being_prepared_is_not_written_over(small, tmp_path, monkeypatch):
    def build_slowly(config):
        monkeypatch.setattr(module, "build", build)
        simulate(small(federation__rounds=1, seed=1), tmp_path / "run", progress=False)
        return build(config)

    monkeypatch.setattr(module, "build", build_slowly)
    with pytest.raises(CheckpointError, match="holds a run already"):
        simulate(small(federation__rounds=1), tmp_path / "run", progress=False)
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)[0]["config"]["seed"] == 1


@pytest.mark.parametrize("kind", ["bytes", "numbers", "header"])
def test_a_tampered_checkpoint_is_refused(small, tmp_path, kind):
    simulate(small(federation__rounds=1), tmp_path / "run", progress=False)
    path = tmp_path / "run" / CHECKPOINT
    if kind == "bytes":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            header, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}
        if kind == "numbers":
            tensors["row"][0] += 1
        else:
            header["ffalora"] = header["ffalora"].replace('"format": 2', '"format": 9')
        save_file(tensors, path, metadata=header)
    with pytest.raises(CheckpointError):
        simulate(small(federation__rounds=1), tmp_path / "run", resume=True, progress=False)


def checkpoint_of(experiment, server, run):
    frozen = experiment.strategy.wire.fingerprint()
    return Checkpoint(run / CHECKPOINT, experiment.config, server, experiment.participants, frozen=frozen)


def test_a_ledger_with_other_terms_is_refused_on_resume(small, tmp_path):
    simulate(small(federation__rounds=1, **PRIVATE), tmp_path / "run", progress=False)
    experiment = build(small(federation__rounds=1, **PRIVATE))
    experiment.ledgers["0"].dataset_size += 1
    server = experiment.strategy.begin()
    with pytest.raises(LedgerMismatch, match="dataset_size"):
        checkpoint_of(experiment, server, tmp_path / "run").load()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        PRIVATE,
        {"optimizer__momentum": 0.9, "federation__prox_mu": 0.1},
        {"clients__count": 4, "federation__participation": 0.5, "adapter__dropout": 0.3},
    ],
    ids=["plain", "private", "momentum, prox", "dropout, unequal steps"],
)
def test_one_pass_equals_one_client_after_another(small, tmp_path, changes):
    for choice in ("always", "never"):
        simulate(small(federation__one_pass=choice, **changes), tmp_path / choice, progress=False)
    together, apart = adapter_of(tmp_path / "always"), adapter_of(tmp_path / "never")
    for name in together:
        torch.testing.assert_close(together[name], apart[name], rtol=1e-4, atol=1e-6)


def test_participation_draws_another_fixed_share_each_round(small):
    experiment = build(small(clients__count=10, federation__participation=0.3))
    drawn = [draw_cohort(experiment, number).ids for number in range(6)]
    assert all(len(ids) == 3 for ids in drawn)
    assert len({tuple(ids) for ids in drawn}) > 1
    assert drawn == [draw_cohort(experiment, number).ids for number in range(6)]


def test_weights_follow_sizes_or_are_equal(small):
    experiment = build(small(clients__partition="quantity", clients__quantities=[0.5, 0.25, 0.25]))
    sizes = np.array([len(p.samples) for p in experiment.participants])
    by_size = client_weights(experiment.participants, small())
    np.testing.assert_allclose(by_size.numpy(), sizes / sizes.sum())
    assert client_weights(experiment.participants, small(federation__weighting="uniform")).tolist() == [1 / 3] * 3


def test_fedprox_keeps_clients_nearer_to_where_they_started(small):
    def distance(mu):
        experiment = build(
            small(federation__prox_mu=mu, federation__local_steps=4, optimizer__lr=0.3, optimizer__head_lr_factor=1)
        )
        server = experiment.strategy.begin()
        before = server.row.clone()
        run_round(experiment, server)
        return float((server.row - before).norm())

    assert distance(2.0) < 0.7 * distance(0.0)


def test_the_gap_of_averaging_is_zero_for_ffa_and_positive_for_lora(small):
    gaps = {}
    for name in ("ffa", "lora"):
        experiment = build(small(federation__strategy=name))
        server = experiment.strategy.begin()
        gaps[name] = [run_round(experiment, server)["update_gap"] for _ in range(2)]
    assert gaps["ffa"] == [0.0, 0.0]
    assert gaps["lora"][1] > 1e-4


def test_a_client_that_sends_nan_is_named_and_the_round_goes_on(small, monkeypatch):
    experiment = build(small())
    original = module.train_cohort

    def spoil(experiment, server, cohort, rows):
        report = original(experiment, server, cohort, rows)
        rows[1, 3] = float("nan")
        return report

    monkeypatch.setattr(module, "train_cohort", spoil)
    server = experiment.strategy.begin()
    row = run_round(experiment, server)
    assert row["rejected"] == [1]
    assert server.row.isfinite().all() and server.row.any()


def test_a_round_of_nothing_but_rejected_clients_leaves_the_state(small, monkeypatch):
    experiment = build(small())
    monkeypatch.setattr(
        module, "train_cohort", lambda e, s, cohort, rows: (rows.fill_(float("inf")), module.TrainingReport(3))[1]
    )
    server = experiment.strategy.begin()
    before = server.row.clone()
    assert run_round(experiment, server)["rejected"] == [0, 1, 2]
    assert torch.equal(server.row, before)


def test_a_client_that_drops_out_has_spent_its_steps_and_is_not_averaged(small):
    experiment = build(small(clients__count=8, federation__dropout_rate=0.5, federation__local_steps=3, **PRIVATE))
    server = experiment.strategy.begin()
    row = run_round(experiment, server)
    gone = row["dropped"]
    assert 0 < len(gone) < 8
    for client in experiment.participants:
        spent = client.ledger.steps_taken
        assert 1 <= spent <= 3 if client.client_id in gone else spent == 3
    assert row["bytes_up"] == (8 - len(gone)) * experiment.strategy.wire.bytes_up(server)


@pytest.mark.parametrize("one_pass", ["always", "never"])
def test_a_straggler_takes_fewer_steps_and_is_averaged(small, one_pass):
    experiment = build(
        small(
            clients__count=6, federation__straggler_rate=0.5, federation__local_steps=4, federation__one_pass=one_pass
        )
    )
    server = experiment.strategy.begin()
    row = run_round(experiment, server)
    steps = {p.steps_taken for p in experiment.participants}
    assert steps == {2, 4} and row["dropped"] == []


@pytest.mark.parametrize("work,fewest", [(0.75, 3), (0.25, 1), (0.01, 1)])
def test_a_straggler_takes_the_share_of_its_steps_that_is_asked_for_and_one_at_least(small, work, fewest):
    stragglers = {"federation__straggler_rate": 0.5, "federation__straggler_work": work}
    experiment = build(small(clients__count=6, federation__local_steps=4, **stragglers))
    run_round(experiment, experiment.strategy.begin())
    assert {p.steps_taken for p in experiment.participants} == {fewest, 4}


def test_a_straggler_ends_where_it_would_have_ended_alone(small):
    rows = {}
    for choice in ("always", "never"):
        experiment = build(
            small(
                clients__count=6,
                federation__straggler_rate=0.5,
                federation__local_steps=4,
                optimizer__momentum=0.9,
                federation__one_pass=choice,
            )
        )
        server = experiment.strategy.begin()
        run_round(experiment, server)
        rows[choice] = server.row
    torch.testing.assert_close(rows["always"], rows["never"], rtol=1e-4, atol=1e-6)


def test_client_level_privacy_charges_the_population_each_round_and_caps_the_update(small, tmp_path):
    config = small(clients__count=12, **CLIENT_LEVEL)
    result = simulate(config, tmp_path / "run", progress=False)
    epsilons = [row["epsilon"] for row in result.rounds]
    assert epsilons == sorted(epsilons) and epsilons[0] > 0
    statement = json.loads((tmp_path / "run/privacy.json").read_text())
    assert statement["unit"] == "client" and statement["clients"][0]["steps_taken"] == 3
    silent = merge(config.model_dump(), {"privacy.noise_multiplier": 0.0, "privacy.max_grad_norm": 1e-3})
    experiment = build(from_mapping(silent))
    server = experiment.strategy.begin()
    before = server.row.clone()
    drawn = len(draw_cohort(build(from_mapping(silent)), 0).clients)
    run_round(experiment, server)
    assert float((server.row - before).double().norm()) <= 1e-3 * drawn / 6 * (1 + 1e-6)


def test_adaptive_client_level_clipping_follows_the_updates(small):
    experiment = build(small(clients__count=12, **CLIENT_LEVEL | {"privacy__clipping": "adaptive"}))
    level, server = experiment.client_level, experiment.strategy.begin()
    norms = [level.limit]
    for _ in range(3):
        run_round(experiment, server)
        norms.append(level.limit)
    assert len(set(norms)) == 4 and norms[0] == 0.5
    assert level.noise_std == pytest.approx(level.adaptive.sum_noise_multiplier * level.limit, rel=1e-4)
    assert level.adaptive.sum_noise_multiplier > level.ledger.noise_multiplier


@pytest.mark.parametrize("changes", [PRIVATE, CLIENT_LEVEL | {"clients__count": 12}], ids=["sample", "client"])
def test_adaptive_clipping_follows_the_quantile_that_is_asked_for(small, changes):
    norms = []
    for quantile in (0.1, 0.9):
        changed = changes | {"privacy__clipping": "adaptive", "privacy__clipping_quantile": quantile}
        experiment = build(small(**changed))
        run_round(experiment, experiment.strategy.begin())
        level = experiment.client_level
        policies = [level.adaptive] if level else [p.adaptive for p in experiment.participants]
        assert all(policy.quantile == quantile for policy in policies)
        norms.append([policy.max_grad_norm for policy in policies])
    assert all(low < high for low, high in zip(*norms, strict=True))  # the same draws: only the quantile differs


def test_the_norm_bound_that_is_asked_for_is_the_furthest_a_round_moves(small):
    experiment = build(small(federation__robust_mean="norm-bounded", federation__norm_bound=1e-3))
    server = experiment.strategy.begin()
    before = server.row.clone()
    run_round(experiment, server)
    moved = float((server.row - before).double().norm())
    assert 0 < moved <= 1e-3 * (1 + 1e-4)


def test_an_automatic_rate_is_refused_in_the_papers_units(small):
    with pytest.raises(ConfigError, match=r"optimizer\.lr='auto' is a rate of normalised steps"):
        build(small(optimizer__lr="auto", optimizer__normalize=False))


@pytest.mark.parametrize("recorded", [True, False])
def test_the_engine_records_on_a_gpu_as_the_configuration_says(small, recorded):
    assert build(small(model__cuda_graphs=recorded)).engine.cuda_graphs is recorded


def test_a_random_head_is_as_wide_as_the_configuration_says(small):
    heads = [build(small(model__head_std=std)).loaded.model.classifier.weight.detach() for std in (0.2, 0.6)]
    torch.testing.assert_close(heads[1], 3 * heads[0])
    assert float(heads[0].std()) == pytest.approx(0.2, rel=0.5)  # of 32 draws


def test_client_level_privacy_with_layers_clipped_apart_is_refused_before_anything_is_charged(small):
    with pytest.raises(ConfigError, match=r"privacy.*clipping='per-layer'.*flat, automatic or adaptive"):
        small(**CLIENT_LEVEL | {"privacy__clipping": "per-layer"})


@pytest.mark.parametrize("clipping", ["flat", "automatic", "adaptive"])
def test_every_accepted_clipping_policy_completes_a_client_level_round(small, clipping):
    experiment = build(small(**CLIENT_LEVEL | {"privacy__clipping": clipping}))
    server = experiment.strategy.begin()
    assert run_round(experiment, server)["epsilon"] > 0 and server.row.isfinite().all()


def test_client_level_privacy_with_weights_by_size_is_refused(small):
    with pytest.raises(ConfigError, match=r"federation\.weighting='size'"):
        build(small(**CLIENT_LEVEL | {"federation__weighting": "size"}))


def test_an_unknown_method_is_refused_with_the_list_of_those_there_are():
    with pytest.raises(ConfigError, match="ffa"):
        find_strategy("fed-magic")


@pytest.mark.parametrize(
    "changes,key",
    [
        ({"federation__min_available": 5}, "federation.min_available=5"),
        ({"clients__ranks": [1, 2, 2]}, "clients.ranks"),
    ],
)
def test_what_a_method_cannot_do_is_refused_before_training(small, changes, key):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        build(small(**changes))


def test_the_saved_adapter_gives_peft_the_same_hidden_states_and_reproduces_the_metrics(small, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    config = small(model__attention="eager")
    result = simulate(config, tmp_path / "run", progress=False)
    bundle = load_bundle(tmp_path / "run")
    peft = PeftModel.from_pretrained(AutoModel.from_pretrained(config.model.name), tmp_path / "run/adapter").eval()
    inputs = bundle.loaded.tokenizer(["word1 word30", "word7"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            bundle.loaded.model.encoder(**inputs).last_hidden_state,
            peft(**inputs).last_hidden_state,
            rtol=1e-5,
            atol=1e-5,
        )
    again = evaluate(tmp_path / "run")
    assert again == pytest.approx(result.rounds[-1]["metrics"], abs=1e-6)


@pytest.mark.parametrize(
    "optimizer", [{"optimizer__momentum": 0.9}, {"optimizer__name": "adamw", "optimizer__lr": 0.02}]
)
def test_training_at_one_site_does_not_depend_on_how_it_is_cut_into_rounds(small, tmp_path, optimizer):
    for rounds, steps in ((1, 6), (3, 2)):
        config = small(
            federation__rounds=rounds,
            federation__local_steps=steps,
            optimizer__schedule="cosine",
            optimizer__warmup_steps=2,
            **optimizer,
        )
        train(config, tmp_path / str(rounds), progress=False)
    whole, cut = adapter_of(tmp_path / "1"), adapter_of(tmp_path / "3")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_training_at_one_site_draws_secure_noise_unless_a_seed_is_asked_for(small, tmp_path):
    train(small(federation__rounds=1, **PRIVATE), tmp_path / "site", progress=False)
    train(small(federation__rounds=1, **PRIVATE, privacy__noise="seeded"), tmp_path / "seeded", progress=False)
    simulate(small(federation__rounds=1, **PRIVATE), tmp_path / "simulation", progress=False)
    noise = {
        name: load_config(tmp_path / name / "config.yaml").privacy.noise for name in ("site", "seeded", "simulation")
    }
    assert noise == {"site": "secure", "seeded": "seeded", "simulation": "seeded"}


def test_two_runs_of_one_seed_agree_in_every_number_but_the_time(small, tmp_path):
    for name in ("first", "second"):
        simulate(small(federation__rounds=1), tmp_path / name, progress=False)
    assert rows_of(tmp_path / "first") == rows_of(tmp_path / "second")


@pytest.mark.parametrize("last", ["metrics", "checkpoint"])
def test_a_kill_between_the_two_writes_of_a_round_keeps_its_row(small, tmp_path, monkeypatch, last):
    config, run = small(**PRIVATE), tmp_path / "run"
    simulate(config, tmp_path / "whole", progress=False)
    written = []

    def then_die(write):
        def wrapped(*arguments):
            write(*arguments)
            written.append(arguments[0])
            if len(written) == 2:
                raise KeyboardInterrupt

        return wrapped

    with monkeypatch.context() as patch:
        if last == "metrics":
            patch.setattr(module, "append_row", then_die(module.append_row))
        else:
            patch.setattr(Checkpoint, "save", then_die(Checkpoint.save))
        with pytest.raises(KeyboardInterrupt):
            simulate(config, run, progress=False)
    result = simulate(config, run, resume=True, progress=False)
    assert rows_of(run) == rows_of(tmp_path / "whole") and [row["round"] for row in rows_of(run)] == [1, 2, 3]
    assert result.summary["rounds"] == 3


def test_a_run_that_spent_budgets_cut_short_has_metrics(small, tmp_path, monkeypatch):
    config = small(federation__evaluate_every=3, **CLIENT_LEVEL)
    real = module.run_round

    def charge_once_more(experiment, server):
        if server.round == 1:
            experiment.client_level.ledger.charge()  # as for a round that was killed
        return real(experiment, server)

    monkeypatch.setattr(module, "run_round", charge_once_more)
    with pytest.warns(UserWarning, match="ends the run after 2 of 3"):
        result = simulate(config, tmp_path / "run", progress=False)
    assert [bool(row["metrics"]) for row in rows_of(tmp_path / "run")] == [False, True]
    assert result.summary["metrics"]["accuracy"] >= 0


@pytest.mark.parametrize("unit", [PRIVATE, CLIENT_LEVEL])
def test_summary_and_last_row_state_what_was_charged_after_it(small, tmp_path, unit):
    run = module.Run.open(build(small(**unit)), tmp_path / "run", resume=False)
    run.complete_round(run_round(run.experiment, run.server))
    before = run.rows[-1]["epsilon"]
    next(iter(run.experiment.ledgers.values())).charge()  # as for a round that was killed
    result = run.finish()
    stated = rounded_up(json.loads((tmp_path / "run" / "privacy.json").read_text())["max_epsilon"])
    assert before < stated == result.summary["epsilon"] == rows_of(tmp_path / "run")[-1]["epsilon"]
    assert max(rows_of(tmp_path / "run")[-1]["epsilon_per_client"].values()) == stated


@pytest.mark.parametrize("unit", [PRIVATE, CLIENT_LEVEL])
def test_infinite_epsilon_leaves_files_that_every_reader_of_json_takes(small, tmp_path, unit):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    config = small(**unit | {"privacy__noise_multiplier": 0.0, "federation__rounds": 2})
    simulate(config, tmp_path / "run", progress=False)
    simulate(config, tmp_path / "run", resume=True, progress=False)
    for line in (tmp_path / "run" / METRICS).read_text().splitlines():
        assert json.loads(line, parse_constant=refuse)["epsilon"] == "infinity"
    for name in ("summary.json", "privacy.json", "environment.json", "partition.json"):
        json.loads((tmp_path / "run" / name).read_text(), parse_constant=refuse)
    assert json.loads((tmp_path / "run/summary.json").read_text())["epsilon"] == "infinity"


@pytest.mark.parametrize("unit", [PRIVATE, CLIENT_LEVEL])
@pytest.mark.parametrize("strategy", ["ffa", "lora"])
def test_secure_runs_write_down_nothing_about_private_data_that_no_noise_covers(small, tmp_path, unit, strategy):
    changes = unit | {"privacy__noise": "secure", "federation__rounds": 1, "federation__strategy": strategy}
    simulate(small(**changes), tmp_path / "run", progress=False)
    (row,) = (json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines())
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    public, of_all = {"epsilon", "metrics"}, {"bytes_up", "bytes_down", "seconds"}  # the latter follow who was drawn
    in_rows, in_summary = {"round", "epsilon_per_client"}, {"baselines", "bytes_up_per_client_round", "evaluated"}
    in_summary |= {"head_start", "lr", "rounds", "strategy", "trained_numbers"}
    if unit is PRIVATE:
        in_rows |= of_all | {"rejected", "dropped", "update_gap"}
        in_summary |= of_all | {"seconds_per_round"}
    assert set(row) == public | in_rows and row["epsilon"] > 0
    assert set(summary) == public | in_summary
    shown = {"client"} if unit is CLIENT_LEVEL else {"client", "samples"}
    assert all(set(client) == shown for client in json.loads((tmp_path / "run/partition.json").read_text()))
    steps = read_checkpoint(tmp_path / "run" / CHECKPOINT)[0]["steps_taken"]
    assert set(steps.values()) == {2}, "nothing tells who was drawn"
    write_report(read_runs([tmp_path / "run"]), tmp_path / "run")
    assert live_state(tmp_path / "run")["seconds_left"] == 0


def test_a_size_that_is_secret_is_not_written_down(small, tmp_path):
    secret = {"privacy__noise": "secure", "privacy__public_size_bound": 500, "clients__count": 1}
    apart = save_apart(tmp_path / "data")
    simulate(small(**PRIVATE | secret | apart | {"federation__rounds": 1}), tmp_path / "run", progress=False)
    assert all(set(client) == {"client"} for client in json.loads((tmp_path / "run/partition.json").read_text()))


@pytest.mark.parametrize("strategy", ["ffa", "lora", "lalora"])
def test_a_round_that_nobody_was_drawn_for_is_charged_noised_and_goes_on(small, tmp_path, strategy, monkeypatch):
    monkeypatch.setattr(SeededDraw, "__call__", lambda self, *given: np.empty(0, dtype=np.int64))
    config = small(**CLIENT_LEVEL | {"federation__strategy": strategy, "federation__rounds": 1})
    result = simulate(config, tmp_path / "run", progress=False)
    assert result.rounds[0]["update_gap"] == 0.0 and result.summary["epsilon"] > 0


def test_moments_that_would_tell_who_was_drawn_are_refused(small):
    with pytest.raises(ConfigError, match=r"optimizer\.keep_moments=True.*who was drawn"):
        build(small(**CLIENT_LEVEL, privacy__noise="secure", optimizer__keep_moments=True))


def test_a_run_goes_on_with_another_check_of_its_gradients(small, tmp_path, monkeypatch):
    engine = module.build(small(**PRIVATE)).engine.__class__
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "train", _Stop(at=2)(engine.train))
        simulate(small(**PRIVATE), tmp_path / "run", progress=False)
    assert len((tmp_path / "run" / METRICS).read_text().splitlines()) == 1
    found = simulate(small(**PRIVATE, privacy__check_gradients=False), tmp_path / "run", resume=True, progress=False)
    assert len(found.rounds) == 3


def test_clients_from_a_column_are_called_by_its_values(small, tmp_path):
    texts = save_texts(tmp_path / "texts.csv")
    lines = texts.read_text().splitlines()
    rows = [f"{line},{('north', 'south')[i % 2]}" for i, line in enumerate(lines[1:])]
    texts.write_text("\n".join([lines[0] + ",hospital", *rows]) + "\n")
    changes = {"clients__count": None, "clients__partition": "column", "clients__column": "hospital"}
    experiment = build(small(data__name=str(texts), **changes, **PRIVATE))
    row = run_round(experiment, experiment.strategy.begin())
    assert set(row["epsilon_per_client"]) == {"north", "south"}


def test_stated_epsilon_of_a_round_is_never_below_the_ledgers(small):
    experiment = build(small(**PRIVATE))
    server = experiment.strategy.begin()
    for _ in range(3):
        row = run_round(experiment, server)
        spent = {name: ledger.epsilon() for name, ledger in experiment.ledgers.items()}
        assert row["epsilon"] >= max(spent.values())
        assert all(row["epsilon_per_client"][name] >= value for name, value in spent.items())


def test_a_checkpoint_brings_the_servers_tensors_to_the_device_of_its_row(small, tmp_path):
    config = small(federation__rounds=1, federation__server_optimizer="fedadam", federation__server_lr=0.1)
    simulate(config, tmp_path / "run", progress=False)
    experiment = build(config)
    server = experiment.strategy.begin()
    server.row = server.row.to("meta")  # stands for any device that the checkpoint was not written on
    checkpoint_of(experiment, server, tmp_path / "run").load()
    assert {name for name in server.tensors if name.startswith("server.")} == {"server.m.b", "server.v.b"}
    assert {value.device.type for value in (server.row, *server.tensors.values())} == {"meta"}


@pytest.mark.long
@pytest.mark.parametrize("unit", [PRIVATE, CLIENT_LEVEL])
@pytest.mark.parametrize("noise", ["seeded", "secure"])
def test_ledgers_refuse_texts_that_have_changed(small, tmp_path, unit, noise):
    texts = save_texts(tmp_path / "texts.csv")
    config = small(**unit | {"federation__rounds": 2, "data__name": str(texts), "privacy__noise": noise})
    simulate(config, tmp_path / "run", progress=False)
    simulate(config, tmp_path / "run", resume=True, progress=False)
    lines = texts.read_text().splitlines()
    texts.write_text("\n".join(line.replace("word1 ", "word2 ") for line in lines) + "\n")
    with pytest.raises(LedgerMismatch, match="fingerprint was"):
        simulate(config, tmp_path / "run", resume=True, progress=False)


def test_a_clients_ledger_depends_on_its_own_data_alone(small, tmp_path):
    texts = save_texts(tmp_path / "texts.csv", rows=90)
    changes = {"data__name": str(texts), "data__validation_fraction": 0.0, **PRIVATE}
    before = build(small(**changes))
    first = before.participants[0]
    experiment = build(small(**changes))
    flat = experiment.train.input_ids
    flat.flat[flat.offsets[experiment.participants[1].samples[0]] + 1] += 1
    again = make_participants(experiment.config, experiment.partition, experiment.train)
    assert [p.ledger.fingerprint == q.ledger.fingerprint for p, q in zip(before.participants, again, strict=True)] == [
        True,
        False,
        True,
    ]
    assert first.ledger.fingerprint.startswith(f"{texts} sha256:")
    assert len({p.ledger.fingerprint for p in again}) == 3


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"data__label": "mood"}, r"data\.label='mood': there is no such column; the columns are text, label"),
        ({"data__text": ["body"]}, r"data\.text='body'"),
        ({"clients__partition": "column", "clients__column": "who", "clients__count": None}, r"clients\.column='who'"),
        ({"data__label": "text"}, r"choose another data\.label"),
        ({"data__label": "label_column"}, r"data\.label='label_column'"),
    ],
)
def test_a_data_error_names_keys_of_the_configuration(small, changes, said):
    with pytest.raises(DataError, match=said) as error:
        build(small(**changes))
    assert not any(word in str(error.value) for word in ("input_columns", "client_column", "label_column="))
