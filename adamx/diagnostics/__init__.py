"""STATE -> NUMBERS, TEXT, PLOTS: eyes on a run."""

from adamx.diagnostics._range_test import LrRangeTest as LrRangeTest
from adamx.diagnostics._range_test import lr_range_test as lr_range_test
from adamx.diagnostics._sweep import LrSweep as LrSweep
from adamx.diagnostics._sweep import lr_sweep as lr_sweep
