#!/usr/bin/env bash
# axe-core, which tests that pages are accessible, from npm into the folder named (default .venv/axe-core).
# Prints where its script lies; without npm it says so and fails.
set -euo pipefail

folder=${1:-.venv/axe-core}
script=$folder/node_modules/axe-core/axe.min.js
if [ ! -s "$script" ]; then
  command -v npm >/dev/null || { echo "npm is not installed, so axe-core cannot be had." >&2; exit 1; }
  mkdir -p "$folder"
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" axe-core@4.10.3 >&2
fi
echo "$script"
