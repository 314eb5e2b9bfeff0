// Reads livechat-relay's events from Kafka with @platformatic/kafka, and handles each once although each may arrive twice.
//
// It shows: every topic with the prefix, from its beginning · the value as a CloudEvent (the relay's `events.mode` is
// "structured", the default), held against the JSON Schema · duplicates known by their `id` · offsets committed after the
// handling, never before · a record that cannot be read is reported and passed over, so that it stops no other record · SIGTERM
// leaves the group, so that the others take over at once.
//
//   npm ci && npm run build
//   node dist/consumer.js --brokers localhost:9092 --prefix livechat. --group example --expect 100 \
//     --schema envelope.schema.json --timeout 60 --out handled.jsonl
//
// It ends when `--expect` events are handled and nothing more comes, which a real consumer would not.

import { type FileHandle, open, readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { Admin, Consumer, type Message } from "@platformatic/kafka";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";
import { CloudEvent } from "cloudevents";

const SEEN_MAX = 100_000; // ids remembered
const CLIENT = "example-typescript";
const COMMIT_EVERY_MS = 500;
const QUIET_MS = 2_000;

type Options = ReturnType<typeof options>;
type Counts = Record<"received" | "unique" | "duplicates" | "invalid", number>;

function options() {
  const option = (fallback: string) => ({ type: "string" as const, default: fallback });
  const { values } = parseArgs({
    options: {
      brokers: option("localhost:9092"),
      prefix: option("livechat."),
      group: option("example"),
      expect: option("100"),
      schema: option("envelope.schema.json"),
      timeout: option("60"),
      out: option("handled.jsonl"),
    },
  });
  const given = {
    ...values,
    brokers: values.brokers.split(","),
    expect: Number(values.expect),
    timeout: Number(values.timeout),
  };
  if (!(given.expect > 0 && given.timeout > 0)) throw new TypeError("`--expect` and `--timeout` want numbers above 0");
  return given;
}

// Keeps the ids handled lately; the oldest go first.
//
// A real consumer keeps them in its database: `INSERT … ON CONFLICT DO NOTHING` of the id into a table, in the transaction
// that stores the effect of the event. Then neither a restart nor another replica handles an event twice.
function remember(seen: Set<string>, id: string): void {
  seen.add(id);
  const [oldest] = seen;
  if (seen.size > SEEN_MAX && oldest !== undefined) seen.delete(oldest);
}

// The event in a record, or nothing where it holds none: which is reported without what it holds, for that may be personal.
// A real consumer puts such a record on a topic of its own for people to look at.
//
// The schema comes first, for the SDK makes up an id or a time where there is none. Its `Kafka.toEvent` will not do: that
// throws where an event has no time, and LiveChat tells none for many actions.
function parse(message: Message, isEnvelope: ValidateFunction): CloudEvent<unknown> | undefined {
  const { topic, partition, offset, value } = message;
  let reason: string;
  try {
    const envelope: unknown = JSON.parse(value.toString());
    if (isEnvelope(envelope)) return new CloudEvent(envelope as Partial<CloudEvent<unknown>>);
    reason = `${isEnvelope.errors?.[0]?.instancePath} ${isEnvelope.errors?.[0]?.message}`.trim();
  } catch (error) {
    reason = error instanceof SyntaxError ? "not JSON" : `${error}`;
  }
  console.error(`invalid: ${topic}/${partition}@${offset}: ${reason}`);
  return undefined;
}

// What your program does with an event: `source` says whose it is, `subject` what it is about, `data` is
// LiveChat's body.
async function handle(out: FileHandle, { id, type, chatid }: CloudEvent<unknown>, at: Message): Promise<void> {
  const { topic, partition, offset } = at;
  await out.appendFile(`${JSON.stringify({ id, type, chatid, topic, partition, offset: Number(offset) })}\n`);
}

// This client knows no patterns. The relay makes its topics when it starts, so a list taken now has them all.
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
  out: FileHandle,
  isEnvelope: ValidateFunction,
): Promise<Counts> {
  const stream = await consumer.consume({
    topics: await topicsOf(given),
    mode: "committed",
    fallbackMode: "earliest", // where the group has committed nothing yet
    autocommit: false,
    maxWaitTime: 500,
  });

  // Commits the newest handled record of each partition. Where that fails, because the group is being shared out again for
  // instance, the records come again and are known by their ids.
  const handled = new Map<string, Message>();
  const commit = async (): Promise<void> => {
    const commits = [...handled.values()].map((message) => message.commit());
    handled.clear();
    const failed = (await Promise.allSettled(commits)).filter((result) => result.status === "rejected");
    if (failed[0]) console.error(`could not commit ${failed.length} offsets: ${failed[0].reason}`);
  };

  const counts = { received: 0, unique: 0, duplicates: 0, invalid: 0 };
  const started = Date.now();
  let latest = started;
  const stop = (): void => void stream.close(() => {});
  const timer = setInterval(() => {
    void commit();
    const done = counts.unique >= given.expect && Date.now() - latest >= QUIET_MS;
    if (done || Date.now() - started >= given.timeout * 1_000) stop();
  }, COMMIT_EVERY_MS);
  process.once("SIGTERM", stop).once("SIGINT", stop);

  const seen = new Set<string>();
  try {
    for await (const message of stream) {
      counts.received += 1;
      latest = Date.now();
      const event = parse(message, isEnvelope);
      if (!event) {
        counts.invalid += 1;
      } else if (seen.has(event.id)) {
        counts.duplicates += 1;
      } else {
        await handle(out, event, message); // where this fails, the program ends; the next start gets the event again
        remember(seen, event.id);
        counts.unique += 1;
      }
      handled.set(`${message.topic}/${message.partition}`, message);
    }
  } finally {
    clearInterval(timer);
    await commit();
  }
  return counts;
}

async function main(given: Options): Promise<boolean> {
  const ajv = new Ajv2020();
  addFormats.default(ajv);
  const isEnvelope = ajv.compile(JSON.parse(await readFile(given.schema, "utf8")));
  const out = await open(given.out, "a");
  const consumer = new Consumer({ clientId: CLIENT, groupId: given.group, bootstrapBrokers: given.brokers });
  try {
    const counts = await consume(given, consumer, out, isEnvelope);
    console.log(JSON.stringify(counts));
    return counts.unique === given.expect && counts.invalid === 0;
  } finally {
    await consumer.close(true); // leaves the group
    await out.close();
  }
}

try {
  process.exitCode = (await main(options())) ? 0 : 1;
} catch (error) {
  console.error(`error: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
