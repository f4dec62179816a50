"""TRANSFORMATION -> TRANSFORMATION: wrappers of any optimizer."""

from adamx.compose._accumulate import AccumulateState as AccumulateState
from adamx.compose._accumulate import accumulate as accumulate
from adamx.compose._cautious import CautiousState as CautiousState
from adamx.compose._cautious import cautious as cautious
from adamx.compose._guard import GuardState as GuardState
from adamx.compose._guard import guard as guard
from adamx.compose._loss_scaling import LossScalingState as LossScalingState
from adamx.compose._loss_scaling import loss_scale as loss_scale
from adamx.compose._loss_scaling import loss_scaling as loss_scaling
from adamx.compose._offload import offload as offload
from adamx.compose._precision import CompensatedState as CompensatedState
from adamx.compose._precision import MasterWeightsState as MasterWeightsState
from adamx.compose._precision import compensated as compensated
from adamx.compose._precision import master_weights as master_weights
from adamx.compose._spikes import NormStatistics as NormStatistics
