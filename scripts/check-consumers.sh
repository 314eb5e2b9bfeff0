#!/usr/bin/env bash
# Runs the example consumers in every language against a real Kafka and two relays that got the same webhooks.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
examples=$root/examples/consumers
schema=$root/contract/envelope.schema.json
webhooks=300
languages=(java python typescript go)

help() {
  cat <<'EOT'
Checks that the example consumers handle each event once, whatever arrives twice.

Usage: scripts/check-consumers.sh [java] [python] [typescript] [go]

One Kafka node, two relays that share nothing but its topics, and the same webhooks sent to each: an event whose payload
names it arrives twice with one id. Two members of a group share the work; then another group reads everything again. The
effect in PostgreSQL must be that of each event once, also where LiveChat's payload is not as documented; a record that is
not a valid event must be a dead letter, and SIGTERM must end it well. TypeScript's must end where there is a new topic.

Without arguments, all languages that are in examples/consumers. A copy of each is built in target/consumers, so that the
source tree stays clean. A language whose tools are missing and can't be installed is skipped, and said; with CI set it
fails.

Environment:
  RELAY_BIN   the relay to run instead of target/debug/livechat-relay
  CI                   set: nothing is skipped

Exit codes: 0 all is well, 1 something is not, 2 the command line is wrong.
EOT
}

# shellcheck source=scripts/live.sh
. "$root/scripts/live.sh"

# Whether the tools of LANGUAGE are there, having tried to get them.
tools_of() {
  case $1 in
    java) ensure jdk maven ;;
    python)
      has python3 || ensure python3 || return
      # Debian parts venv from python3, and it is no command: ensure.sh installs it, and then misses it all the same.
      has_venv || "$root/scripts/ensure.sh" python3-venv >/dev/null 2>&1 || has_venv ||
        { say "missing: python3's venv; run: apt-get install python3-venv"; return 1; }
      ;;
    # Debian's package of node is nodejs, elsewhere the command alone is there.
    typescript) { has node && has npm; } || ensure nodejs npm ;;
    # Debian's Go is older than what go.mod wants.
    go) ensure --check go ;;
  esac
}

has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

# Builds LANGUAGE in target/consumers/LANGUAGE, where nothing of the last build is left but what was fetched.
build() {
  local to=$root/target/consumers/$1
  mkdir -p "$to"
  find "$to" -mindepth 1 -maxdepth 1 ! -name venv ! -name node_modules ! -name '.lock-*' -exec rm -rf {} +
  tar -C "$examples/$1" --exclude=./target --exclude=./node_modules --exclude=./.venv --exclude=./dist -cf - . | tar -C "$to" -xf -
  cd "$to"
  # The types are copied, as README says.
  case $1 in
    java) install -D -m 644 "$root/contract/types/LiveChat.java" src/main/java/livechat/LiveChat.java ;;
    python) cp "$root/contract/types/livechat.py" . ;;
    typescript)
      cp "$root/contract/types/livechat.ts" src
      sed -i 's/^const LIST_EVERY_MS = .*/const LIST_EVERY_MS = 1_000;/' src/consumer.ts # instead of 5 minutes
      ;;
    go) install -D -m 644 "$root/contract/types/livechat.go" livechat/livechat.go ;;
  esac
  case $1 in
    java) mvn --batch-mode --quiet -Dstyle.color=never package ;;
    python)
      fresh requirements.txt || {
        rm -rf venv
        python3 -m venv venv
        venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.txt
        fetched requirements.txt
      }
      ;;
    typescript)
      fresh package-lock.json || {
        npm ci --no-audit --no-fund
        fetched package-lock.json
      }
      npm run build --if-present
      ;;
    go) go build -o consumer . ;;
  esac
}

# Whether FILE, which names the dependencies, is the one that they were fetched for.
fresh() { cmp -s "$1" ".lock-$1"; }
fetched() { cp "$1" ".lock-$1"; }

# Starts a member of GROUP that writes to the database of LANGUAGE: LANGUAGE GROUP NAME.
start_consumer() {
  local to=$root/target/consumers/$1 url="postgresql://localhost:$pg_port/$1?user=livechat&password=any&sslmode=disable" command
  case $1 in
    java)
      command=(java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -jar "$to/target/consumer.jar")
      url=jdbc:$url
      ;;
    python) command=("$to/venv/bin/python" "$to/consumer.py") ;;
    typescript) command=(node "$to/dist/consumer.js") ;;
    go) command=("$to/consumer") ;;
  esac
  start "${command[@]}" --brokers "$brokers" --prefix livechat. --group "$2" --schema "$schema" \
    --database "$url" --dead-letters dead-letters >"$scratch/$3" 2>&1
}

# Sends the traffic through two relays, and learns what is on Kafka by the relay's own `tail`.
make_traffic() {
  local one two pid_one pid_two
  say 'starting two relays, and sending the same webhooks to each'
  start_relay one
  one="$webhooks_url $admin" pid_one=$started
  start_relay two
  two="$webhooks_url $admin" pid_two=$started
  await 90 'relay one is ready' "$pid_one" is_ready "${one#* }" || { cat "$scratch/one" >&2; exit 1; }
  await 90 'relay two is ready' "$pid_two" is_ready "${two#* }" || { cat "$scratch/two" >&2; exit 1; }
  send "${one% *}" "$webhooks"
  send "${two% *}" "$webhooks"
  kill -TERM "$pid_one" "$pid_two"
  finish "$pid_one" || { cat "$scratch/one" >&2; fail 'relay one did not stop well'; }
  finish "$pid_two" || { cat "$scratch/two" >&2; fail 'relay two did not stop well'; }

  send_changed_events
  # A relay publishes a retry once, so there may be fewer records than answers. Without transactions the end of a partition
  # is the number of its records.
  records=$("$root/scripts/kafka.sh" tool get-offsets --bootstrap-server "$brokers" --topic 'livechat\..*' |
    awk -F : '{ sum += $3 } END { print sum + 0 }')
  ((records > webhooks)) || fail "there are $records records on Kafka, after $((2 * webhooks)) answers of 200"
  timeout 60 "$relay" tail --brokers "$brokers" --from-beginning --count "$records" --json >"$scratch/tail" ||
    fail "tail showed $(wc -l <"$scratch/tail") of $records records in 60 s"
  jq --raw-output '.attributes.id' "$scratch/tail" | sort -u >"$scratch/ids"
  # What the consumers must have added up: of each chat its events, each once.
  jq --raw-output --slurp 'map(.attributes | select(.chatid)) | unique_by(.id) | group_by(.chatid)[] | "\(.[0].chatid)|\(length)"' \
    "$scratch/tail" | sort >"$scratch/chats"
  # And what was said, each once: the text itself may have several lines.
  jq --raw-output --slurp 'map(select(.attributes.type == "com.livechat.incoming_event")) | unique_by(.attributes.id)[]
    | .attributes.chatid as $chat | .data.payload.event | select(.text | strings)
    | "\($chat)|\(.id)|\(.text | length)"' "$scratch/tail" | sort >"$scratch/messages"
  unique=$(wc -l <"$scratch/ids")
  say "on Kafka: $records records, $unique ids, $((records - unique)) duplicates"
  [[ -s $scratch/messages ]] || fail 'nothing was said in a chat'
  ((unique < records)) || fail 'nothing arrived twice with one id: derived ids differ between the two relays'
  send_no_event
  records=$((records + 1))
}

has_every_id() { table_is "$1" 'select id from inbox' "$scratch/ids"; }

# How the last table asked for differs from what it should have: TABLE FILE.
show_difference() { diff "$2" "$scratch/table" | sed -n "2,5s/^/table $1: /p" || true; }

# Ends a consumer, and prints what is wrong about how it ended: LANGUAGE PID NAME.
stop_consumer() {
  local began=$SECONDS status=0
  kill -TERM "$2" 2>/dev/null || true
  finish "$2" || status=$?
  # A JVM that has run its hooks reports the signal.
  if [[ $1 == java && $status == 143 ]]; then status=0; fi
  ((status == 0)) || { echo "$3 ended with status $status:"; tail -n 5 "$scratch/$3"; }
  ((SECONDS - began <= 10)) || echo "$3 took more than 10 s to stop at SIGTERM"
}

# Two members of a group share the work, so that partitions move while it is done. Prints what is wrong.
share_work() {
  local one two
  start_consumer "$1" "$1" "$1.one"
  one=$started
  start_consumer "$1" "$1" "$1.two"
  two=$started
  await 90 "$1 handles everything" "$one" has_every_id "$1" 2>&1 || true
  stop_consumer "$1" "$one" "$1.one"
  stop_consumer "$1" "$two" "$1.two"
}

# Writes what the brokers know of the groups: GROUP, committed offsets added up, members.
describe_groups() {
  "$root/scripts/kafka.sh" tool consumer-groups --bootstrap-server "$brokers" --describe --all-groups 2>"$scratch/describe.stderr" |
    awk '$1 != "GROUP" && NF >= 7 { if ($4 ~ /^[0-9]+$/) sum[$1] += $4; members[$1] += ($7 != "-") }
      END { for (group in members) print group, sum[group] + 0, members[group] }' >"$scratch/groups"
}

# Whether the groups that read everything again have committed every record.
have_read_again() {
  local language
  describe_groups
  for language in "${built[@]}"; do
    grep -q "^$language.again $records " "$scratch/groups" || return 1
  done
}

# The client of TypeScript knows no patterns: its program ends where there is a new topic. Prints what is wrong: PID.
end_at_new_topic() {
  local status=0
  tool topics --bootstrap-server "$brokers" --create --topic livechat.added >/dev/null
  if await 30 'typescript sees a new topic' $$ grep -q 'new topics: livechat.added' "$scratch/typescript.again" 2>&1; then
    finish "$1" || status=$?
    ((status == 1)) || echo "typescript ended with status $status at a new topic"
  else
    stop_consumer typescript "$1" typescript.again
  fi
}

chosen=()
for argument in "$@"; do
  case $argument in
    java | python | typescript | go) chosen+=("$argument") ;;
    -h | --help) help; exit 0 ;;
    *) say "error: there is no language \`$argument\`"; help >&2; exit 2 ;;
  esac
done
for language in "${chosen[@]}"; do
  [[ -d $examples/$language ]] || fail "there is no $examples/$language"
done
if ((${#chosen[@]} == 0)); then
  for language in "${languages[@]}"; do
    if [[ -d $examples/$language ]]; then chosen+=("$language"); fi
  done
fi


[[ -x $relay ]] || fail "there is no $relay; build it with: cargo build --locked"
[[ -f $schema ]] || fail "there is no $schema"
passed=0 failed=0 skipped=0 built=()

# What a missing tool means.
lacking() {
  if [[ -n ${CI:-} ]]; then
    say "FAIL  $1: tools are missing, and CI is set"
    failed=$((failed + 1))
  else
    say "skip  $1: tools are missing"
    skipped=$((skipped + 1))
  fi
}

if ! ensure jdk maven jq postgresql; then
  for language in "${chosen[@]}"; do lacking "$language"; done
  chosen=()
fi
for language in "${chosen[@]}"; do
  if ! tools_of "$language"; then
    lacking "$language"
    continue
  fi
  say "building $language"
  start build "$language" >"$scratch/$language.build" 2>&1
  if finish "$started"; then
    built+=("$language")
  else
    say "FAIL  $language does not build:"
    sed 's/^/      /' "$scratch/$language.build" >&2
    failed=$((failed + 1))
  fi
done

if ((${#built[@]})); then
  start_kafka
  start_postgresql
  make_traffic
  tool topics --bootstrap-server "$brokers" --create --topic dead-letters >/dev/null
  for language in "${built[@]}"; do
    say "running $language"
    create_database "$language" "$examples/inbox.sql"
    share_work "$language" >"$scratch/$language.faults"
  done

  say 'reading everything again'
  again=()
  for language in "${built[@]}"; do
    start_consumer "$language" "$language.again" "$language.again"
    again+=("$started")
  done
  await 120 'all have read everything again' "${again[0]}" have_read_again || true
  for i in "${!built[@]}"; do
    case ${built[i]} in
      typescript) end_at_new_topic "${again[i]}" ;;
      *) stop_consumer "${built[i]}" "${again[i]}" "${built[i]}.again" ;;
    esac >>"$scratch/${built[i]}.faults"
  done
  describe_groups
  for language in "${built[@]}"; do
    {
      has_every_id "$language" || show_difference inbox "$scratch/ids"
      table_is "$language" 'select * from chats' "$scratch/chats" || show_difference chats "$scratch/chats"
      table_is "$language" 'select chat_id, event_id, char_length(text) from messages' "$scratch/messages" ||
        show_difference messages "$scratch/messages"
      grep -q "^$language.again $records " "$scratch/groups" || echo "the second group has not committed $records records"
      awk -v one="$language" -v two="$language.again" '($1 == one || $1 == two) && $3 > 0 { print "the group", $1, "was not left" }' \
        "$scratch/groups"
      # Each group has met it, and the dead letter is there before the offset is committed.
      grep -q 'dead letter: livechat.incoming_event' "$scratch/$language.again" || echo 'what is not a valid event is no dead letter'
    } >>"$scratch/$language.faults"
    result=ok
    if [[ -s $scratch/$language.faults ]]; then result=FAIL; fi
    printf '%-5s %s\n' "$result" "$language"
    if [[ $result == ok ]]; then
      passed=$((passed + 1))
    else
      failed=$((failed + 1))
      sed 's/^/      /' "$scratch/$language.faults"
    fi
  done
  values dead-letters | sort | uniq -c >"$scratch/dead-letters"
  read -r count text <"$scratch/dead-letters" || true
  if [[ $(wc -l <"$scratch/dead-letters") != 1 || $text != 'no event' || $count -lt ${#built[@]} ]]; then
    say 'FAIL  the dead-letter topic has not one record or more of each language, as it was:'
    cat "$scratch/dead-letters" >&2
    failed=$((failed + 1))
  fi
fi

printf 'consumers: %s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
