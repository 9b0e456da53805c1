"""Tables, pictures and pages from result rows and bin statistics."""

from vlcal.reports.cells import cells_of
from vlcal.reports.class_reliability import class_reliability
from vlcal.reports.classes import ClassRow, class_rows
from vlcal.reports.headline import headline
from vlcal.reports.histogram import confidence_histograms
from vlcal.reports.page import write_report
from vlcal.reports.reliability import reliability_diagram, reliability_pair, reliability_panels
from vlcal.reports.report import Report, read_report
from vlcal.reports.risk_coverage import risk_coverage
from vlcal.reports.rows import read_rows
from vlcal.reports.scatter import proximity_scatter
from vlcal.reports.sensitivity import sensitivity
from vlcal.reports.summary import Summary, summarize
from vlcal.reports.tables import Table, csv_text, latex, markdown, plain, result_table
from vlcal.reports.tradeoff import tradeoff

__all__ = [
    "ClassRow",
    "Report",
    "Summary",
    "Table",
    "cells_of",
    "class_reliability",
    "class_rows",
    "confidence_histograms",
    "csv_text",
    "headline",
    "latex",
    "markdown",
    "plain",
    "proximity_scatter",
    "read_report",
    "read_rows",
    "reliability_diagram",
    "reliability_pair",
    "reliability_panels",
    "result_table",
    "risk_coverage",
    "sensitivity",
    "summarize",
    "tradeoff",
    "write_report",
]
