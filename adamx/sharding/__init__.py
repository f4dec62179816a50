"""SHAPES, MESH -> SHARDINGS: where an optimizer's state lies on many devices.

`plan` says what that takes on devices that are not here.

What a sum over a parameter or over all of them spans (norms in `clip_by_global_norm`,
`guard`, `lamb`, `diagnose`; means in `adam_mini`, `clip_by_update_rms`; the largest
element for the scales of codes):

    under jit                    the whole arrays, however they and the state are
                                 sharded, automatically or by explicit axes
    inside shard_map, pmap       the device's piece alone; over all pieces with
                                 `axis_name`, which clip_by_global_norm, guard, lamb,
                                 stable_adamw, clip_by_update_rms, adam_mini have

In pieces alone, inside shard_map and pmap: `diagnose`, `loss_scaling`, the scales of
codes, and in States what is the mean or the largest over layers (`trust_ratio_mean`,
`update_rms`), where layers are on several devices.
"""

from adamx.sharding._collectives import Collective as Collective
from adamx.sharding._models import model_shapes as model_shapes
from adamx.sharding._plan import plan as plan
from adamx.sharding._plan import plans as plans
from adamx.sharding._plan_table import Plan as Plan
from adamx.sharding._plan_table import PlanTable as PlanTable
from adamx.sharding._state import state_shardings as state_shardings
from adamx.sharding._table import ShardingRow as ShardingRow
from adamx.sharding._table import ShardingTable as ShardingTable
from adamx.sharding._table import describe_shardings as describe_shardings
