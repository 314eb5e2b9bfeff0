#!/usr/bin/env bash
# Runs examples/transcripts and examples/connect against a real Kafka, the real relay and a real PostgreSQL.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
webhooks=300

help() {
  cat <<'EOT'
Checks what is derived from the relay's events: transcripts by Kafka Streams, tables and files by Kafka Connect.

Usage: scripts/check-derived.sh

One Kafka node, two relays that get the same webhooks, so that many events are there twice. examples/transcripts is killed in
the middle, loses its state directory, and must still write exactly the transcripts that follow from what is on Kafka; its
unit tests run, too. A Kafka Connect worker then runs the configurations of examples/connect: PostgreSQL must have each event
once and each transcript, and the file every record.

What is built lies in target/derived. Missing tools are installed with scripts/ensure.sh.

Environment:
  RELAY_BIN   the relay to run instead of target/debug/livechat-relay

Exit codes: 0 all is well, 1 something is not, 2 the command line is wrong.
EOT
}

case ${1:-} in
  '') ;;
  -h | --help) help; exit 0 ;;
  *) echo "error: there is no argument \`$1\`" >&2; help >&2; exit 2 ;;
esac

# shellcheck source=scripts/live.sh
. "$root/scripts/live.sh"
# shellcheck source=scripts/checks.sh
. "$root/scripts/checks.sh"

# Builds a copy of examples/NAME in target/derived/NAME, so that the source tree stays clean.
build() {
  local to=$root/target/derived/$1
  rm -rf "$to"
  mkdir -p "$to"
  tar -C "$root/examples/$1" --exclude=./target -cf - . | tar -C "$to" -xf -
  # The types are copied, as README says; Connect needs none.
  [[ $1 == connect ]] || install -D -m 644 "$root/contract/types/LiveChat.java" "$to/src/main/java/livechat/LiveChat.java"
  say "building $1"
  (cd "$to" && mvn --batch-mode -Dstyle.color=never package) >"$scratch/$1.build" 2>&1 ||
    { grep -v '^\sat ' "$scratch/$1.build" | tail -n 40 >&2; fail "$1 does not build"; }
  grep -h 'Tests run:.*[0-9]$' "$scratch/$1.build" >&2 || true
}

# Starts examples/transcripts with a state directory of its own: NAME. It is to publish after it was killed, not before.
start_transcripts() {
  cat >"$scratch/transcripts.properties" <<EOT
bootstrap.servers=$brokers
state.dir=$scratch/$1
transcripts.grace.seconds=15
# The one that is killed does not say so: the brokers wait this long for it.
session.timeout.ms=6000
EOT
  start java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -jar "$root/target/derived/transcripts/target/transcripts.jar" \
    "$scratch/transcripts.properties" >"$scratch/transcripts.log" 2>&1
}

has_state() {
  tool get-offsets --bootstrap-server "$brokers" --topic transcripts-threads-changelog 2>/dev/null |
    awk -F : '{ sum += $3 } END { exit sum == 0 }'
}

# Traffic through both relays, and examples/transcripts killed while it reads.
make_traffic() {
  local url_one url_two pid_one pid_two sending pid
  start_relay one
  url_one=$webhooks_url pid_one=$started
  await 90 'relay one is ready' "$pid_one" is_ready "$admin" || { cat "$scratch/one" >&2; exit 1; }
  start_relay two
  url_two=$webhooks_url pid_two=$started
  await 90 'relay two is ready' "$pid_two" is_ready "$admin" || { cat "$scratch/two" >&2; exit 1; }

  say 'sending webhooks, and killing transcripts in the middle'
  send "$url_two" "$webhooks"
  start_transcripts state
  pid=$started
  # The duplicates come now, so that what it knew when it was killed does not come again: it must have kept it.
  send "$url_one" "$webhooks" --rate 60 &
  sending=$!
  await 90 'transcripts has state' "$pid" has_state || { cat "$scratch/transcripts.log" >&2; exit 1; }
  kill -KILL -- "-$pid"
  finish "$pid" 2>/dev/null || true
  wait "$sending" || exit 1
  start_transcripts state-restored
  transcripts=$started
  kill -TERM "$pid_one" "$pid_two"
  finish "$pid_one" || { cat "$scratch/one" >&2; fail 'relay one did not stop well'; }
  finish "$pid_two" || { cat "$scratch/two" >&2; fail 'relay two did not stop well'; }
}

# What the transcripts must be, by what is on Kafka: of each thread that has begun and ended, its messages and more.
expect() {
  local records
  records=$(tool get-offsets --bootstrap-server "$brokers" --topic 'livechat\..*' | awk -F : '{ sum += $3 } END { print sum }')
  timeout 60 "$relay" tail --brokers "$brokers" --from-beginning --count "$records" --json >"$scratch/tail" ||
    fail "tail showed $(wc -l <"$scratch/tail") of $records events in 60 s"
  jq --slurp --compact-output --sort-keys '
    map(select(.attributes.threadid)) | group_by([.attributes.chatid, .attributes.threadid])[]
    | (map(select(.attributes.type == "com.livechat.incoming_chat").data.payload.chat)) as $begun
    | (map(select(.attributes.type == "com.livechat.incoming_event").data.payload.event)) as $said
    | select(any(.attributes.type == "com.livechat.chat_deactivated") and ($begun | length > 0))
    | {chat_id: .[0].attributes.chatid, thread_id: .[0].attributes.threadid, queue_seconds: $begun[0].thread.queues_duration,
       tags: $begun[0].thread.tags, customer: ($begun[0].users[] | select(.type == "customer") | .id), ended: true,
       messages: ([$begun[].thread.events[], $said[]] | map({id, type, text}) | unique)}' "$scratch/tail" >"$scratch/expected"
  threads=$(wc -l <"$scratch/expected")
  ((threads > 0)) || fail 'no thread has begun and ended: nothing is tested'
}

# The last record of each thread, as far as `expect` has it.
read_transcripts() {
  values transcripts >"$scratch/records"
  jq --slurp --compact-output --sort-keys 'group_by([.chat_id, .thread_id])[] | last
    | {chat_id, thread_id, queue_seconds, tags, customer: .customer.id, ended: (.ended_at != null),
       messages: (.messages | map({id, type, text}) | unique)}' "$scratch/records" >"$scratch/transcripts"
}

are_as_expected() { read_transcripts && cmp -s "$scratch/expected" "$scratch/transcripts"; }

in_order() { jq --exit-status --slurp 'all(.messages | [.[].at] == ([.[].at] | sort))' "$scratch/records"; }

has_dead_letter() { [[ $(values transcripts.dead-letter) == 'no event' ]]; }

# The worker with the configurations of examples/connect, but for where things are.
start_connect() {
  local name
  free_port
  for name in worker events-to-postgresql transcripts-to-postgresql events-to-file; do
    sed -e "s,localhost:9092,$brokers," -e "s,localhost:8083,localhost:$port," -e "s,localhost:5432,localhost:$pg_port," \
      -e "s,/tmp/,$scratch/," "$root/examples/connect/$name.properties" >"$scratch/$name.properties"
  done
  start java -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dlog4j2.configurationFile="$root/scripts/kafka/log4j2.properties" \
    -cp "$root/target/derived/connect/target/libs/*" org.apache.kafka.connect.cli.ConnectStandalone "$scratch/worker.properties" \
    "$scratch"/events-to-postgresql.properties "$scratch"/transcripts-to-postgresql.properties "$scratch"/events-to-file.properties \
    >"$scratch/connect" 2>&1
}

# Every record but one is an event.
file_has_every_record() {
  local records
  records=$(($(wc -l <"$scratch/tail") + 1))
  [[ -f $scratch/events.jsonl && $(wc -l <"$scratch/events.jsonl") == "$records" ]]
}

# Waits for what Connect is to write, and shows what it and the database said where that does not come: COMMAND ARGS...
written() {
  await 90 "$1" "$connect" "$@" && return
  grep -E 'ERROR|Caused by' "$scratch/connect" | head -n 20
  tail -n 5 "$scratch/postgres" "$scratch/psql.stderr"
  return 1
}

ensure jdk maven jq postgresql
[[ -x $relay ]] || fail "there is no $relay; build it with: cargo build --locked"
build transcripts
build connect
start_kafka
make_traffic
expect
say "on Kafka: $(wc -l <"$scratch/tail") events; $threads threads have begun and ended"
send_no_event
check 'each thread that has begun and ended has its transcript' await 90 'the transcripts' "$transcripts" are_as_expected
((failed == 0)) || { diff "$scratch/expected" "$scratch/transcripts" | cut -c 1-600 >&2 || true; cat "$scratch/transcripts.log" >&2; }
check 'the messages are in order' in_order
check 'what is no event is on the dead-letter topic' await 60 'the dead letter' "$transcripts" has_dead_letter
status=0
kill -TERM -- "-$transcripts"
finish "$transcripts" || status=$?
check 'transcripts stops at SIGTERM' test "$status" = 143

say 'starting PostgreSQL and Kafka Connect'
start_postgresql
create_database livechat "$root/examples/connect/postgresql.sql"
jq --raw-output '.attributes.id' "$scratch/tail" | sort -u >"$scratch/ids"
jq --raw-output '[.chat_id, .thread_id] | join("/")' "$scratch/expected" | sort >"$scratch/thread-keys"
start_connect
connect=$started
check 'the table events has each event once' written table_is livechat 'select id from events' "$scratch/ids"
check 'the table transcripts has each transcript' \
  written table_is livechat "select chat_id || '/' || thread_id from transcripts" "$scratch/thread-keys"
echo 'no event' >"$scratch/refused"
check 'what is no event is in the table refused' written table_is livechat 'select value from refused' "$scratch/refused"
check 'the inboxes are empty' table_is livechat 'select from events_inbox union all select from transcripts_inbox' /dev/null
check 'the file has every record' written file_has_every_record
printf 'derived: %s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
