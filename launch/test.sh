#!/usr/bin/env bash
# Installs what is needed, then checks style, types and behaviour. Arguments go to pytest: launch/test.sh -k parity
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh" test
cd "$CHECKOUT"
ruff check .
ruff format --check .
mypy
# Two files at a time, the longest first: a test that waits for a server or a time limit leaves its core to the other.
python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
# Kernels on the CPU (skipped above, with a reason), and the official model's recorded outcomes through them.
TRITON_INTERPRET=1 python -m pytest --numprocesses 2 tests/kernels/interpreted tests/models/cavmae/test_golden.py
