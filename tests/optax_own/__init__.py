"""Optax's own tests, run with Optax's functions replaced by ours."""
