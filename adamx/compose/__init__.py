"""TRANSFORMATION -> TRANSFORMATION: wrappers of any optimizer."""

from adamx.compose._adam_to_sgd import AdamToSgdState as AdamToSgdState
from adamx.compose._adam_to_sgd import adam_to_sgd as adam_to_sgd
from adamx.compose._cautious import CautiousState as CautiousState
from adamx.compose._cautious import cautious as cautious
from adamx.compose._describe import Description as Description
from adamx.compose._describe import describe as describe
from adamx.compose._freeze import FreezeState as FreezeState
from adamx.compose._freeze import freeze as freeze
from adamx.compose._groups import GroupsState as GroupsState
from adamx.compose._groups import groups as groups
from adamx.compose._hyperparams import WithHyperparamsState as WithHyperparamsState
from adamx.compose._hyperparams import with_hyperparams as with_hyperparams
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
from adamx.compose._set_hyperparams import set_hyperparams as set_hyperparams
from adamx.compose._stages import StagesState as StagesState
from adamx.compose._stages import stages as stages
