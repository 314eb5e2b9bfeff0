#!/usr/bin/env bash
# Runs the commands of the documents, and compares what they print with what the documents show.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

help() {
  cat <<'EOT'
Runs every block of commands (```sh, ```console) of README.md, CONTRIBUTING.md and the other documents, as it stands there.

Usage: scripts/check-docs.sh [--all] [DOCUMENT...]

  --all   also the blocks that are marked as slow: builds, tests, benchmarks (over an hour)

Each document has namespaces of its own: its ports, its processes, and what it writes in the checkout, in /etc, /var/lib,
/usr/local and the home directory, end with it. That needs root and overlayfs; where they are missing, nothing is run, and said.
Each block is a terminal of its own, with livechat-relay in its PATH.

A ```text block right below a block of commands is its output; a ```console block has both. Words are compared: numbers, times
and ids only by their shape, and `…` is anything. Exit codes count where no output is shown. A comment in front of a block says
what is different about it, with `; ` between two marks:

  <!-- check: save relay.toml -->           the block is a file
  <!-- check: until ready -->               it goes on running once it has printed this
  <!-- check: slow -->                      only with --all
  <!-- check: not run: REASON -->           it cannot be run here; counted as skipped
  <!-- check: output of COMMAND -->         the block is what COMMAND prints
  <!-- check: run make kafka; until ready -->  COMMAND, which readers need not see; also in the following lines of the comment

Environment:
  RELAY_BIN   the relay to run instead of target/debug/livechat-relay

Exit codes: 0 all is well, 1 something is not, 2 the command line is wrong.
EOT
}

say() { printf '%s\n' "$*" >&2; }

all=() documents=()
while (($#)); do
  case $1 in
    --all) all=(--all) ;;
    -h | --help) help; exit 0 ;;
    -*) say "error: there is no option \`$1\`"; help >&2; exit 2 ;;
    *) documents+=("$(realpath "$1")") ;;
  esac
  shift
done
if ((${#documents[@]} == 0)); then
  documents=("$root"/{README,CONTRIBUTING,deploy/README}.md "$root"/{contract,docs,docs/*}/*.md "$root"/examples/*/README.md)
fi
relay=${RELAY_BIN:-$root/target/debug/livechat-relay}
[[ -x $relay ]] || { say "error: there is no $relay; build it with: cargo build --locked"; exit 1; }
"$root/scripts/ensure.sh" jdk maven kcat jq curl openssl sqlite3 python3-venv pkill ip >&2
venv=$root/target/check-docs/venv
if ! cmp -s "$root/examples/consumers/python/requirements.txt" "$venv/has"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$root/examples/consumers/python/requirements.txt"
  cp "$root/examples/consumers/python/requirements.txt" "$venv/has"
fi
"$root/scripts/kafka.sh" fetch >/dev/null

# What a document writes stays in memory, over what is there; but for /var/lib/livechat-relay, as spools belong on a disk.
namespaces=(unshare --net --mount --pid --fork --kill-child --mount-proc)
scratch=$(mktemp -d "${TMPDIR:-/tmp}/check-docs.XXXXXX")
disk=$(mktemp -d "$root/target/check-docs/disk.XXXXXX")
trap 'rm -rf "$scratch" "$disk"' EXIT
inside() {
  # shellcheck disable=SC2016 # expanded inside
  "${namespaces[@]}" bash -euc '
    root=$1 scratch=$2 disk=$3 relay=$4
    shift 4
    mount -t tmpfs docs "$scratch"
    over() {
      local upper work
      upper=$(mktemp -d "$scratch/upper.XXXXXX") work=$(mktemp -d "$scratch/work.XXXXXX")
      chmod 755 "$upper"
      mount -t overlay docs -o "lowerdir=$1,upperdir=$upper,workdir=$work" "$1"
    }
    for directory in /etc /var/lib /usr/local; do over "$directory"; done
    mkdir -p /var/lib/livechat-relay
    mount --bind "$disk" /var/lib/livechat-relay
    over "$HOME"
    [[ $root/ == "$HOME"/* ]] || over "$root"
    mkdir "$scratch/tmp"
    export TMPDIR=$scratch/tmp
    ip link set lo up
    mkdir -p "$root/target/release"
    [[ -z $relay ]] || ln -sf "$relay" "$root/target/release/livechat-relay"
    export PATH=$root/target/release:$root/target/check-docs/venv/bin:$PATH
    unset RELAY_BIN
    cd "$root"
    exec "$@"' bash "$root" "$scratch" "$disk" "$relay" "$@"
}

if ! reason=$(inside true 2>&1); then
  say "skip  all documents: there are no namespaces of their own: ${reason:-unshare failed}"
  exit 0
fi
status=0
for document in "${documents[@]}"; do
  find "$disk" -mindepth 1 -delete
  inside python3 "$root/scripts/check-docs.py" "${all[@]}" "${document#"$root/"}" >"$scratch/said" 2>&1 || status=1
  tee -a "$scratch/all" <"$scratch/said"
done
count() { grep -c "^$1 " "$scratch/all" || true; }
echo "docs: $(count ok) passed, $(count FAIL) failed, $(count skip) skipped"
exit "$status"
