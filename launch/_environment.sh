# Sourced by quickstart.sh and test.sh with the wanted extras as $1 (may be empty): makes .venv from launch/constraints.txt
# in one resolver call (pip would otherwise replace parts of the matched torch set) and activates it.
# The second time nothing is installed: the stamp holds a hash of all that decides the content.
set -euo pipefail

CHECKOUT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$CHECKOUT/.venv"

find_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.10 python3; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.10, 3.11 or 3.12 is needed and none is on the PATH (Debian: apt install python3 python3-venv)" >&2
  exit 2
}

install() {
  local extras="$1" wanted
  # The place counts too: a moved checkout leaves an environment that points to where it was.
  wanted="$( (cd "$CHECKOUT" && pwd && cat setup.cfg pyproject.toml launch/constraints.txt) | sha256sum | cut -d' ' -f1)"
  local stamp="$VENV/.installed${extras:+-$extras}" found python
  for found in "$stamp" "$VENV"/.installed-*; do # an environment with extras serves who wants none
    if [[ (-z "$extras" || "$found" == "$stamp") && -f "$found" && "$(cat "$found")" == "$wanted" ]]; then
      return
    fi
  done
  python="$(find_python)"
  echo "Installing into $VENV: about 6 GB and 2 to 3 minutes, once."
  if ! "$python" -m venv "$VENV"; then
    echo "error: cannot make a virtual environment (Debian: apt install python3-venv)" >&2
    exit 2
  fi
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$CHECKOUT/launch/constraints.txt" --editable "$CHECKOUT${extras:+[$extras]}"
  if [[ "$VENV" == *[[:space:]]* ]]; then
    # deepspeed ships its command as a plain script, and a #! line cannot hold a path with blanks.
    printf '#!/bin/sh\nexec "$(dirname "$0")/python" -m deepspeed.launcher.runner "$@"\n' > "$VENV/bin/deepspeed"
  fi
  echo "$wanted" > "$stamp"
}

install "${1:-}"
export PATH="$VENV/bin:$PATH"
# Without a GPU say so at once; DeepSpeed would find out by itself after some warnings.
if [[ -z "${DS_ACCELERATOR:-}" && ! -e /dev/nvidiactl && ! -e /dev/kfd ]]; then
  export DS_ACCELERATOR=cpu
fi
