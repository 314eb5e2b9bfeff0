// The types of an event, made of the schemas in contract/: every object with members gets a name, what applies under a condition is
// optional, and what says nothing about a type (patterns, formats, limits) is left out. languages.mjs writes them down.
//
// A type is `{ ref }`, `{ list }`, `{ map }`, `{ union }`, `{ constant }`, `{ scalar }` or, where anything may be, `{}`.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const pascal = (name) => name.replace(/(?:^|_)([a-z])/g, (_, letter) => letter.toUpperCase());
const singular = (name) => name.replace(/ies$/, "y").replace(/s$/, "");
// LiveChat's messages, files and forms are events, too: docs/kafka.md calls them chat events. All of them are of one type here.
const nameOf = (definition) => pascal(definition.replace(/^event(_.*)?$/, "chat_event"));
const SCALARS = ["string", "integer", "boolean"]; // the schemas have no others
const sentence = ({ title, description }) => [title, description].filter(Boolean).join(". ");

// What `contract` has: `objects`, a map of name → `{ about, base, members }`, and `events`, a list of `{ name, type, about, data }`.
export function model(contract) {
  const read = (name) => JSON.parse(readFileSync(join(contract, name), "utf8"));
  const envelope = read("envelope.schema.json");
  const definitions = { ...read("defs.schema.json").$defs, ...envelope.$defs }; // a name has the same definition in every schema
  const objects = new Map();
  const sources = new Map(); // name → the object's schema

  // References are relative or absolute; what they lead to is always a definition.
  function follow({ $ref }) {
    const name = $ref.split("#/$defs/")[1];
    if (!definitions[name]) throw new Error(`there is no definition for ${$ref}`);
    return { name, schema: definitions[name] };
  }

  // All that an object may have, and what it always has. `owner` is its name.
  function properties(schema, owner) {
    if (schema.$ref) {
      const { name, schema: found } = follow(schema);
      return properties(found, nameOf(name));
    }
    const all = {};
    const required = new Set(schema.required);
    const add = (name, member) => (all[name] = name in all ? both(all[name], member) : member);
    for (const [name, member] of Object.entries(schema.properties ?? {})) add(name, { owned: owner + pascal(name), ...member });
    for (const part of [...(schema.allOf ?? []), schema.then, schema.else]) {
      if (!part) continue;
      const found = properties(part.then ?? part, owner);
      Object.entries(found.all).forEach(([name, member]) => add(name, member));
      if (schema.allOf?.includes(part) && !part.then) found.required.forEach((name) => required.add(name));
    }
    return { all, required };
  }

  // A member that two parts of an object describe. The elements of a list have the members of both.
  function both(one, other) {
    return one.items && other.items ? { ...one, items: { allOf: [one.items, other.items] } } : { ...one, ...other };
  }

  const isObject = (schema) => Object.keys(properties(schema, "").all).length > 0;

  // Gives an object its name, and returns the reference to it.
  function define(name, schema, about = schema.description) {
    const source = JSON.stringify(schema);
    if (!sources.has(name)) {
      sources.set(name, source);
      objects.set(name, {}); // an object may contain itself
      const { all, required } = properties(schema, name);
      const members = Object.entries(all).map(([member, found]) => ({
        name: member,
        about: found.description ?? (found.$ref && follow(found).schema.description),
        type: typeOf(found, found.owned),
        required: required.has(member),
      }));
      objects.set(name, { about, members });
    } else if (sources.get(name) !== source) {
      throw new Error(`two objects would have the name ${name}`);
    }
    return { ref: name };
  }

  // `name` is for an object that has none.
  function typeOf(schema, name) {
    const whole = schema.allOf?.length === 1 && !schema.properties ? schema.allOf[0] : schema;
    if (whole.$ref) {
      const { name: found, schema: definition } = follow(whole);
      return isObject(definition) ? define(nameOf(found), definition) : typeOf(definition, pascal(singular(found)));
    }
    const choices = schema.anyOf?.filter((choice) => choice.type || choice.$ref) ?? [];
    if (choices.length) return { union: choices.map((choice) => typeOf(choice, name)) };
    if (Array.isArray(schema.type)) return { union: schema.type.map((type) => typeOf({ ...schema, type }, name)) };
    if (schema.type === "array") return { list: typeOf(schema.items, singular(name)) };
    if (schema.then?.$ref && !schema.properties) return typeOf(schema.then, name);
    if (isObject(schema)) return define(name, schema);
    if (schema.type === "object") return { map: typeOf(schema.additionalProperties ?? {}, name) };
    if (schema.enum) return { union: schema.enum.map((constant) => ({ constant })) };
    if (schema.const) return { constant: schema.const };
    if (schema.type && !SCALARS.includes(schema.type)) throw new Error(`no language knows the type ${schema.type} of ${name}`);
    return schema.type ? { scalar: schema.type } : {};
  }

  const { type, data, ...attributes } = envelope.properties;
  define("Attributes", { ...envelope, properties: attributes });

  const actions = readdirSync(join(contract, "actions"))
    .map((file) => file.replace(".schema.json", ""))
    .filter((action) => action !== "unlisted") // has neither a type nor a payload of its own
    .map((action) => ({ action, schema: read(`actions/${action}.schema.json`) }));
  const { payload, ...webhook } = definitions.webhook.properties;
  const always = Object.keys(webhook).filter((name) => actions.every(({ schema }) => schema.required.includes(name)));
  define("Webhook", { ...definitions.webhook, properties: webhook, required: always });

  const events = actions.map(({ action, schema }) => {
    const [name, about] = [pascal(action), sentence(schema)];
    const member = { name: "payload", type: typeOf(schema.properties.payload, `${name}Payload`), required: true };
    objects.set(`${name}Data`, { about, base: "Webhook", members: [member] });
    return { name, type: `com.livechat.${action}`, about, data: { ref: `${name}Data` } };
  });
  for (const file of ["app_installed", "app_webhook"]) {
    const schema = read(`${file}.schema.json`);
    const data = define(`${pascal(file)}Data`, schema, sentence(schema));
    const { const: only, examples: names = [only] } = schema.properties.event;
    for (const event of names) {
      events.push({ name: pascal(`app_${event}`), type: `com.livechat.app.${event}`, about: `${schema.title}: \`${event}\`.`, data });
    }
  }
  return { objects, events };
}
