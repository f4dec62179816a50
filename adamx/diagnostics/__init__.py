"""STATE -> NUMBERS, TEXT, PLOTS: eyes on a run."""
