// Writes examples.ts and examples.py into a directory: each event of contract/examples as a constant of its type, so that compilers say
// whether the types fit. In both languages a member that the type does not have is a mistake in such a constant.
//
// Usage: node examples.mjs DIRECTORY

import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { model } from "./model.mjs";

const contract = join(dirname(fileURLToPath(import.meta.url)), "../../contract");
const { events } = model(contract);
const examples = readdirSync(join(contract, "examples"))
  .sort()
  .map((file) => JSON.parse(readFileSync(join(contract, "examples", file), "utf8")))
  .flatMap((event) => events.filter(({ type }) => type === event.type).map(({ name }) => ({ name, event })));
if (examples.length < 53) throw new Error(`only ${examples.length} events in contract/examples have a type`);

function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, member]) => `${JSON.stringify(name)}: ${python(member)}`).join(", ")}}`;
}

const write = (file, lines) => writeFileSync(join(process.argv[2], file), `${lines.join("\n")}\n`);
const typescript = ({ name, event }, i) => `export const example${i}: livechat.${name} = ${JSON.stringify(event)};`;
write("examples.ts", ['import type * as livechat from "./livechat.js";', ...examples.map(typescript)]);
write("examples.py", ["import livechat", ...examples.map(({ name, event }, i) => `example${i}: livechat.${name} = ${python(event)}`)]);
