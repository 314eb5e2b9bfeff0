#!/usr/bin/env bash
# Makes pgo/relay-….profdata anew: what runs in the relay under load, and how often, by which the release build is optimized.
#
# Usage: make profile        or scripts/profile.sh, with a JDK, Maven and llvm-profdata there
#
# Builds the relay with counters in it (in target/profile, five minutes the first time), runs it on a real Kafka with one, 64
# and 512 connections and with Kafka frozen, so that the spool is in it, and writes the counts under the name of their checksum:
# another name makes cargo build anew, which does not look into the file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

# Rust's own, where its llvm-tools are installed; else the newest there is. It has to be of LLVM 19 or newer.
profdata=$(find "$(rustc --print sysroot)/lib/rustlib" -name llvm-profdata -path '*/bin/*' 2>/dev/null | head -n 1)
for version in 22 21 20 19; do
  [[ -n $profdata ]] || profdata=$(command -v "llvm-profdata-$version" || true)
done
[[ -n $profdata ]] || fail 'there is no llvm-profdata of LLVM 19 or newer; run: rustup component add llvm-tools, or scripts/ensure.sh llvm-profdata-19'

port=$((20000 + $$ % 10000))
webhooks=127.0.0.1:$((port + 10)) admin=127.0.0.1:$((port + 11))
LIVECHAT_SECRET_KEY=profile
export LIVECHAT_SECRET_KEY
export LLVM_PROFILE_FILE=/dev/null # but for the relay in its load: neither the build nor the sender is to be profiled
work=$(mktemp -d)
kafka='' served='' node=''
end() {
  [[ -n $served ]] && kill "$served" 2>/dev/null
  [[ -n $node ]] && kill -CONT "$node" 2>/dev/null
  [[ -n $kafka ]] && kill "$kafka" 2>/dev/null
  wait 2>/dev/null
  rm -rf "$work"
}
trap end EXIT

say 'building the relay with counters'
# With the features of `make release`, by which names in the profile differ.
RUSTFLAGS='-Cprofile-generate' cargo build --release --locked --bin livechat-relay --bench throughput --target-dir target/profile
relay=target/profile/release/livechat-relay

scripts/kafka.sh run --port "$port" >"$work/kafka.log" 2>&1 &
kafka=$!
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  kill -0 "$kafka" 2>/dev/null || { cat "$work/kafka.log" >&2; fail 'Kafka has not started'; }
  sleep 0.2
done
node=$(pgrep -P "$kafka" java)
cat >"$work/relay.toml" <<TOML
server.listen = "$webhooks"
admin.listen = "$admin"
log.filter = "warn"
kafka.brokers = "localhost:$port"
spool.directory = "$work/spool"
[[apps]]
name = "default"
secret_keys = [{ name = "profile", env = "LIVECHAT_SECRET_KEY" }]
TOML
LLVM_PROFILE_FILE=$work/relay.profraw "$relay" serve --config "$work/relay.toml" 2>"$work/relay.log" &
served=$!
ready() { curl --silent --fail --output /dev/null "http://$admin/readyz"; }
until ready; do
  kill -0 "$served" 2>/dev/null || { cat "$work/relay.log" >&2; fail 'the relay has not started'; }
  sleep 0.2
done

load() { # CONNECTIONS EVENTS
  say "load: $2 events over $1 connections"
  "$relay" send "http://$webhooks/webhooks" --connections "$1" --count "$2" >/dev/null 2>"$work/send.log" \
    || { cat "$work/send.log" "$work/relay.log" >&2; fail 'not all was answered 200'; }
}
load 512 100000
load 64 100000
load 1 5000
say 'Kafka is frozen'
kill -STOP "$node"
load 64 20000
kill -CONT "$node"
kill -TERM "$served"
wait "$served" || { cat "$work/relay.log" >&2; fail 'the relay has not ended well'; }
served=''

# Not --sparse: it leaves out what never ran, which the compiler should know, and keep small and out of the way.
"$profdata" merge --output "$work/relay.profdata" "$work/relay.profraw"
sum=$(sha256sum "$work/relay.profdata" | cut -c1-12)
mkdir -p pgo
rm -f pgo/relay-*.profdata
install -m 644 "$work/relay.profdata" "pgo/relay-$sum.profdata"
say "pgo/relay-$sum.profdata is the profile now; look with make bench what it has changed, and write the guard's baseline anew"
