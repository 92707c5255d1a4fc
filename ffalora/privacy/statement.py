"""What a run says about its privacy: everything a reader needs to judge its ε, and what the ε leaves out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..files.numbers import plain, rounded_up
from .accountants import accountant_of, epsilon_of
from .accounting import PrivacyLedger
from .spent import Spent

NOISE_MODES = ("seeded", "secure")
PUBLIC = (
    "the sampling rate, and the expected batch size by which noisy sums are divided",
    "the model, the frozen factor, the names of the classes, the configuration and the number of rounds and steps",
)
_PUBLIC_SIZE = (
    "the number of records of each client, on which rate and noise depend",
    "aggregation weights where they depend on the number of records",
)
_SECRET_SIZE = (
    "a bound on the number of records, on which rate and noise depend; the number itself stays secret where the rows "
    "that are evaluated are not a share of the same file: how many these are, and every score of them, tells it",
)
_PUBLIC_OWNERS = ("who owns how many records, and which of them are kept where a user has more than are used",)
_ADJACENCIES = {
    "zero-out": "{} (its contribution becomes zero; how many there are is public)",
    "add/remove": "{} (it is there or not; how many there are stays secret)",
    "replace": "{} by another",
}
_MECHANISMS = {
    "sample": "DP-SGD: per-sample gradients clipped, summed, Gaussian noise, divided by the expected batch",
    "user": "DP-SGD by user: users drawn, the sum of a user's gradients clipped, summed, Gaussian noise, divided by "
    "the expected number of users",
    "by-server": "distributed DP-FedAvg: each client clips its update, turns it, rounds it and adds a share of Skellam "
    "noise; shares summed modulo a power of two by secure aggregation, divided by the cohort",
    "client": "DP-FedAvg: clients' updates clipped, summed, noised at the server, divided by the expected cohort",
}
_OF_CLIENTS = "A client that drops out has spent the steps it took; no credit is taken for the sampling of clients."
_OF_ROUNDS = {
    "sample": _OF_CLIENTS,
    "user": _OF_CLIENTS,
    "client": "Every round is charged, whether or not a client was drawn; the server is trusted to clip and add noise.",
    "by-server": "Every round is charged, whether or not a client was drawn. The server is trusted to follow the "
    "protocol of secure aggregation, not with anybody's update; clients are trusted to clip and to bring their noise.",
}


@dataclass(frozen=True)
class ClientPrivacy:
    """One ledger's line. ``epsilon`` is spent so far, earlier and other runs on its records included,
    ``own_epsilon`` by this run alone, ``final_epsilon`` when every allowed step is taken. ``history`` is what
    ``epsilon`` was computed from. ``dataset_size`` is a public bound where the size is secret.
    """

    client_id: int
    name: str
    dataset_size: int
    sample_rate: float
    noise_multiplier: float
    steps_taken: int
    max_steps: int
    epsilon: float
    own_epsilon: float
    final_epsilon: float
    target_epsilon: float | None
    history: tuple[Spent, ...]


@dataclass(frozen=True)
class PrivacyStatement:
    """Unit, adjacency, sampling, mechanism, accountant, δ, ε of each client and the largest, and what ε leaves out.

    ``simulation`` is true where the noise came from a seed: then ε is what secure noise would have spent.
    """

    private: bool
    simulation: bool
    unit: str
    adjacency: str
    sampling: str
    mechanism: str
    accountant: str
    delta: float
    noise: str
    clipping: str
    clients: tuple[ClientPrivacy, ...]
    max_epsilon: float
    public: tuple[str, ...]
    caveats: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; an infinite ε is the string 'infinity'."""
        return plain(asdict(self))

    def to_text(self) -> str:
        """A page for people; every ε is rounded up."""
        if not self.private:
            return "\n".join(["This run is NOT private: ε is infinite.", *(f"  - {c}" for c in self.caveats)]) + "\n"
        lines = [
            self._headline(),
            f"  unit        {self.unit}",
            f"  adjacency   {self.adjacency}",
            f"  sampling    {self.sampling}",
            f"  mechanism   {self.mechanism}",
            f"  clipping    {self.clipping}",
            f"  noise       {self.noise}",
            f"  accountant  {self.accountant}",
            "",
        ]
        width = max(6, *(len(c.name) for c in self.clients))
        lines.append(
            f"  {'client':<{width}}    records  sample rate        σ    steps taken / allowed    ε of this run"
            "    ε spent    ε when done    target"
        )
        for c in self.clients:
            target = "-" if c.target_epsilon is None else f"{c.target_epsilon:.4g}"
            steps = f"{c.steps_taken} / {c.max_steps}"
            own, spent, final = rounded_up(c.own_epsilon), rounded_up(c.epsilon), rounded_up(c.final_epsilon)
            lines.append(
                f"  {c.name:<{width}} {c.dataset_size:>10}  {c.sample_rate:>11.5f}  {c.noise_multiplier:>7.4f}"
                f"    {steps:>21}    {own:>13.4g}    {spent:>7.4g}    {final:>11.4g}    {target:>6}"
            )
        lines += ["", "  Treated as public:", *(f"  - {p}" for p in self.public)]
        lines += ["  Not covered:", *(f"  - {c}" for c in self.caveats)]
        return "\n".join(lines) + "\n"

    def _headline(self) -> str:
        most = f"ε = {rounded_up(self.max_epsilon):.4g} at most, at δ = {self.delta:g}"
        if self.simulation:
            return (
                f"SIMULATION, nothing is protected: the noise comes from a seed. With secure noise it would be {most}"
            )
        return f"Privacy of this run: {most}, over all clients and rounds"

    @classmethod
    def from_ledgers(
        cls,
        ledgers: Sequence[PrivacyLedger],
        noise: str,
        max_grad_norm: float,
        clipping: str = "flat",
        caveats: Sequence[str] = (),
    ) -> PrivacyStatement:
        """The statement of a private run.

        Args:
            ledgers: one for each client, or the population's; all of one unit, sampling and δ.
            noise: 'seeded' or 'secure'.
            max_grad_norm: C.
            clipping: name of the clipping policy.
            caveats: what the run adds to the standing ones.

        Raises:
            ValueError: no ledger, or ledgers that differ in unit, sampling, δ or accountant.
        """
        if noise not in NOISE_MODES:
            raise ValueError(f"noise must be one of {NOISE_MODES}, got {noise!r}")
        if not ledgers:
            raise ValueError(
                "ledgers is empty: a private run has one for each client; use PrivacyStatement.not_private()"
            )
        for term in ("unit", "group", "trials", "sampling", "delta", "accountant", "size_is_public"):
            values = {getattr(ledger, term) for ledger in ledgers}
            if len(values) > 1:
                raise ValueError(f"ledgers differ in {term}: {sorted(values)}; write one statement for each")
        first = ledgers[0]
        clients = tuple(_line(ledger) for ledger in ledgers)
        max_epsilon = max(c.epsilon for c in clients)
        return cls(
            private=math.isfinite(max_epsilon),
            simulation=noise == "seeded",
            unit=first.unit,
            adjacency=_describe_adjacency(ledgers),
            sampling=_describe_sampling(first) if first.correlation is None else first.correlation.describe_sampling(),
            mechanism=_describe_mechanism(first),
            accountant=_describe_accountant(ledgers),
            delta=first.delta,
            noise=_describe_noise(noise, first),
            clipping=f"{clipping}, norm {'at first' if clipping == 'adaptive' else 'at most'} {max_grad_norm:g}",
            clients=clients,
            max_epsilon=max_epsilon,
            public=(
                *(_PUBLIC_SIZE if first.size_is_public else _SECRET_SIZE),
                *PUBLIC,
                *(_PUBLIC_OWNERS if first.unit == "user" else ()),
            ),
            caveats=(*_caveats(ledgers, noise), *caveats),
        )

    @classmethod
    def not_private(cls, *caveats: str) -> PrivacyStatement:
        """The statement of a run without privacy: it says so."""
        said = ("No noise was added to what clients send: their updates can reveal their records.", *caveats)
        return cls(
            private=False,
            simulation=False,
            unit="none",
            adjacency="none",
            sampling="none",
            mechanism="none",
            accountant="none",
            delta=0.0,
            noise="none",
            clipping="none",
            clients=(),
            max_epsilon=math.inf,
            public=(),
            caveats=said,
        )


def _line(ledger: PrivacyLedger) -> ClientPrivacy:
    own = [ledger.steps(ledger.steps_taken)]
    return ClientPrivacy(
        client_id=ledger.client_id,
        name=ledger.label or (str(ledger.client_id) if ledger.unit != "client" else "population"),
        dataset_size=ledger.dataset_size,
        sample_rate=ledger.sample_rate,
        noise_multiplier=ledger.noise_multiplier,
        steps_taken=ledger.steps_taken,
        max_steps=ledger.steps_allowed,
        epsilon=ledger.epsilon(),
        own_epsilon=epsilon_of(own, ledger.delta, ledger.accountant),
        final_epsilon=ledger.final_epsilon(),
        target_epsilon=ledger.target_epsilon,
        history=ledger.history,
    )


def _describe_accountant(ledgers: Sequence[PrivacyLedger]) -> str:
    """The accountant of all their ε; the most general of them where they differ."""
    kinds = {accountant_of(ledger.history, ledger.accountant, ledger.delta) for ledger in ledgers}
    return "rdp" if "rdp" in kinds else kinds.pop()


def _describe_adjacency(ledgers: Sequence[PrivacyLedger]) -> str:
    kinds = sorted({ledger.adjacency for ledger in ledgers})
    kind = kinds[0].partition(" ")[0] if len(kinds) == 1 else "zero-out"
    return _ADJACENCIES[kind].format(f"{kind} one {ledgers[0].unit}")


def _describe_sampling(ledger: PrivacyLedger) -> str:
    if ledger.sampling == "poisson":
        return "Poisson: each record independently in each step, with amplification"
    if ledger.sampling == "by-server":
        return "by the server, which sees who takes part: no amplification, every round counts for everybody"
    return f"{ledger.sampling}: not Poisson, so no amplification; sensitivity 2C, composed over every step"


def _describe_mechanism(ledger: PrivacyLedger) -> str:
    if ledger.correlation is not None:
        return ledger.correlation.describe()
    said = _MECHANISMS["by-server" if ledger.sampling == "by-server" else ledger.drawn]
    if ledger.group > 1:
        said += f"; ε of groups of {ledger.group} samples"
    if ledger.trials > 1:
        said += f"; the best of a random number of such runs, {ledger.trials:g} on average, and ε is that of the choice"
    return said


def _describe_noise(noise: str, ledger: PrivacyLedger) -> str:
    if noise == "secure":
        how = "float-safe Gaussian" if ledger.correlation is None else "Gaussian, of earlier steps too, in float64"
        if ledger.sampling == "by-server":
            how = "whole numbers"
        return f"secure: cryptographic generator, key never written, {how}"
    return "seeded: for simulation only; whoever holds the run folder or the seed can subtract it"


def _caveats(ledgers: Sequence[PrivacyLedger], noise: str) -> tuple[str, ...]:
    said = [
        "ε excludes runs that no ledger of this data knows of: also those that chose hyper-parameters.",
        "Metrics computed on private data (losses, accuracies, norms, realised batch sizes) are not covered by ε.",
        _OF_ROUNDS["by-server" if ledgers[0].sampling == "by-server" else ledgers[0].unit],
    ]
    if ledgers[0].unit == "sample":
        said.append("The unit is one sample: a person with several samples is protected less than ε says.")
    if ledgers[0].unit == "user":
        said.append(
            "The unit is one user by the data's column: two names of one person are two users, and what others write "
            "about a user is not the user's."
        )
    if len(ledgers) > 1:
        said.append(
            f"A {ledgers[0].unit} that is at several clients is protected less: their ε compose. Where the ledger of "
            "the data set finds the same record at several, as it does in secure runs, ε counts that."
        )
    if noise == "seeded":
        said.append(
            "The noise comes from a seed: who has the seed or the run folder can subtract it, and nothing is protected."
        )
    if ledgers[0].correlation is not None:
        said.append(
            "Noise of different steps is correlated. ε is that of whole releases of many steps, from the first of them "
            "on; a run that is interrupted begins another, unless its noise comes from a seed."
        )
    if any(ledger.prior or ledger.others for ledger in ledgers):
        said.append("ε includes what other runs or clients spent on the same records, as far as their ledgers say.")
    large = [ledger for ledger in ledgers if 10 * ledger.delta * ledger.dataset_size > 1]
    if large:
        most = max(large, key=lambda ledger: ledger.dataset_size)
        said.append(
            f"δ = {most.delta:g} is large for {most.dataset_size} {most.drawn}s: a mechanism that publishes each "
            f"outright with probability δ would meet it, and expose {most.delta * most.dataset_size:.2g} of them on "
            f"average. Take δ below {0.1 / most.dataset_size:.2g}."
        )
    return tuple(said)
