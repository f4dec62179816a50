"""TRANSFORMATION -> TRANSFORMATION: wrappers of any optimizer."""

from adamx.compose._adam_to_sgd import AdamToSgdState as AdamToSgdState
from adamx.compose._adam_to_sgd import adam_to_sgd as adam_to_sgd
from adamx.compose._cautious import CautiousState as CautiousState
from adamx.compose._cautious import cautious as cautious
from adamx.compose._loss_scaling import LossScalingState as LossScalingState
from adamx.compose._loss_scaling import loss_scale as loss_scale
from adamx.compose._loss_scaling import loss_scaling as loss_scaling
from adamx.compose._offload import offload as offload
from adamx.compose._plateau import Plateau as Plateau
from adamx.compose._plateau import PlateauState as PlateauState
from adamx.compose._plateau import plateau as plateau
from adamx.compose._precision import CompensatedState as CompensatedState
from adamx.compose._precision import MasterWeightsState as MasterWeightsState
from adamx.compose._precision import compensated as compensated
from adamx.compose._precision import master_weights as master_weights
from adamx.compose._stages import StagesState as StagesState
from adamx.compose._stages import stages as stages
