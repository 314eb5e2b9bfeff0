#!/usr/bin/env bash
# Measures an outage: a steady stream of events, Kafka frozen for a while, and how long the spool takes to be empty afterwards.
#
# Usage: scripts/measure-outage.sh        OUTAGE_SECONDS=600 RATE=2000 PORT=19092
#
# One Kafka node and the release build of the relay (make release), on this machine. Prints the answers and their times, the memory
# of the relay while the backlog grows, how fast it drained while new events came, and the throughput of both paths.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/ensure.sh jdk maven curl jq bc

seconds=${OUTAGE_SECONDS:-600} rate=${RATE:-2000} port=${PORT:-19092}
relay=target/release/livechat-relay webhooks=127.0.0.1:$((port + 10)) admin=127.0.0.1:$((port + 11))
export LIVECHAT_SECRET_KEY=key-of-the-outage
[[ -x $relay ]] || { echo "error: there is no $relay; run: make release" >&2; exit 1; }
work=$(mktemp -d)
kafka='' served='' stream=''
end() {
  [[ -n $stream ]] && kill "$stream" 2>/dev/null
  [[ -n $served ]] && kill "$served" 2>/dev/null
  [[ -n $kafka ]] && { pkill -CONT -P "$kafka" 2>/dev/null; kill "$kafka" 2>/dev/null; }
  wait 2>/dev/null
  rm -rf "$work"
}
trap end EXIT

metric() { curl -s "http://$admin/metrics" | awk -v name="$1" 'index($1, name) == 1 { sum += $2 } END { printf "%.0f", sum }'; }
until_is() { # METRIC VALUE
  until [[ $(metric "$1") == "$2" ]]; do sleep 0.2; done
}
rss() { awk '/VmRSS/ { printf "%.0f", $2 / 1024 }' "/proc/$served/status"; }
cpu() { awk '{ print ($14 + $15) * 10000 }' "/proc/$served/stat"; } # microseconds, at 100 ticks a second
send() { "$relay" send "http://$webhooks/webhooks" --json "$@" 2>/dev/null; }
shown='"\(.answered_200) of \(.sent) answered 200, p50 \(.latency_ms.p50*10|round/10) ms, p99 \(.latency_ms.p99*10|round/10) ms, longest \(.latency_ms.max|round) ms"'

scripts/kafka.sh run --port "$port" >"$work/kafka.log" 2>&1 &
kafka=$!
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.2; done
cat >"$work/relay.toml" <<TOML
[server]
listen = "$webhooks"
[admin]
listen = "$admin"
[kafka]
brokers = "localhost:$port"
[spool]
directory = "$work/spool"
[[apps]]
name = "default"
secret_keys = [{ name = "outage", env = "LIVECHAT_SECRET_KEY" }]
TOML
"$relay" serve --config "$work/relay.toml" 2>"$work/relay.log" &
served=$!
until_is livechat_relay_kafka_up 1
node=$(pgrep -f "kafka.Kafka .*server.properties" -P "$kafka" || pgrep -P "$kafka" java)
freeze() { kill -STOP "$node"; }
thaw() { kill -CONT "$node"; }

throughput() { # NAME
  local before report
  send -n 4000 --connections 64 >/dev/null
  before=$(cpu)
  report=$(send -n 60000 --connections 64)
  jq -r --arg name "$1" --argjson us "$(($(cpu) - before))" \
    '"\($name): \(.per_second|round) events/s, \($us / .sent * 10|round / 10) us of CPU an event, p99 \(.latency_ms.p99*10|round/10) ms"' <<<"$report"
}

echo "== throughput at 64 connections, all actions"
throughput direct
freeze
throughput 'spool '
thaw
until_is livechat_relay_spool_records 0
throughput direct

echo "== $rate events/s, Kafka there"
send -n $((rate * 30)) --rate "$rate" --connections 256 | jq -r "$shown"
echo "== $rate events/s, Kafka frozen for $seconds s"
freeze
send -n $((rate * seconds)) --rate "$rate" --connections 256 >"$work/outage.json" &
stream=$!
began=$SECONDS
while kill -0 "$stream" 2>/dev/null; do
  sleep $((seconds > 60 ? 30 : 5))
  printf '  after %4d s: %9s events in the spool, relay %4s MB\n' $((SECONDS - began)) "$(metric livechat_relay_spool_records)" "$(rss)"
done
stream=''
jq -r "$shown" "$work/outage.json"
curl -s "http://$admin/metrics" | awk '/^livechat_relay_durable_duration_seconds_(bucket|count)\{path="spool"/ { print "  " $0 }'
backlog=$(metric livechat_relay_spool_records)
echo "== Kafka back, $rate events/s still coming: $backlog events in the spool"
before=$(metric livechat_relay_replayed_total)
thaw
began=$(date +%s.%N)
# The process itself in the background, not a function around it: it is to get the signal.
"$relay" send "http://$webhooks/webhooks" --json -n $((rate * 3600)) --rate "$rate" --connections 256 \
  >"$work/after.json" 2>/dev/null &
stream=$!
until [[ $(metric livechat_relay_spool_records) == 0 ]]; do sleep 0.5; done
took=$(echo "$(date +%s.%N) - $began" | bc)
replayed=$(($(metric livechat_relay_replayed_total) - before))
kill -INT "$stream"; wait "$stream" 2>/dev/null || true
stream=''
printf '  empty after %.1f s: %d events replayed, %.0f/s, which is %.1f times the arrival rate; relay %s MB\n' \
  "$took" "$replayed" "$(echo "$replayed / $took" | bc -l)" "$(echo "$replayed / $took / $rate" | bc -l)" "$(rss)"
jq -r "$shown" "$work/after.json" || true
