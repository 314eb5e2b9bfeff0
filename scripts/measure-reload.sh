#!/usr/bin/env bash
# Measures what reloads cost requests: a steady stream of events, first undisturbed, then under reloads. One reload in ten is invalid.
#
# Usage: scripts/measure-reload.sh        RELOADS=1000 RATE=1000 PAUSE=0.05 PORT=19192 RELAY=target/release/livechat-relay
#
# One Kafka node and the release build of the relay (make release), on this machine. PAUSE is the time in seconds from one reload to the next.
# Prints answers and times of both streams, and the relay's memory. Exit code 1: a request was not answered 200 at once, reloads were not
# taken, p99 is more than twice that of the undisturbed stream, or memory has grown.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/ensure.sh jdk maven curl jq

reloads=${RELOADS:-1000} rate=${RATE:-1000} pause=${PAUSE:-0.05} port=${PORT:-19192}
relay=${RELAY:-target/release/livechat-relay} webhooks=127.0.0.1:$((port + 10)) admin=127.0.0.1:$((port + 11))
export LIVECHAT_SECRET_KEY=key-of-the-reloads
[[ -x $relay ]] || { echo "error: there is no $relay; run: make release" >&2; exit 1; }
work=$(mktemp -d)
kafka='' served='' stream=''
# shellcheck disable=SC2317 # the trap calls it
end() {
  [[ -n $stream ]] && kill "$stream" 2>/dev/null
  [[ -n $served ]] && kill "$served" 2>/dev/null
  [[ -n $kafka ]] && kill "$kafka" 2>/dev/null
  wait 2>/dev/null
  rm -rf "$work"
}
trap end EXIT

metric() { curl -s "http://$admin/metrics" | awk -v name="$1" 'index($1, name) == 1 { sum += $2 } END { printf "%.0f", sum }'; }
rss() { awk '/VmRSS/ { printf "%.1f", $2 / 1024 }' "/proc/$served/status"; }
send() { exec "$relay" send "http://$webhooks/webhooks/default" --json --rate "$rate" --connections 64 "$@" 2>/dev/null; }
shown='"  \(.answered_200) of \(.sent) answered 200, p50 \(.latency_ms.p50*10|round/10) ms, p99 \(.latency_ms.p99*10|round/10) ms, longest \(.latency_ms.max|round) ms; tried again \(.retried)"'

# Replaces the configuration at once. What each differs in: limits, a route, a key of one app, and whether there is another app.
configure() { # NUMBER
  local retry=$((1 + $1 % 60)) filter=info
  (($1 % 10 == 9)) && retry=soon
  (($1 % 4 == 0)) && filter=warn
  cat >"$work/next.toml" <<TOML
[server]
listen = "$webhooks"
retry_after = "${retry}s"
connections_max = $((4000 + $1 % 90))
[admin]
listen = "$admin"
[control]
socket = "$work/control.sock"
[kafka]
brokers = "localhost:$port"
[topics.actions]
tag_deleted = "$( (($1 % 2)) && echo drop || echo livechat.unlisted)"
[retries]
entries_max = $((90000 + $1))
[log]
filter = "$filter"
[reload]
check_interval = "0s"
[[apps]]
name = "default"
secret_keys = [{ name = "stays", env = "LIVECHAT_SECRET_KEY" }, { name = "changes", value = "key-of-the-reloads-$1" }]
TOML
  (($1 % 3)) && printf '[[apps]]\nname = "other"\nsecret_keys = [{ name = "k", value = "key-of-the-other-%s" }]\n' "$1" >>"$work/next.toml"
  mv "$work/next.toml" "$work/relay.toml"
}

scripts/kafka.sh run --port "$port" >"$work/kafka.log" 2>&1 &
kafka=$!
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.2; done
configure 0
"$relay" serve --config "$work/relay.toml" 2>"$work/relay.log" &
served=$!
until [[ $(metric livechat_relay_ready) == 1 ]]; do sleep 0.2; done

(send -n $((rate * 5))) >/dev/null
seconds=$(awk -v n="$reloads" -v pause="$pause" 'BEGIN { s = int(n * (pause + 0.01)) + 5; print s < 20 ? 20 : s }')
echo "== $rate events/s for $seconds s, undisturbed"
(send -n $((rate * seconds))) >"$work/undisturbed.json" || true
jq -r "$shown" "$work/undisturbed.json"
before=$(rss)
echo "== $rate events/s, $reloads reloads, one each $pause s; the relay has $before MB"
(send -n $((rate * seconds))) >"$work/reloads.json" &
stream=$!
for ((n = 1; n <= reloads; n++)); do
  configure "$n"
  kill -HUP "$served"
  sleep "$pause"
  ((n % (reloads / 5 > 0 ? reloads / 5 : 1))) || printf '  after %5d reloads: %s MB\n' "$n" "$(rss)"
done
wait "$stream" || true
stream=''
jq -r "$shown" "$work/reloads.json"
counted=$(metric livechat_relay_config_reloads_total)
after=$(rss)
count() { metric "livechat_relay_config_reloads_total{result=\"$1\"}"; }
applied=$(count applied) invalid=$(count invalid)
echo "  $counted reloads counted (signals that come during one are one): $applied applied, $invalid invalid; the relay has $after MB"
configure 1
"$relay" reload --config "$work/relay.toml" >/dev/null

failed=0
judge() { # WHAT CONDITION
  if jq -en "$2" --slurpfile u "$work/undisturbed.json" --slurpfile r "$work/reloads.json" \
    --argjson before "$before" --argjson after "$after" --argjson applied "$applied" --argjson invalid "$invalid" \
    --argjson reloads "$reloads" >/dev/null; then
    echo "passed: $1"
  else
    echo "failed: $1" && failed=1
  fi
}
# shellcheck disable=SC2016 # the conditions are jq's
{
  judge 'every request was answered 200 at once' '$r[0].answered_200 == $r[0].sent and $r[0].retried == 0'
  judge 'p99 is at most twice the undisturbed one' '$r[0].latency_ms.p99 <= 2 * $u[0].latency_ms.p99'
  judge 'nine reloads in ten were applied, the others refused' '$applied + $invalid >= 0.95 * $reloads and $invalid >= 0.08 * $reloads'
  judge 'memory is flat' '$after <= 1.1 * $before + 8'
}
exit "$failed"
