#!/usr/bin/env bash
# Makes .venv with the given Python (3.11 or newer), or says in one sentence why it cannot.
set -euo pipefail

python=$1
say() {
  echo "klype: $*" >&2
  exit 1
}

command -v "$python" >/dev/null || say "there is no '$python' here. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3.12"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  say "Python 3.11 or newer is needed, and '$python' is $("$python" --version 2>&1). Name another: make setup PYTHON=/path/to/python3.12"

# A virtual environment that was moved, or whose interpreter is gone, does not start: make it anew.
if [ -e .venv ] && ! .venv/bin/python -c 'import pip' 2>/dev/null; then
  rm -rf .venv
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv ||
  say "'$python -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv"
