#!/usr/bin/env bash
# Checks contract/ with tools that are not ours: what the tests say of it, others should say, too.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
tools=$root/target/check-contract
python_tools=(check-jsonschema==0.39.0 mypy==2.4.1)
node_tools=(@asyncapi/parser@3.6.3 typescript@7.0.2)

help() {
  cat <<'EOF'
Checks the files in contract/: that they are current and every sample is valid (cargo test), that the schemas are of
JSON Schema 2020-12 and accept the configurations that we ship (check-jsonschema) and the examples (Python's jsonschema),
that the official parser takes the AsyncAPI document, and that the types in contract/types are current, compile and fit the
examples (tsc, mypy, go vet; Java is compiled by scripts/check-consumers.sh).

Usage: scripts/check-contract.sh [--install]

  --install   get what is missing first, into target/check-contract: check-jsonschema and mypy from PyPI, and
              @asyncapi/parser and typescript from npm (needs Node.js 20 or later)

What is not installed is skipped, and said; with CI set it is installed, and is an error where that fails.
LIVECHAT_SAMPLES_DIR names a directory of samples that LiveChat has published (v3.1/*.json, …) to try, too.
Exit codes: 0 nothing was found, 1 something was, 2 the command line is wrong.
EOF
}

say() { printf '%s\n' "$*" >&2; }

install_tools() {
  mkdir -p "$tools"
  if [[ $(cat "$tools/venv/has" 2>/dev/null) != "${python_tools[*]}" ]]; then
    say "installing ${python_tools[*]} from PyPI"
    { python3 -m venv "$tools/venv" && "$tools/venv/bin/pip" install --quiet --disable-pip-version-check "${python_tools[@]}" &&
      echo "${python_tools[*]}" >"$tools/venv/has"; } || say "going on without ${python_tools[*]}"
  fi
  if [[ $(cat "$tools/npm/has" 2>/dev/null) != "${node_tools[*]}" ]]; then
    say "installing ${node_tools[*]} from npm"
    mkdir -p "$tools/npm"
    { npm install --prefix "$tools/npm" --no-audit --no-fund --ignore-scripts --save-exact --loglevel=error "${node_tools[@]}" \
      >/dev/null && echo "${node_tools[*]}" >"$tools/npm/has"; } || say "going on without ${node_tools[*]}"
  fi
}

# shellcheck source=scripts/checks.sh
. "$root/scripts/checks.sh"

# The same where a file is there that says so: FILE WHAT COMMAND ARGS...
check_with() {
  local file=$1
  shift
  if [[ -e $file ]]; then
    check "$@"
  elif [[ -n ${CI:-} ]]; then
    check "$1" echo_and_fail "${file#"$root/"} is missing, and CI is set"
  else
    printf 'skip  %s: %s is missing, see --help\n' "$1" "${file#"$root/"}"
    skipped=$((skipped + 1))
  fi
}

echo_and_fail() {
  echo "$*"
  return 1
}

is_2020_12() {
  local schemas
  mapfile -t schemas < <(find "$root/contract" -name '*.schema.json' | sort)
  ((${#schemas[@]} > 40)) || { echo_and_fail "only ${#schemas[@]} schemas in contract/"; return 1; }
  "$tools/venv/bin/check-jsonschema" --check-metaschema "${schemas[@]}"
}

# What the tests say of our own validator, an independent one says, too.
configurations() {
  "$tools/venv/bin/check-jsonschema" --schemafile "$root/contract/config.schema.json" \
    "$root"/config/default.toml "$root"/deploy/*.toml "$root"/deploy/systemd/*.toml || return 1
  local wrong
  wrong=$(mktemp --suffix .toml)
  echo 'server.lisen = "0.0.0.0:8080"' >"$wrong"
  if "$tools/venv/bin/check-jsonschema" --schemafile "$root/contract/config.schema.json" "$wrong"; then
    rm "$wrong"
    echo_and_fail 'a misspelt key is taken'
    return 1
  fi
  rm "$wrong"
}

# The schemas are found by their $id. Python's jsonschema is what check-jsonschema uses.
examples() {
  "$tools/venv/bin/python" - "$root/contract" <<'EOF'
import json, pathlib, sys
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

contract = pathlib.Path(sys.argv[1])
schemas = [json.loads(path.read_text()) for path in contract.rglob("*.schema.json")]
registry = Registry().with_resources((schema["$id"], Resource.from_contents(schema)) for schema in schemas)
examples = sorted((contract / "examples").glob("*.json"))
faults = [f"only {len(examples)} examples"] if len(examples) < 53 else []
for path in examples:
    event = json.loads(path.read_text())
    schema = f"actions:{path.stem}"
    if path.stem.startswith("app."):
        schema = "app_installed" if path.stem == "app.installed" else "app_webhook"
    for name, value in [("envelope", event), (schema, event["data"])]:
        validator = Draft202012Validator({"$ref": f"urn:livechat-relay:{name}"}, registry=registry)
        faults += [f"{path.name}: {name}: {error.message}" for error in validator.iter_errors(value)]
print(*faults, sep="\n")
sys.exit(bool(faults))
EOF
}

# Warnings and hints of the parser are no faults; a document that it cannot resolve has no channels. There is no example of
# actions that the relay does not know, nor of dead letters.
asyncapi() {
  NODE_PATH=$tools/npm/node_modules node - "$root/contract/asyncapi.yaml" "$root/contract/actions" <<'EOF'
const { readdirSync } = require('node:fs');
const { Parser, fromFile } = require('@asyncapi/parser');

const [file, actions] = process.argv.slice(2);
fromFile(new Parser(), file).parse().then(({ document, diagnostics }) => {
  const errors = diagnostics.filter((d) => d.severity === 0);
  errors.forEach((d) => console.log(`${d.path.join('.')}: ${d.message}`));
  const found = document?.allChannels().all().length ?? 0;
  const wanted = readdirSync(actions).length;
  const messages = document?.allMessages().all() ?? [];
  const examples = messages.filter((message) => !message.examples().isEmpty()).length;
  console.log(`${found} channels, ${examples} messages with an example, ${wanted} schemas of actions`);
  process.exitCode = errors.length === 0 && found >= wanted && examples === messages.length - 2 ? 0 : 1;
}).catch((error) => {
  console.log(String(error));
  process.exitCode = 1;
});
EOF
}

# The types beside the events of contract/examples, and what reads both: tsc, and mypy with the consumer that uses the types.
copy_types() { rm -rf "$tools/types" && mkdir -p "$tools/types" && cp "$root"/contract/types/livechat.* "$tools/types"; }

typescript() { "$tools/npm/node_modules/.bin/tsc" --noEmit --strict --module nodenext --target es2022 --types '' "$tools"/types/*.ts; }

python() {
  MYPYPATH=$tools/types "$tools/venv/bin/mypy" --cache-dir "$tools/mypy" --strict "$tools"/types/*.py &&
    MYPYPATH=$tools/types "$tools/venv/bin/mypy" --cache-dir "$tools/mypy" --ignore-missing-imports \
      "$root/examples/consumers/python/consumer.py"
}

# An unformatted file is named on stdout, and gofmt is content.
go_types() { go vet "$tools/types/livechat.go" && [[ -z $(gofmt -l "$tools/types" | tee /dev/stderr) ]]; }

case ${1:-} in
  '') [[ -z ${CI:-} ]] || install_tools ;;
  --install) install_tools ;;
  -h | --help) help; exit 0 ;;
  *) say "error: there is no option \`$1\`"; help >&2; exit 2 ;;
esac

[[ -n ${LIVECHAT_SAMPLES_DIR:-} ]] || say 'LIVECHAT_SAMPLES_DIR is not set: the published samples are skipped'
check 'the files are current, and every sample is valid' \
  cargo test --quiet --locked --manifest-path "$root/Cargo.toml" --lib contract
check_with "$tools/venv/has" 'the schemas are of JSON Schema 2020-12' is_2020_12
check_with "$tools/venv/has" 'config.schema.json takes our configurations' configurations
check_with "$tools/venv/has" 'the schemas accept the examples' examples
check_with "$tools/npm/has" 'the AsyncAPI parser takes asyncapi.yaml' asyncapi
copy_types
node=$(command -v node || echo node) go=$(command -v go || echo go)
check_with "$node" 'the types are current' node "$root/scripts/types.mjs" --check
check_with "$node" 'the examples have types' node "$root/scripts/types/examples.mjs" "$tools/types"
check_with "$tools/npm/has" 'the types of TypeScript fit the examples' typescript
check_with "$tools/venv/has" 'the types of Python fit the examples' python
check_with "$go" 'the types of Go are formatted, and vet finds nothing' go_types

printf 'contract: %s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
((failed == 0))
