"""STATE -> NUMBERS, TEXT, PLOTS: eyes on a run."""

from adamx.diagnostics._diagnose import DiagnoseState as DiagnoseState
from adamx.diagnostics._diagnose import diagnose as diagnose
