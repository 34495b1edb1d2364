"""`run_module.py MODULE ARGUMENTS` is `python -m MODULE ARGUMENTS`, for a process that can only run scripts."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
