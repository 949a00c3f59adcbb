"""Result tables and reports of a run."""

from ltlearn.reporting.classes import ClassTable
from ltlearn.reporting.markdown import render_report_md
from ltlearn.reporting.table import PROTOCOL_TEXTS, ResultRow, ResultTable

__all__ = ["ClassTable", "PROTOCOL_TEXTS", "ResultRow", "ResultTable", "render_report_md"]
