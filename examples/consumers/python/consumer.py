"""Reads the events of livechat-relay from Kafka: take each record, then commit.

Offsets are committed after the work, so a crash between the two brings records again, never loses one.
What makes that harmless is Inbox, which knows the ids that it has handled.
"""

import argparse
import json
import re
import signal
import sys
import time
from collections import OrderedDict
from typing import TextIO

from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from confluent_kafka import Consumer, KafkaError, KafkaException, Message
from jsonschema import Draft202012Validator

# Nothing more for this long, once all expected events are here: the end of a run. A real consumer has none.
QUIET_SECONDS = 2.0
# More ids than this are not remembered: the oldest is forgotten for the newest.
IDS_MAX = 100_000


class Inbox:
    """Record -> handled event, once for each id."""

    def __init__(self, schema: dict, out: TextIO) -> None:
        # Since 2019-09 a `format` is an annotation, unless one asks.
        self.validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
        self.out = out
        # A real consumer keeps these in the database that it writes to, in the transaction of its own work:
        #
        #     begin;
        #     insert into events_seen (id) values (%s) on conflict do nothing;  -- 0 rows: a duplicate, rollback and go on
        #     ... what the event means to you ...
        #     commit;                                                           -- then commit the offset
        #
        # So "seen" and "done" are one thing, through a crash as well. The relay's key is the chat: both copies of an event
        # are on one partition, and one consumer at a time gets them. Ids older than the topic's retention can be deleted.
        self.seen: OrderedDict[str, None] = OrderedDict()
        self.counts = {"received": 0, "unique": 0, "duplicates": 0, "invalid": 0}

    def take(self, record: Message) -> None:
        self.counts["received"] += 1
        try:
            event = self.read(record)
        except Exception as e:  # whatever this record makes its readers raise, the SDK's exceptions share no base class
            # It will be no better the next time. A real consumer puts it aside, on a dead-letter topic, and goes on.
            self.counts["invalid"] += 1
            print(f"{record.topic()}-{record.partition()}@{record.offset()} is no event: {e!r}", file=sys.stderr)
            return
        if event.get_id() in self.seen:
            self.counts["duplicates"] += 1
            return
        self.handle(event, record)
        self.seen[event.get_id()] = None
        if len(self.seen) > IDS_MAX:
            self.seen.popitem(last=False)
        self.counts["unique"] += 1

    def read(self, record: Message) -> BaseCloudEvent:
        """The envelope follows its schema, and the SDK reads it; else an exception."""
        if record.value() is None:
            raise ValueError("it has no value")
        # The schema comes first: to an envelope without `id` or `time` this SDK gives a random id and the present time.
        errors = [f"{e.json_path}: {e.message}" for e in self.validator.iter_errors(json.loads(record.value()))]
        if errors:
            raise ValueError("; ".join(errors))
        # It reads binary mode as well (the attributes are ce_ headers then); there is no envelope to check there.
        return from_kafka_event(
            KafkaMessage(headers=dict(record.headers() or []), key=record.key(), value=record.value())
        )

    def handle(self, event: BaseCloudEvent, record: Message) -> None:
        """Your work. Here: a line in a file."""
        line = {"id": event.get_id(), "type": event.get_type()}
        # LiveChat's own ids are extension attributes: most events can be sorted out without a look into `data`.
        if chat := event.get_extension("chatid"):
            line["chatid"] = chat
        line |= {"topic": record.topic(), "partition": record.partition(), "offset": record.offset()}
        print(json.dumps(line), file=self.out)


def run(options: argparse.Namespace, inbox: Inbox, stopping: list[int]) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": options.brokers,
            "group.id": options.group,
            "enable.auto.commit": False,
            # A group that has committed nothing yet begins with the oldest event.
            "auto.offset.reset": "earliest",
        }
    )
    try:
        # A topic that begins with ^ is a pattern: the relay's topics of today and of tomorrow (a new one is noticed within
        # topic.metadata.refresh.interval.ms, 5 minutes).
        consumer.subscribe([f"^{re.escape(options.prefix)}.*"])
        deadline = time.monotonic() + options.timeout
        last = time.monotonic()
        while not stopping and time.monotonic() < deadline:
            batch = consumer.consume(num_messages=500, timeout=0.2)
            records = [message for message in batch if not broken(message)]
            if not records:
                if inbox.counts["unique"] >= options.expect and time.monotonic() - last > QUIET_SECONDS:
                    break
                continue
            last = time.monotonic()
            for record in records:
                inbox.take(record)
            inbox.out.flush()
            try:
                consumer.commit(asynchronous=False)
            except KafkaException as e:
                # Most likely someone else has these partitions now and gets the records again: their ids tell that they
                # are done. Should the brokers be away, the next commit includes this one.
                print(f"not committed, and no harm done: {e}", file=sys.stderr)
    finally:
        consumer.close()  # leaves the group, so that the others need not wait out our session


def broken(message: Message) -> bool:
    """Whether this is the client's news rather than a record. librdkafka recovers from what is not fatal by itself."""
    error: KafkaError | None = message.error()
    if error is None:
        return False
    if error.fatal():
        raise KafkaException(error)
    print(f"Kafka: {error}", file=sys.stderr)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="consumer", description="Handles each event of livechat-relay once.")
    parser.add_argument("--brokers", required=True, metavar="HOST:PORT")
    parser.add_argument("--prefix", required=True, metavar="livechat.")
    parser.add_argument("--group", required=True)
    parser.add_argument("--expect", required=True, type=int, metavar="N")
    parser.add_argument("--schema", required=True, metavar="FILE")
    parser.add_argument("--timeout", required=True, type=float, metavar="SECONDS")
    parser.add_argument("--out", required=True, metavar="FILE")
    options = parser.parse_args()

    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopping.append(got))
    with open(options.schema, encoding="utf-8") as file:
        schema = json.load(file)
    with open(options.out, "a", encoding="utf-8") as out:
        inbox = Inbox(schema, out)
        run(options, inbox, stopping)
    print(json.dumps(inbox.counts))
    return 0 if inbox.counts["unique"] == options.expect and inbox.counts["invalid"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
