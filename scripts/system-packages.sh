#!/usr/bin/env bash
# The tests look at pages with Chromium, have axe-core (from npm) look at them, keep rankings in PostgreSQL, and have
# hunspell look at the spelling.
# As root on Debian or Ubuntu what is missing is installed, elsewhere its absence is named.
set -euo pipefail

have() { command -v "$1" >/dev/null; }
missing=()
have chromium || have chromium-browser || have google-chrome || missing+=(chromium)
have npm || missing+=(npm)
hunspell -d nb_NO,en_US,en_GB -l </dev/null >/dev/null 2>&1 || missing+=(hunspell hunspell-en-us hunspell-en-gb hunspell-no)
have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || missing+=(postgresql)

[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" = 0 ] && have apt-get; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "klype: not installed, so some tests cannot run: ${missing[*]}. Install these packages." >&2
  [ -z "${CI:-}" ] # on a build server that is a failure
fi
