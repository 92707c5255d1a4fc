"""What a federation of remote clients may say about its privacy: what their own ledgers told the server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...config import Config
from ...files.numbers import rounded_up

_CAVEATS = (
    "Each ε is what the client's own ledger says; the server cannot check it.",
    "A client that failed in mid-round has paid for steps of which the server was never told: where one failed, the "
    "headline is what the ledgers allow in all.",
    "ε excludes the choice of hyper-parameters, and what clients that never answered have spent.",
)
_OF_UNIT = {
    "sample": "The unit is one sample: a person with several samples is protected less than ε says.",
    "client": "Sites bring the noise in shares: each ε holds while no more of a round's clients drop out or tell the "
    "server their noise than the configuration says, and the server keeps to the protocol of secure aggregation.",
    "user": "The unit is one user at one site, by the name in its data: a user of several sites is protected less, as "
    "their ε compose.",
}


def federation_statement(config: Config, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The statement of a run over all clients and all rounds, as plain values.

    Args:
        config: the federation's. rows: of ``metrics.jsonl``, all rounds.

    Returns:
        ``max_epsilon`` is infinite without privacy, and None where a client that answered does not report its ε: these
        are listed as ``not_reported``, and ``max_reported_epsilon`` is of the others.
    """
    privacy = config.privacy
    if privacy.unit == "none":
        caveats = ["No noise was added to what clients send: their updates can reveal their records."]
        return {"private": False, "unit": "none", "max_epsilon": math.inf, "clients": [], "caveats": caveats}
    last = rows[-1] if rows else {}
    spent, final = last.get("epsilon_per_client", {}), last.get("final_epsilon_per_client", {})
    some_failed = any(row["failed"] for row in rows)
    reported = [final.get(name, epsilon) if some_failed else epsilon for name, epsilon in spent.items()]
    silent = [client for client in last.get("answered", ()) if str(client) not in spent]
    told = max(reported, default=None)
    most = None if silent else told
    caveats = [*_CAVEATS, *(said for unit, said in _OF_UNIT.items() if unit == privacy.unit)]
    if privacy.noise == "seeded":
        caveats.append(
            "The noise comes from a seed: who has the seed or the run folder can subtract it, and nothing is protected."
        )
    return {
        "private": privacy.noise == "secure" and most is not None and math.isfinite(most),
        "unit": privacy.unit,
        "adjacency": "one client's update set to zero"
        if privacy.unit == "client"
        else f"one {privacy.unit} added, removed or left empty, at one client",
        "delta": privacy.delta,
        "noise": privacy.noise,
        "clipping": f"{privacy.clipping}, norm {privacy.max_grad_norm:g}",
        "max_epsilon": most,
        "max_reported_epsilon": told,
        "not_reported": silent,
        "clients": [{"client": int(name), "epsilon": spent[name], "final_epsilon": final.get(name)} for name in spent],
        "caveats": caveats,
    }


def stated_epsilon(statement: Mapping[str, Any]) -> float | None:
    """ε of the statement, rounded up; None without privacy, and where clients that answered do not report theirs."""
    most = statement["max_epsilon"]
    return None if most is None or statement["unit"] == "none" else rounded_up(most)


def statement_text(statement: Mapping[str, Any]) -> str:
    """The statement as a page for people; every ε is rounded up."""
    listed = [f"  - {caveat}" for caveat in statement["caveats"]]
    if statement["unit"] == "none":
        return "\n".join(["This run is NOT private: ε is infinite.", *listed]) + "\n"
    told, silent = statement["max_reported_epsilon"], ", ".join(map(str, statement["not_reported"]))
    if told is None:
        head = "Privacy of this federation: no client's policy reports its ε; each client's own ledger states it"
    else:
        head = f"Privacy of this federation: ε = {rounded_up(told):.4g} at most, at δ = {statement['delta']:g}"
    if silent and told is not None:
        head += (
            f", of the {len(statement['clients'])} clients that report it; of others only their own ledgers state it: "
        )
        head += silent
    if statement["noise"] == "seeded":
        head = f"A simulation, in which nothing is protected. {head}, with secure noise in its place"
    lines = [
        head,
        f"  unit        {statement['unit']}",
        f"  adjacency   {statement['adjacency']}",
        f"  clipping    {statement['clipping']}",
        f"  noise       {statement['noise']}",
        "",
        "  client    ε spent    ε when done",
    ]
    for one in statement["clients"]:
        final = "-" if one["final_epsilon"] is None else f"{rounded_up(one['final_epsilon']):.4g}"
        lines.append(f"  {one['client']:>6}    {rounded_up(one['epsilon']):>7.4g}    {final:>11}")
    return "\n".join([*lines, "", "  Not covered:", *listed]) + "\n"
