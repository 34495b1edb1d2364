"""Fixtures of the tests that run kernels."""

from tests.kernels.accuracy import poisoned_memory  # noqa: F401
