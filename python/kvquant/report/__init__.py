"""Figures, tables and one HTML page of a folder of results: `kvquant report DIR`.

Needs matplotlib (`pip install kvquant[report]`). docs/sweeps.md says what is drawn from what.
"""

from kvquant.report.load import Results, load_results
from kvquant.report.pareto import ParetoRow, pareto_front
from kvquant.report.report import write_report

__all__ = ["ParetoRow", "Results", "load_results", "pareto_front", "write_report"]
