"""The tables of docs/utility.md, from benchmarks/data/utility.csv and utility_ablation.csv alone.

    python benchmarks/utility_table.py [--write]

Intervals are 95%, of the bootstrap over seeds and test samples, both at once, paired: methods share clients and samples
by seed. Over the sets that nobody had read before the rules stood, fine-tuning is held against the best of what needs
none of it (the largest mean on the test split itself, which favours the other side) and against two libraries used
together; p-values are one-sided shares of the bootstrap, by Holm's method over the sets. ``--write`` puts the tables
between their marks in the page.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence

import numpy as np
from utility import CSV, DATA, ROOT, bits_of, rows_of

PAGE, OPTIONS_CSV = ROOT / "docs" / "utility.md", ROOT / "benchmarks" / "data" / "utility_ablation.csv"
DRAWS, CHUNK, MARGIN = 5_000, 500, 0.01
#: By data set, ε and method: what each seed gets right, float64 ``[samples]``.
Found = dict[tuple[str, str, str], dict[str, np.ndarray]]
#: What needs no fine-tuning and keeps privacy.
TRIVIAL = ("texts", "means", "probe", "last texts", "last means", "last probe")
UNREAD = ("product-reviews", "editorials", "rotten-tomatoes", "privacy-policy", "reuters-r8", "boolq", "20-newsgroups")
SMALL = [name for name, one in DATA.items() if one.samples is not None]


def found_in(rows: Sequence[dict[str, str]]) -> Found:
    """The rows of the CSV by what they are of."""
    found: Found = {}
    for row in rows:
        own = found.setdefault((row["data"], row["epsilon"], row["method"]), {})
        own[row["seed"]] = bits_of(row).astype(float)
    return found


def differences(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> np.ndarray | None:
    """``[seeds, samples]``, over the seeds that both have; None without any."""
    both = sorted(set(first) & set(second))
    return np.stack([first[seed] - second[seed] for seed in both]) if both else None


def resampled(difference: np.ndarray) -> np.ndarray:
    """Means of ``[seeds, samples]`` with seeds and samples drawn anew, ``[DRAWS]``."""
    rng, (seeds, samples) = np.random.default_rng(0), difference.shape
    means = []
    for _ in range(DRAWS // CHUNK):
        by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), CHUNK) @ difference / seeds
        by_sample = rng.multinomial(samples, np.full(samples, 1 / samples), CHUNK)
        means.append((by_seed * by_sample).sum(1) / samples)
    return np.concatenate(means)


def interval(means: np.ndarray) -> str:
    """The 95% interval of resampled means."""
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{low:+.4f} to {high:+.4f}"


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several hypotheses, adjusted by Holm's method, in their order."""
    order, adjusted, largest = np.argsort(p), [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[int(i)] = largest
    return adjusted


def every_method(found: Found, of: Sequence[str]) -> Iterator[str]:
    """One line a set ``of`` these, ε and method: mean, spread over seeds, how far ``ffa`` is above it."""
    yield "| data | ε | method | seeds | accuracy | sd over seeds | ffa is above it by (95% interval) |"
    yield "|---|---|---|---|---|---|---|"
    chosen = [key for key in found if key[0] in of]
    for data, epsilon, method in sorted(chosen, key=lambda key: (of.index(key[0]), -float(key[1]), key[2])):
        own = found[data, epsilon, method]
        accuracy = np.array([right.mean() for right in own.values()])
        spread = f"{accuracy.std(ddof=1):.4f}" if len(own) > 1 else ""
        ahead, difference = "", differences(found.get((data, epsilon, "ffa"), {}), own)
        if difference is not None and method != "ffa":
            seeds = f"{len(difference)} seed{'s' * (len(difference) > 1)}"
            ahead = f"{difference.mean():+.4f} ({interval(resampled(difference))}; {seeds})"
        yield f"| {data} | {epsilon} | {method} | {len(own)} | {accuracy.mean():.4f} | {spread} | {ahead} |"


def best_trivial(found: Found, data: str, epsilon: str) -> str | None:
    """The method of ``TRIVIAL`` with the largest mean."""
    there = [method for method in TRIVIAL if (data, epsilon, method) in found]
    return max(there, key=lambda m: np.mean([r.mean() for r in found[data, epsilon, m].values()]), default=None)


def over_sets(found: Found, rival: str | None, epsilon: str = "3") -> Iterator[str]:
    """One line an unread set, ffa beside ``rival`` (None: the best trivial one), and the average over the sets."""
    yield "| data | beside | seeds | difference (95% interval) | p: not worse by a point | p: better | by Holm |"
    yield "|---|---|---|---|---|---|---|"
    lines, means, worse, better = [], [], [], []
    for data in UNREAD:
        method = rival or best_trivial(found, data, epsilon)
        difference = differences(found.get((data, epsilon, "ffa"), {}), found.get((data, epsilon, method or ""), {}))
        if difference is None:
            continue
        drawn = resampled(difference)
        means.append(drawn)
        worse.append(float((np.sum(drawn <= -MARGIN) + 1) / (DRAWS + 1)))
        better.append(float((np.sum(drawn <= 0) + 1) / (DRAWS + 1)))
        lines.append((data, method, len(difference), f"{difference.mean():+.4f} ({interval(drawn)})"))
    for line, p, q, adjusted, adjusted_better in zip(lines, worse, better, holm(worse), holm(better), strict=True):
        yield f"| {' | '.join(map(str, line))} | {p:.3f} | {q:.3f} | {adjusted:.3f}, {adjusted_better:.3f} |"
    if means:
        average = np.mean(means, axis=0)
        yield f"| average of {len(means)} sets | | | {average.mean():+.4f} ({interval(average)}) | | | |"


def options(found: Found) -> Iterator[str]:
    """One line a result of ``utility_ablation.py``: its accuracy, and how far it is above ``ffa`` on the same seeds."""
    yield "| what | seeds | accuracy | above ffa by (95% interval) |"
    yield "|---|---|---|---|"
    own = {method: by_seed for (_, _, method), by_seed in found.items()}
    for method, by_seed in own.items():
        ahead, difference = "", differences(by_seed, own.get("ffa", {}))
        if difference is not None and method != "ffa":
            ahead = f"{difference.mean():+.4f} ({interval(resampled(difference))})"
        yield f"| {method} | {len(by_seed)} | {np.mean([r.mean() for r in by_seed.values()]):.4f} | {ahead} |"


def main() -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put them into docs/utility.md")
    asked = parser.parse_args()
    found = found_in(rows_of(CSV))
    tables = {
        "demo": every_method(found, ["movie-reviews"]),
        "small": every_method(found, SMALL),
        "trivial": over_sets(found, None),
        "adamw": over_sets(found, "adamw"),
        "unread": every_method(found, UNREAD),
        "options": options(found_in(rows_of(OPTIONS_CSV))),
    }
    page = PAGE.read_text()
    for name, lines in tables.items():
        text = "\n".join(lines)
        print(f"{name}\n{text}\n")
        mark = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        page = re.sub(mark, lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL)
    if asked.write:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
