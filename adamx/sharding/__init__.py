"""SHAPES, MESH -> SHARDINGS: where an optimizer's state lies on many devices.

`plan` says what that takes on devices that are not here.

What a sum over a parameter or over all of them spans (norms in `clip_by_global_norm`,
`guard`, `lamb`, `diagnose`; means in `adam_mini`, `clip_by_update_rms`; the largest
element for the scales of codes):

    under jit                    the whole arrays, however they and the state are
                                 sharded, automatically or by explicit axes
    inside shard_map, pmap       the device's piece alone; over all pieces with
                                 `axis_name`, which clip_by_global_norm, guard,
                                 loss_scaling, lamb, stable_adamw, clip_by_update_rms,
                                 adam_mini have

In pieces alone, inside shard_map and pmap:

    codes            scales of their own for each piece, see `adamx.codecs`
    diagnose         the table of a device is that of its pieces; as an output of
                     shard_map, tables follow one another
    cautious         what is dropped is made up for within a piece
    swats            the estimate, and so the switch, are of a device: not to be used
                     where parameters are copies along some axes
    adam_to_sgd      the matched rate; give `sgd_learning_rate`
    sophia_h         draws signs of its own for each piece; sophia_g needs the logits of
                     the whole batch
    in States        the mean or the largest over layers (`trust_ratio_mean`,
                     `update_rms`), where layers are on several devices

Every wrapper that chooses around what sums over devices (guard, loss_scaling) needs the
same `axis_name`: a device that skips a step would be waited for, for ever. shard_map's
types tell, and it is an error; pmap and check_vma=False have none.
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
