#!/usr/bin/env bash
# Gets a real Apache Kafka from Maven's jars, runs one node of it, and runs its console tools: no Docker, nothing installed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
pom=$root/scripts/kafka/pom.xml
version=$(sed -n 's:.*<kafka\.version>\(.*\)</kafka\.version>.*:\1:p' "$pom")

help() {
  cat <<EOF
Apache Kafka $version for tests and demos, out of the jars in Maven's repository.

Usage: scripts/kafka.sh COMMAND

  fetch               get the jars once, into target/kafka/$version/libs, and print that directory
  run [--port 9092]   run one node on localhost until Ctrl-C; its data is temporary
                      (the port above it, 9093, is taken too, for the controller)
  tool NAME ARGS...   run a console tool, for instance:
                        scripts/kafka.sh tool topics --bootstrap-server localhost:9092 --list
                        scripts/kafka.sh tool console-consumer --bootstrap-server localhost:9092 --topic t --from-beginning
  tool                list the tools

Environment:
  KAFKA_HOME        an unpacked Kafka distribution to use instead; nothing is downloaded then
  KAFKA_LOG_LEVEL   what the node and the tools log: WARN unless told, INFO to follow what they do
EOF
}

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

need_java() {
  "$root/scripts/ensure.sh" --check jdk || exit 1
}

# Prints the directory of the jars, having got them. Neither Ctrl-C nor a second fetch at the same time leaves it half filled:
# the jars arrive in a temporary directory, which is then renamed.
fetch() {
  need_java
  if [[ -n ${KAFKA_HOME:-} ]]; then
    [[ -d $KAFKA_HOME/libs ]] || fail "KAFKA_HOME is \`$KAFKA_HOME\`, which has no libs directory"
    printf '%s\n' "$KAFKA_HOME/libs"
    return
  fi
  local kept=$root/target/kafka/$version
  if [[ ! -d $kept ]]; then
    "$root/scripts/ensure.sh" --check maven || exit 1
    say "fetching Kafka $version (about 45 MB, once)"
    mkdir -p "$root/target/kafka"
    fetching=$(mktemp -d "$root/target/kafka/fetch.XXXXXX")
    trap 'rm -rf "$fetching"' EXIT
    mvn --batch-mode --quiet -Dstyle.color=never --file "$pom" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$fetching/libs" >&2 || fail "maven could not fetch Kafka $version, see above"
    chmod 755 "$fetching"
    # Where another fetch was faster, mv puts ours inside its directory instead: not needed then.
    mv "$fetching" "$kept"
    rm -rf "${kept:?}/${fetching##*/}"
  fi
  printf '%s\n' "$kept/libs"
}

# Becomes a JVM with Kafka on its class path: HEAP, then the class and its arguments.
java_exec() {
  local heap=$1
  shift
  exec java "-Xmx$heap" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    "-Dlog4j2.configurationFile=$root/scripts/kafka/log4j2.properties" "-Dkafka.log.level=${KAFKA_LOG_LEVEL:-WARN}" \
    -cp "$libs/*" "$@"
}

is_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

run() {
  local port=9092
  while (($#)); do
    case $1 in
      --port) port=${2:-}; shift; (($#)) && shift ;;
      --port=*) port=${1#*=}; shift ;;
      *) fail "\`run\` knows no \`$1\`, see scripts/kafka.sh --help" ;;
    esac
  done
  if ! [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65534)); then
    fail "\`--port\` wants a number from 1 to 65534, not \`$port\`"
  fi
  local controller=$((port + 1)) wanted
  for wanted in "$port" "$controller"; do
    if is_open "$wanted"; then
      fail "port $wanted is taken by another program (is a Kafka running already?); choose with: scripts/kafka.sh run --port N"
    fi
  done
  libs=$(fetch | tail -n 1)
  [[ -d $libs ]] || exit 1

  data=$(mktemp -d "${TMPDIR:-/tmp}/kafka.XXXXXX")
  trap 'rm -rf "$data"' EXIT
  cat >"$data/server.properties" <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@localhost:$controller
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://localhost:$port,CONTROLLER://localhost:$controller
advertised.listeners=PLAINTEXT://localhost:$port
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$data/log
auto.create.topics.enable=false
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
EOF
  (java_exec 256m kafka.tools.StorageTool format --cluster-id "$cluster_id" --config "$data/server.properties") >"$data/format" 2>&1 ||
    { cat "$data/format" >&2; fail "Kafka could not format \`$data\`, see above"; }

  mkfifo "$data/said"
  # A job of its own has SIGINT ignored: at Ctrl-C only the trap stops the JVM, once, and the loop below ends when the JVM does.
  (java_exec 512m kafka.Kafka "$data/server.properties") >"$data/said" 2>&1 &
  node=$!
  stopping=
  trap 'stopping=yes; kill -TERM "$node" 2>/dev/null || true' INT TERM HUP
  local line
  while IFS= read -r line; do
    case $line in
      *'] Kafka Server started '*) printf 'Kafka %s is ready on localhost:%s; Ctrl-C stops it and removes its data\n' "$(running)" "$port" ;;
      *) printf '%s\n' "$line" ;;
    esac
  done <"$data/said"
  local status=0
  wait "$node" || status=$?
  [[ -n $stopping ]] || fail "Kafka ended by itself with status $status"
}

# The version of the jars in use: KAFKA_HOME may hold another one than ours.
running() {
  local jar
  for jar in "$libs"/kafka_2.13-*.jar; do
    jar=${jar##*/kafka_2.13-}
    printf '%s' "${jar%.jar}"
    return
  done
}

tools() {
  cat <<'EOF'
acls                 org.apache.kafka.tools.AclCommand
broker-api-versions  org.apache.kafka.tools.BrokerApiVersionsCommand
cluster              org.apache.kafka.tools.ClusterTool
configs              kafka.admin.ConfigCommand
console-consumer     org.apache.kafka.tools.consumer.ConsoleConsumer
console-producer     org.apache.kafka.tools.ConsoleProducer
consumer-groups      org.apache.kafka.tools.consumer.group.ConsumerGroupCommand
delete-records       org.apache.kafka.tools.DeleteRecordsCommand
dump-log             org.apache.kafka.tools.DumpLogSegments
features             org.apache.kafka.tools.FeatureCommand
get-offsets          org.apache.kafka.tools.GetOffsetShell
leader-election      org.apache.kafka.tools.LeaderElectionCommand
log-dirs             org.apache.kafka.tools.LogDirsCommand
metadata-quorum      org.apache.kafka.tools.MetadataQuorumCommand
producer-perf-test   org.apache.kafka.tools.ProducerPerformance
reassign-partitions  org.apache.kafka.tools.reassign.ReassignPartitionsCommand
storage              kafka.tools.StorageTool
topics               org.apache.kafka.tools.TopicCommand
transactions         org.apache.kafka.tools.TransactionsCommand
EOF
}

tool() {
  local class
  class=$(tools | awk -v name="${1:-}" '$1 == name { print $2 }')
  if [[ -z $class ]]; then
    (($#)) && say "error: there is no tool \`$1\`"
    say "the tools:"
    tools | awk '{ print "  " $1 }' >&2
    exit 2
  fi
  shift
  libs=$(fetch | tail -n 1)
  [[ -d $libs ]] || exit 1
  java_exec 256m "$class" "$@"
}

# Any cluster id will do: 16 bytes in base64 without padding.
cluster_id=bGl2ZWNoYXQtcmVsYXk0Mg

command=${1:-}
(($#)) && shift
case $command in
  fetch | run | tool) "$command" "$@" ;;
  -h | --help | help) help ;;
  '') help >&2; exit 2 ;;
  *) say "error: there is no command \`$command\`"; help >&2; exit 2 ;;
esac
