"""Run folders in, one self-contained page out: table, plots, privacy statement, how to do it again."""

from .answers import what_was_learned
from .baselines import verdicts
from .page import Finding, Page, render, run_page, write_report
from .runs import ReportError, Run, read_runs
from .tables import Table, plain_text, table_text

__all__ = [
    "Finding",
    "Page",
    "ReportError",
    "Run",
    "Table",
    "plain_text",
    "read_runs",
    "render",
    "run_page",
    "table_text",
    "verdicts",
    "what_was_learned",
    "write_report",
]
