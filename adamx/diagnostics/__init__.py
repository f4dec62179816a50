"""STATE -> NUMBERS, TEXT, PLOTS: eyes on a run."""

from adamx.diagnostics._sharpness import Sharpness as Sharpness
from adamx.diagnostics._sharpness import sharpness as sharpness
