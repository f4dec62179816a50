"""TRANSFORMATION -> TRANSFORMATION: wrappers of any optimizer."""

from adamx.compose._cautious import CautiousState as CautiousState
from adamx.compose._cautious import cautious as cautious
from adamx.compose._precision import CompensatedState as CompensatedState
from adamx.compose._precision import MasterWeightsState as MasterWeightsState
from adamx.compose._precision import compensated as compensated
from adamx.compose._precision import master_weights as master_weights
