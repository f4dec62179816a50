"""ARRAY -> ARRAY: the moving averages of the family and how they are stored."""

from adamx.moments._apply import apply_rule as apply_rule
from adamx.moments._codec import ROUNDINGS as ROUNDINGS
from adamx.moments._codec import Codec as Codec
from adamx.moments._codec import Encoded as Encoded
from adamx.moments._codec import codes_of as codes_of
from adamx.moments._codec import decoded as decoded
from adamx.moments._codes import decode as decode
from adamx.moments._ema import Average as Average
from adamx.moments._ema import Weight as Weight
from adamx.moments._ema import average_at as average_at
from adamx.moments._ema import averages as averages
from adamx.moments._ema import carry_correction as carry_correction
from adamx.moments._ema import decay as decay
from adamx.moments._ema import divide_or_zero as divide_or_zero
from adamx.moments._ema import initial_averages as initial_averages
from adamx.moments._ema import product as product
from adamx.moments._ema import rounded as rounded
from adamx.moments._ema import scale as scale
from adamx.moments._ema import unrelated as unrelated
from adamx.moments._ema import update_average as update_average
from adamx.moments._ema import update_square as update_square
from adamx.moments._ema import weight_of as weight_of
from adamx.moments._ema import weight_of_log as weight_of_log
from adamx.moments._estimates import Estimates as Estimates
from adamx.moments._estimates import Estimating as Estimating
from adamx.moments._estimates import adam_estimates as adam_estimates
from adamx.moments._estimates import adam_then_nothing as adam_then_nothing
from adamx.moments._estimates import estimates_by_path as estimates_by_path
from adamx.moments._estimates import moment_paths as moment_paths
from adamx.moments._estimates import read_stored as read_stored
from adamx.moments._layout import LAYOUTS as LAYOUTS
from adamx.moments._layout import placed_like as placed_like
from adamx.moments._look_ahead import look_ahead as look_ahead
from adamx.moments._look_ahead import warming_look_ahead as warming_look_ahead
from adamx.moments._order import LARGE as LARGE
from adamx.moments._order import behind as behind
from adamx.moments._order import in_turn as in_turn
from adamx.moments._order import one_of as one_of
from adamx.moments._order import stored_behind as stored_behind
from adamx.moments._rounding import key_words as key_words
from adamx.moments._rounding import random_bits as random_bits
from adamx.moments._rounding import round_stochastic as round_stochastic
from adamx.moments._rounding import uniform as uniform
from adamx.moments._storage import check_average_dtype as check_average_dtype
from adamx.moments._storage import check_gradient as check_gradient
from adamx.moments._storage import check_moment_dtype as check_moment_dtype
from adamx.moments._storage import (
    check_second_moment_dtype as check_second_moment_dtype,
)
from adamx.moments._storage import refuse_codec as refuse_codec
from adamx.moments._storage import zeros as zeros
from adamx.moments._storage import zeros_reduced as zeros_reduced
from adamx.moments._storage import zeros_squared as zeros_squared
