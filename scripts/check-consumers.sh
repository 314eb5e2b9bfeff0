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
names it arrives twice with one id. Every consumer must receive all records, find all envelopes valid, handle each id
once, commit what it has handled, and leave its group at SIGTERM.

Without arguments, all languages that are in examples/consumers. A copy of each is built in target/consumers, so that the
source tree stays clean. A language whose tools are missing and can't be installed is skipped, and said; with CI set it
fails.

Environment:
  LIVECHAT_RELAY_BIN   the relay to run instead of target/debug/livechat-relay
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

# Starts the consumer: LANGUAGE GROUP EXPECT OUT.
start_consumer() {
  local to=$root/target/consumers/$1 command
  case $1 in
    java) command=(java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -jar "$to/target/consumer.jar") ;;
    python) command=("$to/venv/bin/python" "$to/consumer.py") ;;
    typescript) command=(node "$to/dist/consumer.js") ;;
    go) command=("$to/consumer") ;;
  esac
  start "${command[@]}" --brokers "$brokers" --prefix livechat. --group "$2" --expect "$3" --schema "$schema" \
    --timeout 90 --out "$4" >"$4.stdout" 2>"$4.stderr"
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

  # A relay publishes a retry once, so there may be fewer records than answers. Without transactions the end of a partition
  # is the number of its records.
  records=$("$root/scripts/kafka.sh" tool get-offsets --bootstrap-server "$brokers" --topic 'livechat\..*' |
    awk -F : '{ sum += $3 } END { print sum + 0 }')
  ((records > webhooks)) || fail "there are $records records on Kafka, after $((2 * webhooks)) answers of 200"
  timeout 60 "$relay" tail --brokers "$brokers" --from-beginning --count "$records" --json >"$scratch/tail" ||
    fail "tail showed $(wc -l <"$scratch/tail") of $records records in 60 s"
  # What a consumer writes down of a record, for every record that there is.
  jq --compact-output --sort-keys '{id: .attributes.id, type: .attributes.type, topic, partition, offset}
    + if .attributes.chatid then {chatid: .attributes.chatid} else {} end' "$scratch/tail" | sort >"$scratch/truth"
  jq --raw-output .id "$scratch/truth" | sort -u >"$scratch/ids"
  unique=$(wc -l <"$scratch/ids")
  say "on Kafka: $records records, $unique ids, $((records - unique)) duplicates"
  ((unique < records)) || fail 'nothing arrived twice with one id: derived ids differ between the two relays'
}

# Prints each thing that is wrong about the consumer's run that has ended with STATUS: STATUS OUT.
faults() {
  local out=$2 counted
  [[ $1 == 0 ]] || echo "it ended with status $1"
  counted=$(tail -n 1 "$out.stdout" | jq --compact-output '[.received, .unique, .duplicates, .invalid]' 2>/dev/null) || counted=nothing
  [[ $counted == "[$records,$unique,$((records - unique)),0]" ]] ||
    echo "it counted $counted, and not [$records,$unique,$((records - unique)),0]"
  [[ -f $out ]] || { echo 'it wrote no file'; return; }
  jq --compact-output --sort-keys . "$out" | sort >"$out.sorted"
  comm -13 "$scratch/truth" "$out.sorted" | sed -n '1,3s/^/there is no such event on Kafka: /p'
  jq --raw-output .id "$out" | sort >"$out.ids"
  uniq -d "$out.ids" | sed -n '1,3s/^/it handled twice: /p'
  comm -23 "$scratch/ids" "$out.ids" | sed -n '1,3s/^/it did not handle: /p'
}

has_lines() { [[ -f $2 ]] && (($(wc -l <"$2") >= $1)); }

# A run that SIGTERM ends while the consumer waits for more; prints what is wrong about it.
interrupt() {
  local out=$scratch/$1.sigterm pid began
  : >"$out.faults"
  start_consumer "$1" "$1.sigterm" $((records + 1)) "$out"
  pid=$started
  await 90 "$1 handles everything" "$pid" has_lines "$unique" "$out" 2>>"$out.faults" || true
  began=$SECONDS
  kill -TERM "$pid" 2>/dev/null || true
  # Whatever exit code it has: it did not see what it expected.
  finish "$pid" || true
  ((SECONDS - began <= 10)) || echo 'it took more than 10 s to stop at SIGTERM' >>"$out.faults"
}

# Writes what the brokers know of the groups: GROUP, committed offsets added up, members.
describe_groups() {
  "$root/scripts/kafka.sh" tool consumer-groups --bootstrap-server "$brokers" --describe --all-groups 2>"$scratch/describe.stderr" |
    awk '$1 != "GROUP" && NF >= 7 { if ($4 ~ /^[0-9]+$/) sum[$1] += $4; members[$1] += ($7 != "-") }
      END { for (group in members) print group, sum[group] + 0, members[group] }' >"$scratch/groups"
}

# Prints what is wrong about a group that has handled as many records as HANDLED, or more: GROUP HANDLED.
group_faults() {
  local committed=0 members=0
  read -r committed members < <(awk -v group="$1" '$1 == group { print $2, $3 }' "$scratch/groups") || true
  ((committed >= $2 && committed <= records)) || echo "group $1 has committed $committed records, not $2 to $records"
  ((members == 0)) || echo "group $1 still has members of $members partitions: it was not left"
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

if ! ensure jdk maven jq; then
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
  make_traffic
  declare -A took
  for language in "${built[@]}"; do
    say "running $language"
    out=$scratch/$language.out
    began=${EPOCHREALTIME/[.,]/} status=0
    start_consumer "$language" "$language" "$unique" "$out"
    finish "$started" || status=$?
    took[$language]=$((${EPOCHREALTIME/[.,]/} - began))
    faults "$status" "$out" >"$out.faults"
    interrupt "$language"
  done
  describe_groups

  printf '%-12s %9s %7s %11s %8s %8s\n' language received unique duplicates invalid seconds
  for language in "${built[@]}"; do
    out=$scratch/$language.out
    {
      group_faults "$language" "$records"
      group_faults "$language.sigterm" "$unique"
      cat "$scratch/$language.sigterm.faults"
    } >>"$out.faults"
    mapfile -t counts < <(tail -n 1 "$out.stdout" | jq '.received, .unique, .duplicates, .invalid' 2>/dev/null || true)
    result=ok
    if [[ -s $out.faults ]]; then result=FAIL; fi
    printf '%-12s %9s %7s %11s %8s %6s.%s  %s\n' "$language" "${counts[0]:--}" "${counts[1]:--}" "${counts[2]:--}" "${counts[3]:--}" \
      $((took[$language] / 1000000)) $((took[$language] / 100000 % 10)) "$result"
    if [[ $result == ok ]]; then
      passed=$((passed + 1))
    else
      failed=$((failed + 1))
      sed 's/^/      /' "$out.faults"
      tail -n 5 "$out.stderr" | sed 's/^/      stderr: /'
    fi
  done
fi

printf 'consumers: %s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
