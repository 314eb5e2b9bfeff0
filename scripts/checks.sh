# shellcheck shell=bash
# What the scripts that check something share; sourced, not run. It counts for the summary that each of them ends with.

# shellcheck disable=SC2034 # read by those who source this
passed=0 failed=0 skipped=0

# Runs a check, and shows what it says only if it finds something: WHAT COMMAND ARGS...
check() {
  local what=$1 output
  shift
  if output=$("$@" 2>&1); then
    printf 'ok    %s\n' "$what"
    passed=$((passed + 1))
  else
    printf 'FAIL  %s\n' "$what"
    printf '%s\n' "$output" | sed 's/^/      /'
    failed=$((failed + 1))
  fi
}
