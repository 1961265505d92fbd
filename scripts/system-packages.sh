#!/usr/bin/env bash
# The tests look at pages with Chromium. As root on Debian or Ubuntu it is installed, elsewhere its absence is named.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
else
  echo "klype: Chromium is not installed, so tests that look at pages cannot run. Install the package 'chromium'." >&2
  [ -z "${CI:-}" ] # on a build server that is a failure
fi
