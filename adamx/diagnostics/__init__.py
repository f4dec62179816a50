"""STATE -> NUMBERS, TEXT, PLOTS: eyes on a run."""

from adamx.diagnostics._diagnose import DiagnoseState as DiagnoseState
from adamx.diagnostics._diagnose import diagnose as diagnose
from adamx.diagnostics._health import Finding as Finding
from adamx.diagnostics._health import Findings as Findings
from adamx.diagnostics._health import health as health
from adamx.diagnostics._history import History as History
from adamx.diagnostics._lines import BrokenLine as BrokenLine
from adamx.diagnostics._range_test import LrRangeTest as LrRangeTest
from adamx.diagnostics._range_test import lr_range_test as lr_range_test
from adamx.diagnostics._record import Record as Record
from adamx.diagnostics._relate import Relation as Relation
from adamx.diagnostics._relate import Relations as Relations
from adamx.diagnostics._report import report as report
from adamx.diagnostics._report_text import print_report as print_report
from adamx.diagnostics._sharpness import Sharpness as Sharpness
from adamx.diagnostics._sharpness import sharpness as sharpness
from adamx.diagnostics._sweep import LrSweep as LrSweep
from adamx.diagnostics._sweep import lr_sweep as lr_sweep
