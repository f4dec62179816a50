"""Parity with PyTorch: against stored updates, and against PyTorch where installed."""

import numpy as np
import pytest

import adamx
from tests import torch_golden
from tests.helpers import enable_x64, run_updates, some

GOLDEN = np.load(torch_golden.PATH)


def _ours(label, name, kwargs, dtype=np.float64):
    params, gradients = torch_golden.inputs(label)
    if dtype == np.float32:
        params, gradients = params.astype(np.float32), gradients.astype(np.float32)
    tx = getattr(adamx, name)(torch_golden.LR, **kwargs)
    updates, _ = run_updates(tx, gradients, params)
    return updates[[t - 1 for t in torch_golden.STEPS]]


@pytest.mark.parametrize("label", torch_golden.CASES)
def test_equal_in_double_precision(label):
    _, _, name, kwargs = torch_golden.CASES[label]
    with enable_x64():
        ours = _ours(label, name, kwargs)
    np.testing.assert_allclose(ours, GOLDEN[label], rtol=1e-9, atol=1e-12)


# Quickly: a sum, a mean of squares, its largest, rectified; the others in double only.
@pytest.mark.parametrize(
    "label",
    some(torch_golden.CASES, "sgd nesterov", "adamw off", "amsgrad", "radam off"),
)
def test_close_in_single_precision(label):
    _, _, name, kwargs = torch_golden.CASES[label]
    ours = _ours(label, name, kwargs, np.float32)
    error = np.abs(ours - GOLDEN[label]) / np.maximum(np.abs(GOLDEN[label]), 1e-2)
    assert np.max(error) <= 2e-5  # of the learning rate, 1e-2, or of the larger update


@pytest.mark.parametrize("label", torch_golden.DIFFERENT)
def test_intended_differences_are_real(label):
    _, _, name, kwargs, reason = torch_golden.DIFFERENT[label]
    with enable_x64():
        ours = _ours(label, name, kwargs)
    assert np.max(np.abs(ours - GOLDEN[label])) > 1e-4, f"no longer true: {reason}"


def test_stored_updates_are_those_of_the_installed_torch():
    pytest.importorskip("torch", reason="pip install 'adamx[torch]'")
    for label, fresh in torch_golden.all_cases().items():
        np.testing.assert_allclose(fresh, GOLDEN[label], rtol=1e-9, atol=1e-15)
