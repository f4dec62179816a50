"""STATE <-> OUTSIDE: names of its arrays, other chains, other libraries, files."""

from adamx.interop._checkpoint import restore as restore
from adamx.interop._checkpoint import save as save
from adamx.interop._manifest import CheckpointError as CheckpointError
from adamx.interop._manifest import steps as steps
from adamx.interop._manifest import verify as verify
from adamx.interop._migrate import migrate as migrate
from adamx.interop._migration import Fate as Fate
from adamx.interop._migration import Migration as Migration
from adamx.interop._names import FORMAT as FORMAT
from adamx.interop._names import from_flat as from_flat
from adamx.interop._names import to_flat as to_flat
