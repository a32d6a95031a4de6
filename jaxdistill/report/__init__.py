"""What a run leaves for people: the table in the terminal and report.html."""

from jaxdistill.report.html import write_report
from jaxdistill.report.inference import print_inference
from jaxdistill.report.table import print_table, summary_rows

__all__ = ["print_inference", "print_table", "summary_rows", "write_report"]
