"""adamx: the Adam family for JAX, as Optax-compatible gradient transformations.

Optimizers: sgd momentum rmsprop adam adam_l2 adamw nadam nadamw adamax amsgrad radam
adabound amsbound swats lion sophia_h sophia_g lamb ademamix adopt adam_mini
stable_adamw schedule_free_adamw sparse_adam.
Wrappers of any: guard accumulate stages groups freeze with_hyperparams cautious
diagnose; loss_scaling(tx) for float16, with loss_scale(state); offload(tx), the state
in host memory; bucketed(tx), in few arrays. Adam, then SGD: adam_to_sgd. What each
parameter gets: describe.
16-bit parameters: master_weights(tx), compensated(tx), or
apply_updates(params, updates, rounding="stochastic", key=...).
Stages: the scale_by_... of each, add_decoupled_weight_decay, clip_by_global_norm,
clip_by_update_rms, scale_by_learning_rate.
Moments in 8 or 4 bits: codecs, for every mu_dtype and nu_dtype.
Beside them: schedules, read(state), apply_updates(params, updates), fused(tx),
schedule_free_eval_params(state, params).
A run: History, health, report, print_report, sharpness; its rate: lr_sweep,
lr_range_test.
Where to start: recipes, one transformation for a whole task.

    tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(3e-4))
    state = tx.init(params)
    updates, state = tx.update(gradients, state, params)
    params = adamx.apply_updates(params, updates)
    adamx.read(state).scalars()
"""

from adamx import codecs as codecs
from adamx import interop as interop
from adamx import recipes as recipes
from adamx import schedules as schedules
from adamx import sharding as sharding
from adamx.apply import apply_updates as apply_updates
from adamx.compose import AccumulateState as AccumulateState
from adamx.compose import AdamToSgdState as AdamToSgdState
from adamx.compose import BucketedState as BucketedState
from adamx.compose import CautiousState as CautiousState
from adamx.compose import CompensatedState as CompensatedState
from adamx.compose import Description as Description
from adamx.compose import FreezeState as FreezeState
from adamx.compose import GroupsState as GroupsState
from adamx.compose import GuardState as GuardState
from adamx.compose import LossScalingState as LossScalingState
from adamx.compose import MasterWeightsState as MasterWeightsState
from adamx.compose import NormStatistics as NormStatistics
from adamx.compose import Plateau as Plateau
from adamx.compose import PlateauState as PlateauState
from adamx.compose import StagesState as StagesState
from adamx.compose import WithHyperparamsState as WithHyperparamsState
from adamx.compose import accumulate as accumulate
from adamx.compose import adam_to_sgd as adam_to_sgd
from adamx.compose import bucketed as bucketed
from adamx.compose import cautious as cautious
from adamx.compose import compensated as compensated
from adamx.compose import describe as describe
from adamx.compose import freeze as freeze
from adamx.compose import groups as groups
from adamx.compose import guard as guard
from adamx.compose import loss_scale as loss_scale
from adamx.compose import loss_scaling as loss_scaling
from adamx.compose import master_weights as master_weights
from adamx.compose import offload as offload
from adamx.compose import plateau as plateau
from adamx.compose import set_hyperparams as set_hyperparams
from adamx.compose import stages as stages
from adamx.compose import with_hyperparams as with_hyperparams
from adamx.diagnostics import DiagnoseState as DiagnoseState
from adamx.diagnostics import History as History
from adamx.diagnostics import LrRangeTest as LrRangeTest
from adamx.diagnostics import LrSweep as LrSweep
from adamx.diagnostics import Sharpness as Sharpness
from adamx.diagnostics import diagnose as diagnose
from adamx.diagnostics import health as health
from adamx.diagnostics import lr_range_test as lr_range_test
from adamx.diagnostics import lr_sweep as lr_sweep
from adamx.diagnostics import print_report as print_report
from adamx.diagnostics import report as report
from adamx.diagnostics import sharpness as sharpness
from adamx.fused import Fused as Fused
from adamx.fused import fused as fused
from adamx.optimizers import ScaleByAdaboundState as ScaleByAdaboundState
from adamx.optimizers import ScaleByAdamaxState as ScaleByAdamaxState
from adamx.optimizers import ScaleByAdamMiniState as ScaleByAdamMiniState
from adamx.optimizers import ScaleByAdamState as ScaleByAdamState
from adamx.optimizers import ScaleByAdemamixState as ScaleByAdemamixState
from adamx.optimizers import ScaleByAdoptState as ScaleByAdoptState
from adamx.optimizers import ScaleByAmsgradState as ScaleByAmsgradState
from adamx.optimizers import ScaleByLambTrustRatioState as ScaleByLambTrustRatioState
from adamx.optimizers import ScaleByLionState as ScaleByLionState
from adamx.optimizers import ScaleByMomentumState as ScaleByMomentumState
from adamx.optimizers import ScaleByRadamState as ScaleByRadamState
from adamx.optimizers import ScaleByRmsState as ScaleByRmsState
from adamx.optimizers import ScaleBySophiaState as ScaleBySophiaState
from adamx.optimizers import ScaleBySparseAdamState as ScaleBySparseAdamState
from adamx.optimizers import ScaleByStableAdamwState as ScaleByStableAdamwState
from adamx.optimizers import ScaleBySwatsState as ScaleBySwatsState
from adamx.optimizers import ScheduleFreeAdamWState as ScheduleFreeAdamWState
from adamx.optimizers import adabound as adabound
from adamx.optimizers import adam as adam
from adamx.optimizers import adam_l2 as adam_l2
from adamx.optimizers import adam_mini as adam_mini
from adamx.optimizers import adamax as adamax
from adamx.optimizers import adamw as adamw
from adamx.optimizers import ademamix as ademamix
from adamx.optimizers import adopt as adopt
from adamx.optimizers import amsbound as amsbound
from adamx.optimizers import amsgrad as amsgrad
from adamx.optimizers import lamb as lamb
from adamx.optimizers import lion as lion
from adamx.optimizers import momentum as momentum
from adamx.optimizers import nadam as nadam
from adamx.optimizers import nadamw as nadamw
from adamx.optimizers import radam as radam
from adamx.optimizers import rmsprop as rmsprop
from adamx.optimizers import scale_by_adabound as scale_by_adabound
from adamx.optimizers import scale_by_adam as scale_by_adam
from adamx.optimizers import scale_by_adam_mini as scale_by_adam_mini
from adamx.optimizers import scale_by_adamax as scale_by_adamax
from adamx.optimizers import scale_by_ademamix as scale_by_ademamix
from adamx.optimizers import scale_by_adopt as scale_by_adopt
from adamx.optimizers import scale_by_amsgrad as scale_by_amsgrad
from adamx.optimizers import scale_by_lamb_trust_ratio as scale_by_lamb_trust_ratio
from adamx.optimizers import scale_by_lion as scale_by_lion
from adamx.optimizers import scale_by_momentum as scale_by_momentum
from adamx.optimizers import scale_by_radam as scale_by_radam
from adamx.optimizers import scale_by_rms as scale_by_rms
from adamx.optimizers import scale_by_sophia as scale_by_sophia
from adamx.optimizers import scale_by_sparse_adam as scale_by_sparse_adam
from adamx.optimizers import scale_by_stable_adamw as scale_by_stable_adamw
from adamx.optimizers import scale_by_swats as scale_by_swats
from adamx.optimizers import schedule_free_adamw as schedule_free_adamw
from adamx.optimizers import schedule_free_eval_params as schedule_free_eval_params
from adamx.optimizers import sgd as sgd
from adamx.optimizers import sophia_g as sophia_g
from adamx.optimizers import sophia_h as sophia_h
from adamx.optimizers import sparse_adam as sparse_adam
from adamx.optimizers import stable_adamw as stable_adamw
from adamx.optimizers import swats as swats
from adamx.reading import Reading as Reading
from adamx.reading import read as read
from adamx.transforms import (
    AddDecoupledWeightDecayState as AddDecoupledWeightDecayState,
)
from adamx.transforms import ClipByGlobalNormState as ClipByGlobalNormState
from adamx.transforms import ClipByUpdateRmsState as ClipByUpdateRmsState
from adamx.transforms import ScaleByLearningRateState as ScaleByLearningRateState
from adamx.transforms import (
    ScaleByScheduledLearningRateState as ScaleByScheduledLearningRateState,
)
from adamx.transforms import (
    add_decoupled_weight_decay as add_decoupled_weight_decay,
)
from adamx.transforms import clip_by_global_norm as clip_by_global_norm
from adamx.transforms import clip_by_update_rms as clip_by_update_rms
from adamx.transforms import decay_mask as decay_mask
from adamx.transforms import scale_by_learning_rate as scale_by_learning_rate

add_decayed_weights = add_decoupled_weight_decay  # Optax's name for it

__version__ = "0.1.0"
