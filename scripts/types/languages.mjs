// The model's types as source of TypeScript, Python, Java and Go. Compilers and `gofmt` look at the result in scripts/check-contract.sh.

const MADE = "by scripts/types.mjs from the JSON Schemas in contract/";
const WIDTH = 120;

// Text as lines of a comment, each after `prefix`.
function lines(text, prefix) {
  const result = [];
  let line = prefix;
  for (const word of (text ?? "").split(/\s+/).filter(Boolean)) {
    if (line !== prefix && line.length + word.length + 1 > WIDTH) {
      result.push(line);
      line = prefix;
    }
    line += (line === prefix ? "" : " ") + word;
  }
  return line === prefix ? result : [...result, line];
}

// A block comment of TypeScript or Java, on one line where it fits.
function block(text, indent, tags = []) {
  const whole = `${indent}/** ${text} */`;
  if (text && !tags.length && whole.length <= WIDTH) return [whole];
  const body = [...lines(text, `${indent} * `), ...(text && tags.length ? [`${indent} *`] : []), ...tags];
  return body.length ? [`${indent}/**`, ...body, `${indent} */`] : [];
}

const pascal = (name) => name.replace(/(?:^|_)([a-z])/g, (_, letter) => letter.toUpperCase());
const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
const isConstant = (type) => type.constant !== undefined || type.union?.every(isConstant);
const EVENT = "An event of livechat-relay in structured mode: the attributes of a CloudEvent, and what LiveChat sent.";
const OTHERS = "New types may come: of one that is not here only the attributes are known.";

export function typescript({ objects, events }) {
  const scalars = { string: "string", integer: "number", boolean: "boolean" };
  const typeOf = (type) => {
    if (type.ref) return type.ref;
    if (type.scalar) return scalars[type.scalar];
    if (type.constant) return JSON.stringify(type.constant);
    if (type.union) return type.union.map(typeOf).join(" | ");
    if (type.map) return `Record<string, ${typeOf(type.map)}>`;
    if (type.list) return type.list.union ? `(${typeOf(type.list)})[]` : `${typeOf(type.list)}[]`;
    return "unknown";
  };
  const declaration = (name, { about, base, members }) => [
    ...block(about, ""),
    `export interface ${name}${base ? ` extends ${base}` : ""} {`,
    ...members.flatMap(({ name, about, type, required }) => [...block(about, "  "), `  ${name}${required ? "" : "?"}: ${typeOf(type)};`]),
    "}",
    "",
  ];
  return [
    `// Generated ${MADE}; do not edit. Copy this file into your project.`,
    "",
    ...block(`${EVENT} Its \`type\` tells what its \`data\` is. ${OTHERS}`, ""),
    "export type Event =",
    ...events.map(({ name }, i) => `  | ${name}${i + 1 === events.length ? ";" : ""}`),
    "",
    ...[...objects].flatMap(([name, object]) => declaration(name, object)),
    ...asObjects(events).flatMap(([name, object]) => declaration(name, object)),
  ].join("\n").trimEnd() + "\n";
}

// Events as objects with a constant type.
function asObjects(events) {
  return events.map(({ name, about, type, data }) => {
    const members = [{ name: "type", type: { constant: type }, required: true }, { name: "data", type: data, required: true }];
    return [name, { about, base: "Attributes", members }];
  });
}

export function python({ objects, events }) {
  const scalars = { string: "str", integer: "int", boolean: "bool" };
  const typeOf = (type) => {
    if (type.ref) return type.ref;
    if (type.scalar) return scalars[type.scalar];
    if (isConstant(type)) return `Literal[${(type.union ?? [type]).map(({ constant }) => JSON.stringify(constant)).join(", ")}]`;
    if (type.union) return type.union.map(typeOf).join(" | ");
    if (type.map) return `dict[str, ${typeOf(type.map)}]`;
    if (type.list) return `list[${typeOf(type.list)}]`;
    return "Any";
  };
  const declaration = (name, { about, base, members }) => [
    "",
    "",
    `class ${name}(${base ?? "TypedDict"}):`,
    ...docstring(about),
    ...members.flatMap(({ name, about, type, required }) => [
      ...lines(about, "    # "),
      `    ${name}: ${required ? typeOf(type) : `NotRequired[${typeOf(type)}]`}`,
    ]),
  ];
  const docstring = (about) => {
    if (!about) return [];
    const whole = `    """${about}"""`;
    return [...(whole.length <= WIDTH ? [whole] : [...lines(`"""${about}`, "    "), '    """']), ""];
  };
  return [
    `"""Generated ${MADE}; do not edit. Copy this file into your project.`,
    "",
    ...lines("What json.loads makes of a record's value is an Event. For Python 3.11 or later.", ""),
    '"""',
    "",
    "from __future__ import annotations",
    "",
    "from typing import Any, Literal, NotRequired, TypeAlias, TypedDict",
    ...[...objects].flatMap(([name, object]) => declaration(name, object)),
    ...asObjects(events).flatMap(([name, object]) => declaration(name, object)),
    "",
    "",
    ...lines(`${EVENT} Its type tells what its data is. ${OTHERS}`, "# "),
    "Event: TypeAlias = (",
    ...events.map(({ name }, i) => `    ${i ? "| " : ""}${name}`),
    ")",
    "",
  ].join("\n");
}

export function java({ objects }) {
  const scalars = { string: "String", integer: "Long", boolean: "Boolean" };
  const typeOf = (type) => {
    if (type.ref) return type.ref;
    if (type.scalar) return scalars[type.scalar];
    if (isConstant(type)) return "String";
    if (type.map && Object.keys(type.map).length) return `Map<String, ${typeOf(type.map)}>`;
    if (type.list) return `List<${typeOf(type.list)}>`;
    return "JsonNode";
  };
  const component = ({ name, type }) => {
    const property = /^[a-z]+$/.test(name) ? "" : `@JsonProperty("${name}") `; // whatever the mapper's naming strategy is
    return `            ${property}${typeOf(type)} ${camel(name)}`;
  };
  const declaration = (name, { about, base, members }) => [
    ...block(about, "    ", members.filter((member) => member.about).flatMap((member) => tag(member))),
    "    @JsonIgnoreProperties(ignoreUnknown = true)",
    `    public record ${name}(`,
    `${[...(base ? objects.get(base).members : []), ...members].map(component).join(",\n")}) {}`,
    "",
  ];
  const tag = ({ name, about }) => {
    const [first, ...more] = lines(`@param ${camel(name)} ${about}`, "     * ");
    return [first, ...more.map((line) => line.replace("* ", "*     "))];
  };
  return [
    `// Generated ${MADE}; do not edit.`,
    "package livechat;",
    "",
    "import com.fasterxml.jackson.annotation.JsonIgnoreProperties;",
    "import com.fasterxml.jackson.annotation.JsonProperty;",
    "import com.fasterxml.jackson.databind.JsonNode;",
    "import java.util.List;",
    "import java.util.Map;",
    "",
    "/**",
    " * What livechat-relay puts on Kafka, for Java 17 or later and Jackson 2. Copy this file into your project.",
    " *",
    " * <p>What an event does not have is null. Members that are not here are ignored: new ones may come.",
    " */",
    "public final class LiveChat {",
    "    private LiveChat() {}",
    "",
    ...declaration("Event", { about: `${EVENT} ${OTHERS}`, members: [...objects.get("Attributes").members, ...OPEN] }),
    ...[...objects].filter(([name]) => name !== "Attributes" && name !== "Webhook").flatMap(([name, object]) => declaration(name, object)),
  ].join("\n").trimEnd() + "\n}\n";
}

// What an event has besides its attributes in languages that read `data` once they know the type.
const OPEN = [
  { name: "type", about: "`com.livechat.` and the name of the action.", type: { scalar: "string" }, required: true },
  {
    name: "data",
    about: "What LiveChat sent: an IncomingEventData where the type is `com.livechat.incoming_event`, and so on.",
    type: {},
    required: true,
  },
];

export function go({ objects }) {
  const typeOf = (type, required) => {
    if (type.ref) return required ? type.ref : `*${type.ref}`;
    if (type.scalar === "string" || isConstant(type)) return "string";
    if (type.scalar) return `${required ? "" : "*"}${{ integer: "int64", boolean: "bool" }[type.scalar]}`;
    if (type.map && Object.keys(type.map).length) return `map[string]${typeOf(type.map, true)}`;
    if (type.list) return `[]${typeOf(type.list, true)}`;
    return "json.RawMessage";
  };
  const INITIALISMS = { Id: "ID", Ids: "IDs", Url: "URL", Ip: "IP" };
  const exported = (name) =>
    pascal(name)
      .replace(/(Ids?|Url|Ip)(?![a-z])/g, (word) => INITIALISMS[word])
      .replace(/([a-z])id$/, "$1ID");
  const field = ({ name, type, required }) => [exported(name), typeOf(type, required), `\`json:"${name}${required ? "" : ",omitempty"}"\``];
  const declaration = (name, { about, base, members }) => [
    ...lines(about && `${name}: ${about}`, "// "),
    `type ${name} struct {`,
    ...(base ? [`\t${base}`] : []),
    ...aligned(members.map((member) => ({ comment: lines(member.about, "\t// "), columns: field(member) }))),
    "}",
    "",
  ];
  return [
    `// Code generated ${MADE}; DO NOT EDIT.`,
    "",
    "// Package livechat has the types of what livechat-relay puts on Kafka. Copy this file into your project.",
    "//",
    ...lines("A string that an event does not have is empty, and everything else is nil. Members that are not here are ignored: new ones may come.", "// "),
    "package livechat",
    "",
    'import "encoding/json"',
    "",
    ...declaration("Event", { about: `${EVENT} ${OTHERS}`, base: "Attributes", members: OPEN }),
    ...[...objects].flatMap(([name, object]) => declaration(name, object)),
  ].join("\n").trimEnd() + "\n";
}

// Fields in columns, as gofmt aligns them: across lines that follow each other, and not across a comment.
function aligned(fields) {
  const groups = [];
  for (const field of fields) {
    if (field.comment.length || !groups.length) groups.push([]);
    groups.at(-1).push(field);
  }
  return groups.flatMap((group) => {
    const width = (column) => Math.max(...group.map(({ columns }) => columns[column].length));
    return group.flatMap(({ comment, columns: [name, type, tag] }) => [
      ...comment,
      `\t${name.padEnd(width(0))} ${type.padEnd(width(1))} ${tag}`,
    ]);
  });
}
