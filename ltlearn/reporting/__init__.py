"""Result tables and reports of a run."""

from ltlearn.reporting.markdown import render_report_md
from ltlearn.reporting.table import PROTOCOLS, ResultRow, ResultTable

__all__ = ["PROTOCOLS", "ResultRow", "ResultTable", "render_report_md"]
