"""NUMBERS -> TRANSFORMATION: the stages that are no optimizers by themselves."""

from adamx.transforms._chain import wide_chain as wide_chain
from adamx.transforms._clip import ClipByGlobalNormState as ClipByGlobalNormState
from adamx.transforms._clip import clip_by_global_norm as clip_by_global_norm
from adamx.transforms._decay import (
    AddDecoupledWeightDecayState as AddDecoupledWeightDecayState,
)
from adamx.transforms._decay import (
    add_coupled_weight_decay as add_coupled_weight_decay,
)
from adamx.transforms._decay import (
    add_decoupled_weight_decay as add_decoupled_weight_decay,
)
from adamx.transforms._decay import decay_leaf as decay_leaf
from adamx.transforms._decay import subtract_weight_decay as subtract_weight_decay
from adamx.transforms._decay_mask import decay_mask as decay_mask
from adamx.transforms._descent import descent as descent
from adamx.transforms._learning_rate import (
    ScaleByLearningRateState as ScaleByLearningRateState,
)
from adamx.transforms._learning_rate import (
    ScaleByScheduledLearningRateState as ScaleByScheduledLearningRateState,
)
from adamx.transforms._learning_rate import (
    scale_by_learning_rate as scale_by_learning_rate,
)
from adamx.transforms._learning_rate import scale_tree as scale_tree
from adamx.transforms._mask import expand_mask as expand_mask
from adamx.transforms._update_rms import ClipByUpdateRmsState as ClipByUpdateRmsState
from adamx.transforms._update_rms import clip_by_update_rms as clip_by_update_rms
