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
from adamx.interop._torch import from_torch as from_torch
from adamx.interop._torch import params_from_torch as params_from_torch
from adamx.interop._torch import torch_optimizer as torch_optimizer
from adamx.interop._torch_back import params_to_torch as params_to_torch
from adamx.interop._torch_back import to_torch as to_torch
from adamx.interop._torch_files import TorchRun as TorchRun
from adamx.interop._torch_files import convert_torch as convert_torch
from adamx.interop._torch_files import load_torch as load_torch
from adamx.interop._torch_rules import uncorrected_eps as uncorrected_eps
