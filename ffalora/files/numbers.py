"""Numbers on the way to a file or a page: JSON that every reader accepts, CSV, upper bounds that stay upper bounds."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

_WORDS = {"infinity": math.inf, "-infinity": -math.inf, "nan": math.nan}


def plain(value: Any) -> Any:
    """The value with its infinite numbers as 'infinity' and '-infinity', and NaN as 'nan'; tuples become lists."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    return value


def restored(value: Any) -> Any:
    """What :func:`plain` was given, where no text in it is one of its words."""
    if isinstance(value, dict):
        return {key: restored(each) for key, each in value.items()}
    if isinstance(value, list):
        return [restored(each) for each in value]
    return _WORDS.get(value, value) if isinstance(value, str) else value


def to_json(value: Any, indent: int | None = None, default: Any = None) -> str:
    """Valid JSON (RFC 8259), with non-finite numbers as :func:`plain` writes them."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, default=default, allow_nan=False)


def rounded_up(value: float, digits: int = 4, decimals: int | None = None) -> float:
    """The smallest number of ``digits`` significant decimal digits, or of so many ``decimals`` after the point, that is
    not below ``value``: what an upper bound such as ε may be printed as. Infinity and NaN stay what they are.
    """
    if not math.isfinite(value):
        return value
    exact = Decimal(repr(float(value)))
    if decimals is not None:
        return float(exact.quantize(Decimal(1).scaleb(-decimals), context=Context(prec=400, rounding=ROUND_CEILING)))
    return float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(exact))


def decimals_up(value: float, decimals: int = 4) -> str:
    """As ``f"{value:.4f}"``, but never below ``value``."""
    return f"{rounded_up(value, decimals=decimals):.{decimals}f}" if math.isfinite(value) else f"{value}"


def rows_to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV, with every column that any of them has, in the order in which they first appear."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
