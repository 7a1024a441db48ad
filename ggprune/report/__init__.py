"""The report: one self-contained HTML page, the same numbers as JSON, and a terminal summary."""

from ggprune.report.data import ReportInput, build
from ggprune.report.page import render, write_report
from ggprune.report.summary import example_lines, summary_lines

__all__ = ["ReportInput", "build", "example_lines", "render", "summary_lines", "write_report"]
