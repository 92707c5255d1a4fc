"""The package broken on purpose, one way at a time: what is left of privacy when somebody gets it wrong.

A test takes a mutant from ``MUTANTS`` and applies it with pytest's monkeypatch. As a plugin (``pytest -p mutants`` with
``FFALORA_MUTANT`` set) this module breaks the package for a whole test session.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ffalora.adapters import autograd
from ffalora.adapters.dropout import DropoutMasks
from ffalora.audits import bounds, sample_canaries
from ffalora.data.examples import TokenizedDataset
from ffalora.federated import whole_users
from ffalora.federated.flower.policy import SitePolicy
from ffalora.privacy import accountants, charge_log, client_level, data_ledger, ledger_files, prior, sealed, statement
from ffalora.privacy.accounting import PrivacyLedger
from ffalora.privacy.correlated_noise import CorrelatedNoise
from ffalora.privacy.correlation import Correlation
from ffalora.privacy.distributed import NoiseShares
from ffalora.privacy.noise import SeededNoise
from ffalora.privacy.sampling import SeededDraw, SystemDraw
from ffalora.report import baselines, page
from ffalora.training import admission, drawn, gradients, sensitivity, setup
from ffalora.training import step as step_module
from ffalora.training.batches import physical_batches
from ffalora.training.dropout import DropoutKeys
from ffalora.training.engine import Engine
from ffalora.training.participant import Participant
from ffalora.training.setup import TrainingSetup
from ffalora.training.step import LogicalStep


def noise_halved(patch) -> None:
    real = Participant.noise_std
    patch.setattr(Participant, "noise_std", lambda *arguments: real(*arguments) / 2)


def clipping_removed(patch) -> None:
    real = gradients.clip_reduce_

    def unclipped(total, arena, client, max_grad_norm, *rest, **options):
        return real(
            total, arena, client, torch.full_like(max_grad_norm, torch.inf), *rest, **options | {"mode": "flat"}
        )

    patch.setattr(gradients, "clip_reduce_", unclipped)


def updates_are_not_clipped(patch) -> None:
    real = client_level.clip_reduce_

    def unclipped(total, updates, client, max_grad_norm, *rest, **options):
        return real(total, updates, client, torch.full_like(max_grad_norm, torch.inf), *rest, **options)

    patch.setattr(client_level, "clip_reduce_", unclipped)


def head_without_noise(patch) -> None:
    real_update, real_step = LogicalStep._update, step_module.privatize_step_

    def update(self, *arguments):
        head = torch.zeros(self.setup.adapters.layout.width, dtype=torch.bool)
        for place in self.setup.adapters.layout.places:
            head[place.start : place.start + place.size] = place.tensor in ("weight", "bias")
        exact = self.total.clone()

        def step(state, total, **options):
            silent = state.clone()
            fresh = {k: v if v is None else v.clone() for k, v in options.items() if k in ("exp_avg", "exp_avg_sq")}
            real_step(silent, exact, **options | fresh | {"noise_std": torch.zeros_like(options["noise_std"])})
            real_step(state, total, **options)
            state[:, head] = silent[:, head]

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(step_module, "privatize_step_", step)
            real_update(self, *arguments)

    patch.setattr(LogicalStep, "_update", update)


def accounting_reset_each_round(patch) -> None:
    real = Engine.train

    def train(self, cohort, *arguments, **options):
        for participant in cohort:
            if participant.ledger is not None:
                participant.ledger.steps_taken = 0
        return real(self, cohort, *arguments, **options)

    patch.setattr(Engine, "train", train)


def poisson_replaced_by_a_fixed_batch(patch) -> None:
    for draw in (SeededDraw, SystemDraw):
        patch.setattr(draw, "__call__", lambda self, client, step, n, rate: np.arange(max(1, round(n * rate))))


def steps_are_not_charged(patch) -> None:
    patch.setattr(PrivacyLedger, "charge", lambda self, steps=1, noise=None: None)


def empty_draws_add_no_noise(patch) -> None:
    real = LogicalStep._update

    def update(self, drawn, *rest):
        if sum(drawn):
            real(self, drawn, *rest)

    patch.setattr(LogicalStep, "_update", update)


def dropout_masks_by_position(patch) -> None:
    """One generator for the whole batch: a sample more or less redraws everybody's masks."""
    patch.setattr(DropoutMasks, "keep", lambda self, shape, p: torch.rand(tuple(shape)) >= p)


def dropout_keys_by_position(patch) -> None:
    real = DropoutKeys.of.__func__

    def of(cls, noise, client, step, sample, *rest):
        return real(cls, noise, client, step, np.arange(len(sample)), *rest)

    patch.setattr(DropoutKeys, "of", classmethod(of))


def dropout_masks_fresh_in_each_pass(patch) -> None:
    patch.setattr(DropoutKeys, "of", classmethod(lambda cls, noise, client, step, sample, *_: cls.fresh(len(sample))))


def dropout_masks_repeat_every_step(patch) -> None:
    real = DropoutKeys.of.__func__

    def of(cls, noise, client, step, *rest):
        return real(cls, noise, client, np.zeros_like(step), *rest)

    patch.setattr(DropoutKeys, "of", classmethod(of))


def secure_dropout_from_a_public_seed(patch) -> None:
    real = DropoutKeys.of.__func__
    patch.setattr(DropoutKeys, "of", classmethod(lambda cls, noise, *rest: real(cls, SeededNoise(0), *rest)))


def clipping_norm_doubled(patch) -> None:
    real = gradients.clip_reduce_
    patch.setattr(
        gradients, "clip_reduce_", lambda t, a, c, norm, *rest, **options: real(t, a, c, 2 * norm, *rest, **options)
    )


def rows_counted_twice(patch) -> None:
    real = gradients.clip_reduce_

    def twice(*arguments, **options):
        real(*arguments, **options)
        return real(*arguments, **options)

    patch.setattr(gradients, "clip_reduce_", twice)


def collator_mixes_neighbours(patch) -> None:
    """Every sample gets the label of the sample before it in the batch."""
    real = TokenizedDataset.collate

    def collate(self, indices):
        inputs, targets = real(self, indices)
        return inputs, targets.roll(1)

    patch.setattr(TokenizedDataset, "collate", collate)


def gradients_are_not_compared(patch) -> None:
    patch.setattr(gradients, "check_gradients", lambda *_: None)


def backward_scaled(patch) -> None:
    real = autograd.backward

    def scaled(dy, h, b, segments, scale, arena, column, **others):
        dh = real(dy, h, b, segments, scale, arena, column, **others)
        arena[:, column : column + b[0].numel()] *= 1.01
        return dh

    patch.setattr(autograd, "backward", scaled)


def probe_leaves_nothing_out(patch) -> None:
    real = sensitivity.moves
    patch.setattr(sensitivity, "moves", lambda sums, batch, *rest: real(lambda _: sums(batch), batch, *rest))


def audit_guesses_by_a_coin(patch) -> None:
    real, rng = sample_canaries.guess, np.random.default_rng(0)
    patch.setattr(
        sample_canaries, "guess", lambda kind, sees, scores, *rest: real(kind, sees, rng.random(len(scores)), *rest)
    )


def audit_ignores_delta(patch) -> None:
    real = bounds.one_run_p_value
    patch.setattr(bounds, "one_run_p_value", lambda m, r, v, epsilon, delta: real(m, r, v, epsilon, 0.0))


def statement_gives_the_smallest_epsilon(patch) -> None:
    patch.setattr(statement, "max", min, raising=False)


def epsilon_is_rounded_to_the_nearest(patch) -> None:
    patch.setattr(statement, "rounded_up", lambda value, digits=4: float(f"{value:.{digits}g}"))


def dropout_is_left_to_the_generator(patch) -> None:
    patch.setattr(gradients, "drops_out", lambda model, adapters: False)


def probe_forgives_everything(patch) -> None:
    patch.setattr(sensitivity, "limit_of", lambda model, device: 1e9)


def prior_is_amplified(patch) -> None:
    """What was spent by shuffled batches counts as if they had been Poisson samples."""
    real = prior.spent_from
    patch.setattr(prior, "spent_from", lambda values: real(values)._replace(sampling="poisson"))


def prior_is_left_out(patch) -> None:
    patch.setattr(PrivacyLedger, "history", property(lambda self: (*self.others, self.steps(self.steps_taken))))


def prior_of_a_simulation_counts(patch) -> None:
    real = prior._of_one_run
    patch.setattr(prior, "_of_one_run", lambda path, is_secure: real(path, False))


def ledgers_are_not_locked(patch) -> None:
    """Here, and in the processes that tests start."""
    for module in (ledger_files, charge_log):
        patch.setattr(module, "locked", nullcontext)
    real = subprocess.Popen

    def unlocked(command, **options):
        if command[1:2] == ["-c"]:
            command = [command[0], "-c", _UNLOCKED + command[2], *command[3:]]
        return real(command, **options)

    patch.setattr(subprocess, "Popen", unlocked)


_UNLOCKED = """
from contextlib import nullcontext
from ffalora.privacy import charge_log, ledger_files
ledger_files.locked = charge_log.locked = nullcontext
"""


def charges_forget_what_others_charged(patch) -> None:
    patch.setattr(ledger_files, "charge_file", lambda ledger, path: ledger.save(path))


def edited_ledgers_are_believed(patch) -> None:
    patch.setattr(sealed, "digest_of", lambda values: "")


def edited_charges_are_believed(patch) -> None:
    patch.setattr(charge_log.ChargeLog, "_sealed", lambda self, record: "")


def runs_of_other_folders_are_not_counted(patch) -> None:
    patch.setattr(data_ledger.DataLedger, "look_up", lambda self, ledgers: None)


def a_site_takes_what_the_server_asks_for(patch) -> None:
    patch.setattr(SitePolicy, "check_run", lambda self, config: None)


def a_site_spends_what_the_server_asks_for(patch) -> None:
    patch.setattr(SitePolicy, "check_ledger", lambda self, ledger: None)


def a_site_trains_on_whatever_is_named(patch) -> None:
    patch.setattr(SitePolicy, "allowed_data", lambda self, data: data)


def pages_call_simulations_protected(patch) -> None:
    real = page.describe_run
    patch.setattr(
        page, "describe_run", lambda config: real(config | {"privacy": config["privacy"] | {"noise": "secure"}})
    )


def samples_of_a_user_are_clipped_apart(patch) -> None:
    patch.setattr(TrainingSetup, "keeps_samples_apart", property(lambda self: self.privacy.at_clients))


def views_are_clipped_one_by_one(patch) -> None:
    real = step_module.segment_gradients

    def apart(*arguments, rows, views, **options):
        found = real(*arguments, **options | {"rows": np.repeat(rows, views), "together": None})

        def clip_into_(*limits):
            return found.clip_into_(*limits).view(-1, views).amax(1)

        return SimpleNamespace(losses=found.losses.view(-1, views).mean(1), clip_into_=clip_into_)

    patch.setattr(step_module, "segment_gradients", apart)


def users_are_cut_between_physical_batches(patch) -> None:
    patch.setattr(
        step_module,
        "grouped_batches",
        lambda lengths, groups, budget, most, packed: physical_batches(lengths, budget, most),
    )


def samples_of_a_user_are_not_limited(patch) -> None:
    """Neither in a step, nor in a run."""
    real = drawn.records_of
    patch.setattr(drawn, "records_of", lambda users, owner, most, some: real(users, owner, len(owner), some))
    patch.setattr(whole_users, "bounded_records", lambda users, starts, most, seed: np.arange(len(starts) - 1))
    patch.setattr(admission, "_check_users", lambda *_: None)


def rows_are_drawn_in_place_of_users(patch) -> None:
    """Each row by itself, at the rate of users."""

    def sample(self, participant):
        n, rate = len(participant.samples), participant.ledger.sample_rate
        return participant.samples[self.draw(participant.client_id, participant.steps_taken, n, rate)]

    patch.setattr(TrainingSetup, "sample", sample)


def groups_are_counted_as_one_sample(patch) -> None:
    real = accountants.Gaussians
    patch.setattr(accountants, "Gaussians", lambda sigma, rate, steps, group, *kind: real(sigma, rate, steps, 1, *kind))


def users_may_be_at_several_clients(patch) -> None:
    patch.setattr(whole_users, "_check_apart", lambda *_: None)


def further_owners_are_forgotten(patch) -> None:
    real = whole_users.bounded_records

    def of_first_owners(users, starts, *rest):
        return real(users[starts[:-1]], np.arange(len(starts)), *rest)

    patch.setattr(whole_users, "bounded_records", of_first_owners)


def a_run_is_held_against_the_worst_baseline(patch) -> None:
    patch.setattr(baselines, "max", min, raising=False)


def normals_of_a_wrong_column(patch) -> None:
    real = CorrelatedNoise.__init__

    def made(self, *arguments):
        real(self, *arguments)
        self._weights = self._weights.roll(1, dims=1)

    patch.setattr(CorrelatedNoise, "__init__", made)


def buffers_are_used_by_several_clients(patch) -> None:
    real, made = CorrelatedNoise.begin.__func__, {}

    def begin(cls, correlation, width, *rest):
        noise = real(cls, correlation, width, *rest)
        noise.buffers = made.setdefault((correlation, width), noise.buffers)
        return noise

    patch.setattr(CorrelatedNoise, "begin", classmethod(begin))


def records_take_part_more_often_than_planned(patch) -> None:
    real = setup.records_of_turn
    patch.setattr(setup, "records_of_turn", lambda *given: real(*given[:-1], max(1, given[-1] - 1)))


def sensitivity_of_one_participation(patch) -> None:
    column = property(lambda self: float(np.linalg.norm(self.coefficients())))
    patch.setattr(Correlation, "sensitivity", column)


def steps_of_an_unfinished_release_are_free(patch) -> None:
    real = PrivacyLedger.steps
    patch.setattr(PrivacyLedger, "steps", lambda self, count: real(self, count // self.period * self.period))


def noise_begins_anew_for_nothing(patch) -> None:
    patch.setattr(PrivacyLedger, "begin_anew", lambda self: None)


def noise_of_those_who_drop_out_counts(patch) -> None:
    patch.setattr(NoiseShares, "sufficient", property(lambda self: self.clients))


def a_rounded_update_may_be_longer(patch) -> None:
    real = NoiseShares._rounded

    def rounded(self, *arguments):
        with pytest.MonkeyPatch.context() as inner:
            inner.setitem(self.__dict__, "l2_squared", 10 * self.l2_squared)
            return real(self, *arguments)

    patch.setattr(NoiseShares, "_rounded", rounded)


def clients_bring_the_same_noise(patch) -> None:
    real = NoiseShares.share
    patch.setattr(
        NoiseShares, "share", lambda self, clipped, source, client, step: real(self, clipped, source, 0, step)
    )


def too_few_shares_are_shown(patch) -> None:
    patch.setattr(NoiseShares, "least", 0)


def shares_are_counted_as_gaussian_noise(patch) -> None:
    real = accountants.Gaussians
    patch.setattr(accountants, "Gaussians", lambda sigma, rate, steps, group, discrete: real(sigma, rate, steps, group))


MUTANTS = {
    mutant.__name__.replace("_", " "): mutant
    for mutant in (
        noise_halved, clipping_removed, updates_are_not_clipped, head_without_noise, accounting_reset_each_round,
        poisson_replaced_by_a_fixed_batch, steps_are_not_charged, empty_draws_add_no_noise,
        dropout_masks_by_position, dropout_keys_by_position, dropout_masks_fresh_in_each_pass,
        dropout_masks_repeat_every_step, secure_dropout_from_a_public_seed, clipping_norm_doubled,
        rows_counted_twice, collator_mixes_neighbours, gradients_are_not_compared, backward_scaled,
        probe_leaves_nothing_out, audit_guesses_by_a_coin, audit_ignores_delta, statement_gives_the_smallest_epsilon,
        epsilon_is_rounded_to_the_nearest, dropout_is_left_to_the_generator, probe_forgives_everything,
        prior_is_amplified, prior_is_left_out, prior_of_a_simulation_counts, ledgers_are_not_locked,
        charges_forget_what_others_charged, edited_ledgers_are_believed, edited_charges_are_believed,
        runs_of_other_folders_are_not_counted, a_site_takes_what_the_server_asks_for,
        a_site_spends_what_the_server_asks_for, a_site_trains_on_whatever_is_named, pages_call_simulations_protected,
        a_run_is_held_against_the_worst_baseline, samples_of_a_user_are_clipped_apart,
        users_are_cut_between_physical_batches, samples_of_a_user_are_not_limited, rows_are_drawn_in_place_of_users,
        groups_are_counted_as_one_sample, users_may_be_at_several_clients, further_owners_are_forgotten,
        normals_of_a_wrong_column, buffers_are_used_by_several_clients, records_take_part_more_often_than_planned,
        sensitivity_of_one_participation, steps_of_an_unfinished_release_are_free, noise_begins_anew_for_nothing,
        noise_of_those_who_drop_out_counts, a_rounded_update_may_be_longer, clients_bring_the_same_noise,
        too_few_shares_are_shown, shares_are_counted_as_gaussian_noise, views_are_clipped_one_by_one,
    )
}  # fmt: skip


def pytest_configure() -> None:
    """Breaks the package for the whole session, when loaded as a plugin with a mutant's name in the environment."""
    if name := os.environ.get("FFALORA_MUTANT"):
        MUTANTS[name](pytest.MonkeyPatch())
