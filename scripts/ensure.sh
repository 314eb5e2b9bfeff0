#!/usr/bin/env bash
# Sees to it that the tools named on the command line are there: installs the missing ones, or says the one line that does.
set -euo pipefail

help() {
  cat <<'EOF'
Sees to it that tools are there, and installs only what is missing.

Usage: scripts/ensure.sh [--check] TOOL...
       scripts/ensure.sh jdk maven

  --check   install nothing: say what is missing, exit 1

A TOOL is `jdk` (java 17 or newer), `maven`, `node` (with npm), `python3-venv`, `postgresql` (server and psql), `pebble` (into
target/tools, by Go 1.21 or newer), or the name of a command: kcat, promtool, wrk, nginx, haproxy, jq, perl, shellcheck, ...
On Debian and Ubuntu, as root or with a sudo that asks no password, missing tools are installed with apt-get;
elsewhere the line to run is printed and the exit code is 1.
EOF
}

say() { printf '%s\n' "$*" >&2; }

# The ACME authority of the tests: a Go module.
PEBBLE=github.com/letsencrypt/pebble/v2/cmd PEBBLE_VERSION=v2.10.3
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/target/tools/bin

# Java 17 says `version "17.0.15"`, Java 8 said `version "1.8.0_412"`.
java_major() {
  java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1
}

is_there() {
  local major
  case $1 in
    jdk) major=$(command -v java >/dev/null && java_major) && ((${major:-0} >= 17)) ;;
    maven) command -v mvn >/dev/null ;;
    postgresql) command -v psql >/dev/null && compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ;;
    python3-venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    pebble) [[ -x $tools/pebble && -x $tools/pebble-challtestsrv ]] ;;
    nginx | haproxy) command -v "$1" >/dev/null || [[ -x /usr/sbin/$1 ]] ;; # where users' PATH has no sbin
    node) command -v node >/dev/null && command -v npm >/dev/null ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

# The Debian package that brings a tool, where its name is another.
package_of() {
  case $1 in
    jdk) if apt-cache show openjdk-17-jdk-headless >/dev/null 2>&1; then echo openjdk-17-jdk-headless; else echo default-jdk-headless; fi ;;
    promtool) echo prometheus ;;
    systemd-analyze) echo systemd ;;
    rg) echo ripgrep ;;
    pkill) echo procps ;;
    ip) echo iproute2 ;;
    go) echo golang-go ;;
    node) echo nodejs npm ;;
    *) echo "$1" ;;
  esac
}

# Debian's prometheus is a running service; of it only promtool is wanted, so the package is unpacked rather than installed.
install_promtool() {
  local dir
  dir=$(mktemp -d)
  (
    cd "$dir"
    # apt's own user can't write here, and says so at length.
    apt-get -qq -o APT::Sandbox::User=root download prometheus
    dpkg-deb -x prometheus_*.deb .
    "${as_root[@]}" install -m 755 usr/bin/promtool /usr/local/bin/promtool
  ) || { rm -rf "$dir"; return 1; }
  rm -rf "$dir"
}

# Go fetches the version of itself that Pebble wants, from 1.21 on.
install_pebble() {
  say "installing pebble $PEBBLE_VERSION into target/tools"
  GOBIN=$tools go install "$PEBBLE/pebble@$PEBBLE_VERSION" "$PEBBLE/pebble-challtestsrv@$PEBBLE_VERSION" ||
    { say "error: pebble cannot be installed; it needs Go 1.21 or newer (https://go.dev/dl), and the Go module proxy"; return 1; }
}

# The line a person can run where this script can't. Homebrew's and Fedora's names differ for two of the tools.
advice() {
  local jdk prefix names=() tool
  if command -v apt-get >/dev/null; then
    echo "run: $( ((EUID == 0)) || echo "sudo ")scripts/ensure.sh ${missing[*]}"
    return
  elif command -v brew >/dev/null; then
    prefix="run: brew install" jdk=openjdk@17
  elif command -v dnf >/dev/null; then
    prefix="run: sudo dnf install" jdk=java-17-openjdk-headless
  else
    prefix="install with your system's package manager:" jdk="a JDK 17 or newer"
  fi
  for tool in "${missing[@]}"; do
    case $tool in
      jdk) names+=("$jdk") ;;
      promtool) names+=(prometheus) ;;
      pebble) ;; # by Go, once that is there
      *) names+=("$tool") ;;
    esac
  done
  echo "$prefix ${names[*]}"
}

check=
case ${1:-} in
  -h | --help) help; exit 0 ;;
  --check) check=yes; shift ;;
esac
(($#)) || { help >&2; exit 2; }

missing=()
for tool in "$@"; do
  [[ $tool =~ ^[a-zA-Z0-9][a-zA-Z0-9.+-]*$ ]] || { say "error: \`$tool\` is not the name of a tool"; exit 2; }
  is_there "$tool" || missing+=("$tool")
done
((${#missing[@]})) || exit 0

# With Go it takes no root.
if [[ -z $check && " ${missing[*]} " == *" pebble "* ]]; then
  if is_there go; then
    install_pebble || exit 1
    others=()
    for tool in "${missing[@]}"; do [[ $tool == pebble ]] || others+=("$tool"); done
    missing=(${others[@]+"${others[@]}"})
    ((${#missing[@]})) || exit 0
  else
    missing+=(go)
  fi
fi

as_root=()
if ((EUID != 0)); then as_root=(sudo -n); fi

if [[ -n $check ]] || ! command -v apt-get >/dev/null || { ((EUID != 0)) && ! sudo -n true 2>/dev/null; }; then
  say "missing: ${missing[*]}; $(advice)"
  exit 1
fi

say "installing ${missing[*]} with apt-get"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
# Debian starts the services that it installs (nginx on port 80), unless this file says no; here only the programs are wanted.
no_services() {
  [[ -e /usr/sbin/policy-rc.d ]] && return
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee /usr/sbin/policy-rc.d >/dev/null
  "${as_root[@]}" chmod 755 /usr/sbin/policy-rc.d
  trap '"${as_root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
}

packages=()
for tool in "${missing[@]}"; do
  if [[ $tool != promtool && $tool != pebble ]]; then read -ra names <<<"$(package_of "$tool")" && packages+=("${names[@]}"); fi
done
if ((${#packages[@]})); then
  no_services
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
case " ${missing[*]} " in *" promtool "*) install_promtool ;; esac
case " ${missing[*]} " in *" pebble "*) install_pebble || exit 1 ;; esac
for tool in nginx haproxy; do
  if [[ " ${missing[*]} " == *" $tool "* && -d /run/systemd/system ]]; then
    "${as_root[@]}" systemctl disable --quiet "$tool" # nor at the next boot
  fi
done

for tool in "${missing[@]}"; do
  is_there "$tool" || { say "error: \`$tool\` is still missing after installing"; exit 1; }
done
