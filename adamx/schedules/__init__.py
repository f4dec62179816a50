"""Learning-rate schedules: functions of the step count, exact at their corners.

Each returns an Optax schedule, step -> rate, elementwise. Step 0 is the first update.

Step: an integer, held to [0, 2^31 - 1]; a float is used as it is, from 0 up.
Rate: strong float32 (float64 under x64), within 1e-6 of the peak of the exact value at
  every integer step up to 2^31 - 1, since steps are subtracted and divided as integers
  (`_steps.py` says how). The given start, peak and end are returned exactly.

A rate may be a number or a 0-d array, a traced one too; a number of steps is known on
the host. A bad argument raises ValueError or TypeError, which names the argument, what
was expected, what was got and the remedy.
"""

from adamx.schedules._basic import constant as constant
from adamx.schedules._basic import exponential_decay as exponential_decay
from adamx.schedules._basic import linear as linear
from adamx.schedules._basic import step_decay as step_decay
from adamx.schedules._cyclic import cosine_restarts as cosine_restarts
from adamx.schedules._cyclic import cyclical as cyclical
from adamx.schedules._plot import plot as plot
from adamx.schedules._warmup import inverse_sqrt as inverse_sqrt
from adamx.schedules._warmup import one_cycle as one_cycle
from adamx.schedules._warmup import warmup_cosine as warmup_cosine
from adamx.schedules._warmup import warmup_linear as warmup_linear
from adamx.schedules._warmup import warmup_stable_decay as warmup_stable_decay
