"""SHAPES, MESH -> SHARDINGS: where an optimizer's state lies on many devices."""

from adamx.sharding._state import state_shardings as state_shardings
from adamx.sharding._table import ShardingRow as ShardingRow
from adamx.sharding._table import ShardingTable as ShardingTable
from adamx.sharding._table import describe_shardings as describe_shardings
