// Writes contract/types, the types of an event in TypeScript, Python, Java and Go, from the schemas in contract/; with --check it
// writes nothing, and fails where they are stale.
//
// Why no generator that is there: of those that we tried (json-schema-to-typescript, datamodel-code-generator, jsonschema2pojo,
// go-jsonschema) none gives a message its text, because the schemas have that under a condition. So the model must be made here
// anyway, and after that a language is a few lines. They also need no download.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { go, java, python, typescript } from "./types/languages.mjs";
import { model } from "./types/model.mjs";

const contract = join(dirname(fileURLToPath(import.meta.url)), "..", "contract");
const types = model(contract);
const files = { "livechat.ts": typescript, "livechat.py": python, "LiveChat.java": java, "livechat.go": go };

mkdirSync(join(contract, "types"), { recursive: true });
for (const [name, write] of Object.entries(files)) {
  const path = join(contract, "types", name);
  const text = write(types);
  if (!process.argv.includes("--check")) {
    writeFileSync(path, text);
  } else if (!existsSync(path) || readFileSync(path, "utf8") !== text) {
    console.log(`contract/types/${name} is not what the schemas say; run \`make types\``);
    process.exitCode = 1;
  }
}
