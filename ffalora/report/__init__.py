"""Run folders in, one self-contained page out: table, plots, privacy statement, how to do it again."""

from .page import Page, render, run_page, write_report
from .runs import ReportError, Run, read_runs
from .tables import Table, table_text

__all__ = ["Page", "ReportError", "Run", "Table", "read_runs", "render", "run_page", "table_text", "write_report"]
