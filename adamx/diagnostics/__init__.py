"""STATE -> NUMBERS, TEXT, PLOTS: eyes on a run."""

from adamx.diagnostics._diagnose import DiagnoseState as DiagnoseState
from adamx.diagnostics._diagnose import diagnose as diagnose
from adamx.diagnostics._health import Finding as Finding
from adamx.diagnostics._health import health as health
from adamx.diagnostics._history import BrokenLine as BrokenLine
from adamx.diagnostics._history import History as History
from adamx.diagnostics._record import Record as Record
from adamx.diagnostics._relate import Relation as Relation
from adamx.diagnostics._relate import Relations as Relations
from adamx.diagnostics._report import report as report
from adamx.diagnostics._report_text import print_report as print_report
from adamx.diagnostics._sharpness import Sharpness as Sharpness
from adamx.diagnostics._sharpness import sharpness as sharpness
