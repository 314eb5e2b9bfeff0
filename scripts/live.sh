# shellcheck shell=bash
# What the scripts share that check examples against a real Kafka and real relays; sourced, not run. It wants `root`, and makes
# `scratch`, a directory that is removed at the end, after everything that was started has been stopped.

relay=${RELAY_BIN:-$root/target/debug/livechat-relay}
secret_key=examples-check

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
ensure() { "$root/scripts/ensure.sh" "$@" >&2; }
has() { command -v "$1" >/dev/null; }

# What was started and has not been waited for. The relays and the consumers go before Kafka, which they talk to.
running=()

# Starts COMMAND ARGS... in the background, in a process group of its own, so that what it starts in turn can be ended with
# it; sets `started` to its pid.
start() {
  set -m
  "$@" </dev/null &
  started=$!
  set +m
  running+=("$started")
}

# Waits for PID and forgets it; its exit code is the result. A wait is cut short by a signal, a program in front is not.
finish() {
  local pid=$1 other left=() status=0
  wait "$pid" || status=$?
  for other in "${running[@]}"; do
    if [[ $other != "$pid" ]]; then left+=("$other"); fi
  done
  running=("${left[@]}")
  return "$status"
}

clean_up() {
  local i pid
  trap '' INT TERM HUP
  for ((i = ${#running[@]} - 1; i >= 0; i--)); do
    pid=${running[i]}
    kill -TERM -- "-$pid" 2>/dev/null || true
    for _ in {1..150}; do
      kill -0 -- "-$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$scratch"
}

# Waits until COMMAND ARGS... succeeds, for SECONDS: SECONDS WHAT PID COMMAND ARGS... PID is the process that it is about.
await() {
  local seconds=$1 what=$2 pid=$3 until=$((SECONDS + $1))
  shift 3
  until "$@"; do
    kill -0 "$pid" 2>/dev/null || { say "error: $what: the process has ended"; return 1; }
    ((SECONDS < until)) || { say "error: $what: not within $seconds s"; return 1; }
    sleep 0.2
  done
}

is_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Sets `port` to the next one that is free together with the one above it. It begins anywhere below the range that the
# kernel gives to clients.
port=$((15000 + 2 * (RANDOM % 7000)))
free_port() {
  for _ in {1..100}; do
    port=$((port + 2))
    if ! is_open "$port" && ! is_open $((port + 1)); then return; fi
  done
  fail "no free port just below $port"
}

start_kafka() {
  free_port
  brokers=localhost:$port
  say "starting Kafka on $brokers"
  start "$root/scripts/kafka.sh" run --port "$port" >"$scratch/kafka" 2>&1
  await 120 'Kafka starts' "$started" grep -q 'is ready on' "$scratch/kafka" || { cat "$scratch/kafka" >&2; exit 1; }
}

# Starts relay NAME; sets `webhooks_url`, `admin` and `started`.
# shellcheck disable=SC2034 # read by those who source this
start_relay() {
  free_port
  webhooks_url=http://127.0.0.1:$port/webhooks admin=127.0.0.1:$((port + 1))
  cat >"$scratch/$1.toml" <<EOT
[server]
listen = "127.0.0.1:$port"
[admin]
listen = "$admin"
[kafka]
brokers = "$brokers"
start_timeout = "60s"
[topics]
partitions = 3
[[apps]]
name = "default"
secret_keys = [{ name = "k", value = "$secret_key" }]
EOT
  start "$relay" serve --config "$scratch/$1.toml" >"$scratch/$1" 2>&1
}

# 200 from /readyz of HOST:PORT, without a program that speaks HTTP.
is_ready() {
  local status=
  { exec 3<>"/dev/tcp/${1/://}"; } 2>/dev/null || return 1
  printf 'GET /readyz HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$1" >&3
  IFS= read -r -t 5 status <&3 || true
  exec 3>&-
  [[ $status == 'HTTP/1.1 200'* ]]
}

# Sends webhooks, the same ones each time: URL COUNT ARGS... On a busy machine a relay may answer 503, and wants them again.
send() {
  LIVECHAT_SECRET_KEY="$secret_key" "$relay" send "$1" --seed 7 --count "$2" --retries 9 --retry-wait 1s "${@:3}" >"$scratch/send" 2>&1 ||
    { cat "$scratch/send" >&2; fail "not every webhook was answered 200"; }
}

tool() { "$root/scripts/kafka.sh" tool "$@"; }

# The values of TOPIC. That nothing more comes is an error to the tool, which it logs between them.
values() {
  KAFKA_LOG_LEVEL=OFF tool console-consumer --bootstrap-server "$brokers" --topic "$1" --from-beginning \
    --isolation-level read_committed --timeout-ms 3000 2>/dev/null || true
}

# Puts a record on Kafka that is no event of the relay.
send_no_event() {
  echo 'no event' | tool console-producer --bootstrap-server "$brokers" --topic livechat.incoming_event
}

# Puts two events on Kafka as if LiveChat had changed its payloads: a text that is none, and a chat of which there is only the id.
send_changed_events() {
  send_changed incoming_event '.data.payload.event.text = { "plain": "Hello" }'
  send_changed incoming_chat '.data.payload.chat |= { id }'
}

# ACTION CHANGE
send_changed() {
  jq --compact-output "$2" "$root/contract/examples/$1.json" | sed 's/^/content-type:application\/cloudevents+json\t/' |
    tool console-producer --bootstrap-server "$brokers" --topic "livechat.$1" --reader-property parse.headers=true
}

# PostgreSQL refuses to run as root.
as_postgres() { if ((EUID == 0)); then runuser -u postgres -- "$@"; else "$@"; fi; }

start_postgresql() {
  local programs=(/usr/lib/postgresql/*/bin)
  free_port
  pg_port=$port
  mkdir -p "$scratch/pg"
  if ((EUID == 0)); then
    chmod 711 "$scratch"
    chown postgres "$scratch/pg"
  fi
  as_postgres "${programs[-1]}/initdb" -D "$scratch/pg/data" --auth trust --username livechat --encoding UTF8 >"$scratch/initdb" 2>&1 ||
    { cat "$scratch/initdb" >&2; fail 'initdb'; }
  start as_postgres "${programs[-1]}/postgres" -D "$scratch/pg/data" -p "$pg_port" -k "$scratch/pg" -c fsync=off >"$scratch/postgres" 2>&1
  await 60 'PostgreSQL starts' "$started" sql -d postgres -c 'select' || { cat "$scratch/postgres" >&2; exit 1; }
}

sql() { psql -h localhost -p "$pg_port" -U livechat -v ON_ERROR_STOP=1 -qAt "$@" 2>"$scratch/psql.stderr"; }

# Creates DATABASE with what FILE has.
create_database() {
  sql -d postgres -c "create database $1"
  sql -d "$1" -f "$2"
}

# Whether the sorted rows of a query are the lines of a file: DATABASE QUERY FILE.
table_is() {
  sql -d "$1" -c "$2" | sort >"$scratch/table"
  cmp -s "$3" "$scratch/table"
}

scratch=$(mktemp -d "${TMPDIR:-/tmp}/examples.XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
