// Reads livechat-relay's events from Kafka with @platformatic/kafka, and handles each once in PostgreSQL although each may arrive
// twice.
//
// It shows: every topic with the prefix, from its beginning · the value as a CloudEvent (the relay's `events.mode` is
// "structured", the default), held against the JSON Schema · duplicates known by their `id`, stored with the effect in one
// transaction · offsets committed after that, never before · a record that is not a valid event goes to a dead-letter topic,
// and the rest goes on · SIGTERM leaves the group, so that the others take over at once.
//
// If the database or Kafka does not accept something, the program ends: its supervisor starts it again, and it goes on with what
// is not committed.

import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { Admin, Consumer, type Message, Producer } from "@platformatic/kafka";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import { CloudEvent } from "cloudevents";
import pg from "pg";
import type { Event } from "./livechat.js"; // contract/types

const CLIENT = "example-typescript";
const COMMIT_EVERY_MS = 500;
const LIST_EVERY_MS = 300_000;

type Options = ReturnType<typeof options>;

function options() {
  const option = (fallback: string) => ({ type: "string" as const, default: fallback });
  const { values } = parseArgs({
    options: {
      brokers: option("localhost:9092"),
      prefix: option("livechat."),
      group: option("example"),
      schema: option("envelope.schema.json"),
      database: option("postgresql://localhost/livechat"),
      "dead-letters": option("example.dead-letter"),
    },
  });
  return { ...values, brokers: values.brokers.split(",") };
}

// The event in a record, or why it holds none, without what it holds: that may be personal.
//
// The schema comes first, for the SDK makes up an id or a time where there is none. Its `Kafka.toEvent` will not do: that
// throws where an event has no time, and LiveChat sends no time for many actions.
function parse(message: Message, isEnvelope: ValidateFunction): Event | string {
  if (!message.value) return "it has no value";
  try {
    const envelope: unknown = JSON.parse(message.value.toString());
    // The SDK's object has the attributes and `data` as members, as the types have them.
    if (isEnvelope(envelope)) return new CloudEvent(envelope as Partial<CloudEvent<unknown>>) as unknown as Event;
    const [error] = isEnvelope.errors ?? [];
    return `${error?.instancePath} ${error?.message}`.trim();
  } catch (error) {
    return error instanceof SyntaxError ? "not JSON" : `${error}`;
  }
}

// The event's effect, once. Should another member take it meanwhile, the insert waits for what becomes of that transaction.
async function take(database: pg.Client, event: Event): Promise<void> {
  await database.query("begin");
  const added = await database.query("insert into inbox (id) values ($1) on conflict do nothing", [event.id]);
  if (added.rowCount === 1) await handle(database, event); // else it is a duplicate
  await database.query("commit"); // where something throws before, the program ends, and the database rolls back
}

// Your work, within the transaction: `source` says whose the event is, `subject` what it is about, `data` is LiveChat's body.
async function handle(database: pg.Client, event: Event): Promise<void> {
  // LiveChat's own ids are attributes: most events can be sorted out without a look into `data`.
  const { chatid, eventid } = event;
  if (chatid) {
    await database.query("insert into chats values ($1, 1) on conflict (chat_id) do update set events = chats.events + 1", [chatid]);
  }
  // By `type` the compiler knows the payload. `eventid` comes from `payload.event`, and is absent where LiveChat has sent none.
  if (event.type === "com.livechat.incoming_event" && chatid && eventid) {
    const { text } = event.data.payload.event;
    // LiveChat may change a payload, and a type checks nothing at run time: what is no string is as good as absent.
    if (typeof text === "string" && text) {
      // PostgreSQL's texts have no NUL, and customers may write one.
      await database.query("insert into messages values ($1, $2, $3)", [chatid, eventid, text.replaceAll("\0", "")]);
    }
  }
}

// Keeps a record that is not a valid event, as it is, for people to look at. An alert on the topic's growth tells them.
async function keep(producer: Producer, topic: string, message: Message, reason: string): Promise<void> {
  const origin = `${message.topic}/${message.partition}@${message.offset}`;
  console.error(`dead letter: ${origin}: ${reason}`);
  const headers = new Map(message.headers);
  headers.set(Buffer.from("dead-letter-origin"), Buffer.from(origin));
  headers.set(Buffer.from("dead-letter-error"), Buffer.from(reason));
  await producer.send({ messages: [{ topic, key: message.key, value: message.value, headers }] });
}

// This client knows no patterns, so the topics are listed, and listed again: see `LIST_EVERY_MS`.
async function topicsOf({ brokers, prefix }: Options): Promise<string[]> {
  const admin = new Admin({ clientId: CLIENT, bootstrapBrokers: brokers });
  try {
    const topics = (await admin.listTopics()).filter((topic) => topic.startsWith(prefix));
    if (topics.length === 0) throw new Error(`no topic on \`${brokers.join(",")}\` begins with \`${prefix}\``);
    return topics;
  } finally {
    await admin.close();
  }
}

async function consume(
  given: Options,
  consumer: Consumer,
  producer: Producer,
  database: pg.Client,
  isEnvelope: ValidateFunction,
  stopping: AbortSignal,
): Promise<void> {
  const topics = await topicsOf(given);
  const stream = await consumer.consume({
    topics,
    mode: "committed",
    fallbackMode: "earliest", // where the group has committed nothing yet
    autocommit: false,
    maxWaitTime: 500,
  });

  // Commits the newest handled record of each partition. Where that fails, because another member has the partition now for
  // instance, the records come again, and the inbox knows them.
  const handled = new Map<string, Message>();
  const commit = async (): Promise<void> => {
    const commits = [...handled.values()].map((message) => message.commit());
    handled.clear();
    const failed = (await Promise.allSettled(commits)).filter((result) => result.status === "rejected");
    if (failed[0]) console.error(`could not commit ${failed.length} offsets: ${failed[0].reason}`);
  };

  const timer = setInterval(() => void commit(), COMMIT_EVERY_MS);
  const stop = (): void => void stream.close(() => {});
  stopping.addEventListener("abort", stop);
  if (stopping.aborted) stop(); // while the group was joined

  // A configuration of the relay's, or its next version, may have new topics: the program ends, and reads them when its supervisor
  // has started it again.
  let added: string[] = [];
  const lister = setInterval(() => {
    topicsOf(given).then(
      (listed) => {
        added = listed.filter((topic) => !topics.includes(topic));
        if (added.length > 0) stop();
      },
      (error) => console.error(`could not list the topics: ${error}`),
    );
  }, LIST_EVERY_MS);
  try {
    for await (const message of stream) {
      const event = parse(message, isEnvelope);
      if (typeof event === "string") {
        await keep(producer, given["dead-letters"], message, event);
      } else {
        await take(database, event);
      }
      handled.set(`${message.topic}/${message.partition}`, message);
    }
  } finally {
    clearInterval(timer);
    clearInterval(lister);
    await commit();
  }
  if (added.length > 0) throw new Error(`new topics: ${added.join(", ")}`);
}

async function main(given: Options): Promise<void> {
  const stopping = new AbortController();
  for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => stopping.abort());
  const ajv = new Ajv2020();
  addFormats.default(ajv);
  const isEnvelope = ajv.compile(JSON.parse(await readFile(given.schema, "utf8")));
  const database = new pg.Client(given.database);
  await database.connect();
  const producer = new Producer({ clientId: CLIENT, bootstrapBrokers: given.brokers });
  const consumer = new Consumer({ clientId: CLIENT, groupId: given.group, bootstrapBrokers: given.brokers });
  try {
    await consume(given, consumer, producer, database, isEnvelope, stopping.signal);
  } finally {
    await consumer.close(true); // leaves the group
    await producer.close();
    await database.end();
  }
}

try {
  await main(options());
} catch (error) {
  console.error(`error: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
