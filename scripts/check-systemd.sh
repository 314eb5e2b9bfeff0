#!/usr/bin/env bash
# Runs the units in deploy/systemd/ under a systemd of their own: PID 1 of a container that unshare(1) makes, with nothing else in it.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

help() {
  cat <<'EOT'
Runs the units in deploy/systemd/ under a systemd of their own, without a Kafka: start, state, webhooks through the sockets,
restarts, reload, watchdog, a stop that drains. Takes about half a minute.

Usage: scripts/check-systemd.sh

Wants root, Linux namespaces, and Debian's systemd and curl, which scripts/ensure.sh gets; and the relay, which has been built.
Nothing is installed: the container writes to a layer in memory.
Exit codes: 0 nothing was found, 1 something was, 2 it cannot be tried here.
EOT
}

say() { printf '%s\n' "$*" >&2; }

# Becomes the container's systemd: file systems of its own, the relay and its files where deploy/README.md puts them.
inside() {
  local scratch=$1 relay=$2 tree
  ip link set lo up
  mount --make-rprivate /
  mount -t tmpfs tmpfs /run
  mkdir -p /run/systemd/system /run/lock
  umount -R /sys/fs/cgroup
  if [[ -d $scratch/hybrid ]]; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/{systemd,unified}
    mount -t cgroup -o none,name=systemd,xattr cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
  else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
  fi
  mkdir "$scratch/layer"
  mount -t tmpfs tmpfs "$scratch/layer"
  for tree in etc var usr/local; do
    mkdir -p "$scratch/layer/$tree"/{upper,work}
    mount -t overlay overlay -o "lowerdir=/$tree,upperdir=$scratch/layer/$tree/upper,workdir=$scratch/layer/$tree/work" "/$tree"
  done
  install -m 755 "$relay" /usr/local/bin/livechat-relay
  install -D -m 644 "$scratch/relay.toml" /etc/livechat-relay/relay.toml
  install -d -m 700 /var/lib/private /var/lib/private/livechat-relay /var/lib/private/livechat-relay/keys{,/default}
  printf %s "$key" | install -m 600 /dev/stdin /var/lib/private/livechat-relay/keys/default/2026-11
  mount --bind "$scratch/console" /dev/console
  exec env -i container=check-systemd PATH=/usr/bin:/bin:/usr/sbin:/sbin SYSTEMD_UNIT_PATH="$scratch/units" \
    /lib/systemd/systemd --system --log-target=console --show-status=no
}

key=the-secret-key-of-check-systemd
body='{"secret_key":"'$key'","action":"incoming_event","organization_id":"1","payload":{"chat_id":"C"}}'

# In the container: COMMAND ARGS...
within() { nsenter -t "$systemd" -a "$@"; }
post() { within curl -s -o /dev/null -m 30 -w '%{http_code}\n' -H 'content-type: application/json' -d "$body" http://127.0.0.1:443/webhooks; }
of_unit() { within systemctl show -p "$1" --value livechat-relay.service; }

# COMMAND ARGS... succeeds within 30 s.
await() {
  local deadline=$((SECONDS + 30))
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || { "$@"; return 1; }
    sleep 0.2
  done
}

is_ready() { [[ $(of_unit StatusText) == ready ]]; }
# With what the relay has said where it fails.
starts() { { within systemctl start livechat-relay.socket livechat-relay.service && await is_ready; } || { cat "$scratch/relay.log"; return 1; }; }
takes_webhooks() { [[ $(post) == 200 ]] && within livechat-relay health --address 127.0.0.1:8081; }
key_is_the_services() { within stat -c %U:%a /var/lib/private/livechat-relay/keys/default/2026-11 | grep -Fx livechat-relay:600; }
reloads() { within systemctl reload livechat-relay.service && await is_ready; }

restarts() {
  local posts
  (for _ in {1..40}; do post || break; done >"$scratch/posted") &
  posts=$!
  within systemctl restart livechat-relay.service
  within systemctl restart livechat-relay.service
  wait "$posts"
  sort "$scratch/posted" | uniq -c
  [[ $(grep -cFx 200 "$scratch/posted") == 40 ]]
}

another_process() {
  local main
  main=$(of_unit MainPID) # once: between two looks it may end
  [[ $main != 0 && $main != "$1" ]]
}
watchdog_restarts() {
  local main
  main=$(of_unit MainPID)
  within kill -STOP "$main"
  if await another_process "$main" && await is_ready && [[ $(of_unit NRestarts) == 1 ]]; then return; fi
  within systemctl show -p NRestarts,ActiveState,SubState,Result,ExecMainStatus,StatusText livechat-relay.service
  tail -5 "$scratch/relay.log" "$scratch/console"
  return 1
}

# TimeoutStopSec= is 1 s here and the spool is not empty: without EXTEND_TIMEOUT_USEC= systemd would kill it.
drains() {
  local began=$SECONDS
  within systemctl stop livechat-relay.socket livechat-relay.service
  echo "it took $((SECONDS - began)) s: $(of_unit Result)"
  ((SECONDS - began >= 4)) && [[ $(of_unit Result) == success ]]
}

case ${1:-} in
  '') ;;
  --inside) inside "$2" "$3" ;;
  -h | --help) help; exit 0 ;;
  *) say "error: there is no option \`$1\`"; help >&2; exit 2 ;;
esac

relay=$root/target/release/livechat-relay
[[ -x $relay ]] || relay=$root/target/debug/livechat-relay
((EUID == 0)) || { say "error: only root can make the container"; exit 2; }
[[ -x $relay ]] || { say "error: run make release first"; exit 2; }
"$root/scripts/ensure.sh" systemd-analyze curl nsenter || exit 2

scratch=$(mktemp -d)
cgroups=()
# shellcheck disable=SC2317 # called by trap
clean_up() {
  if [[ -n ${systemd:-} ]]; then kill -KILL "$systemd" 2>/dev/null || true; fi
  wait
  for cgroup in "${cgroups[@]}"; do find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap clean_up EXIT

mkdir -p "$scratch/units/livechat-relay.service.d"
touch "$scratch/console"
cp "$root"/deploy/systemd/*.{service,socket} "$scratch/units/"
# So that it does not take minutes; the rest is as it is installed.
printf '[Service]\nStandardError=append:%s\nWatchdogSec=4s\nTimeoutStopSec=1s\nExecStart=\n%s --drain\n' "$scratch/relay.log" \
  "$(grep ^ExecStart= "$root/deploy/systemd/livechat-relay.service")" >"$scratch/units/livechat-relay.service.d/check.conf"
for target in default basic sysinit sockets network-online shutdown; do
  printf '[Unit]\nDefaultDependencies=no\n' >"$scratch/units/$target.target"
done
cat >"$scratch/relay.toml" <<EOT
kafka.brokers = "127.0.0.1:1"
[spool]
directory = "/var/lib/livechat-relay/spool"
free_min = "0"
drain_timeout = "4s"
[[apps]]
name = "default"
secret_keys = [{ name = "2026-11", file = "/var/lib/livechat-relay/keys/default/2026-11" }]
EOT

# A cgroup of its own, so that its systemd sees none of the machine's.
if [[ -d /sys/fs/cgroup/unified ]]; then
  mkdir "$scratch/hybrid"
  cgroups=(/sys/fs/cgroup/{systemd,unified}/check-systemd."$$")
else
  cgroups=(/sys/fs/cgroup/check-systemd."$$")
fi
(
  for cgroup in "${cgroups[@]}"; do mkdir "$cgroup" && echo "$BASHPID" >"$cgroup/cgroup.procs"; done
  exec unshare --mount --pid --cgroup --uts --ipc --net --fork --kill-child --mount-proc "$0" --inside "$scratch" "$relay"
) >"$scratch/log" 2>&1 &
unshare=$!
deadline=$((SECONDS + 30))
until systemd=$(pgrep -P "$unshare" -f '^/lib/systemd/systemd --system') && within systemctl show -p Version >/dev/null 2>&1; do
  if ((SECONDS > deadline)) || ! kill -0 "$unshare" 2>/dev/null; then
    cat "$scratch/log" >&2
    say "error: no systemd can be run here"
    exit 2
  fi
  sleep 0.2
done

# shellcheck source=scripts/checks.sh
. "$root/scripts/checks.sh"
check 'it starts without a Kafka, and its status is what /readyz says' starts
check 'a webhook on port 443 is answered 200, and /readyz says ready' takes_webhooks
check 'the secret key was given to the user of the service' key_is_the_services
check 'two restarts at once refuse no webhook' restarts
if "$relay" reload --help >/dev/null 2>&1; then
  check 'it reloads' reloads
else
  printf 'skip  it reloads: the relay has no such command\n'
  skipped=$((skipped + 1))
fi
check 'a process that is stuck is killed and started again by the watchdog' watchdog_restarts
check 'a stop waits for the spool longer than TimeoutStopSec=' drains
printf 'systemd %s: %s passed, %s failed, %s skipped\n' "$(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p')" "$passed" "$failed" "$skipped"
((failed == 0))
