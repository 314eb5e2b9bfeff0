#!/usr/bin/env bash
# Checks the installation page and the app's page in a real browser.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

help() {
  cat <<'EOT'
Opens the installation page and the app's page of a relay in Chromium, headless, with a simulated LiveChat on the other side: an
installation, its errors, a popup that closes itself, the login with a click on "Allow", a frame of LiveChat's and one of another site. No
page may be wider than its window, down to 280 pixels. Screenshots, light and dark, are written to target/pages, to be looked at.

Usage: scripts/check-pages.sh        RELAY=target/debug/livechat-relay

Needs Node.js and Chromium (Debian: nodejs, chromium), which scripts/ensure.sh installs where it may. Needs no Kafka: the relay spools.
Exit codes: 0 all is well, 1 something is not, 2 the command line is wrong.
EOT
}

case ${1-} in
'') ;;
-h | --help) help && exit ;;
*) help >&2 && exit 2 ;;
esac
scripts/ensure.sh node chromium
relay=$(realpath "${RELAY:-target/debug/livechat-relay}")
[[ -x $relay ]] || { echo "error: there is no $relay; run: cargo build" >&2; exit 1; }
rm -rf target/pages
exec node scripts/check-pages.mjs "$relay" target/pages
