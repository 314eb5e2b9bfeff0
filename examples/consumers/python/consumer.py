"""Reads the events of livechat-relay from Kafka, and handles each once in PostgreSQL: take each record, then commit its offset.

A crash between the two brings records again, and loses none; the inbox knows the ids that are done. Where the database or Kafka
does not accept something, the program ends: its supervisor starts it again, and it goes on with what is not committed.
"""

import argparse
import json
import re
import signal
import sys
from typing import cast

import psycopg
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from jsonschema import Draft202012Validator

from livechat import IncomingEventData  # contract/types


class DeadLetters:
    """Keeps a record that is not a valid event, as it is, for people to look at. An alert on the topic's growth tells them."""

    def __init__(self, brokers: str, topic: str) -> None:
        self.producer = Producer({"bootstrap.servers": brokers, "acks": "all"})
        self.topic = topic

    def keep(self, record: Message, reason: Exception) -> None:
        origin = f"{record.topic()}/{record.partition()}@{record.offset()}"
        print(f"dead letter: {origin}: {type(reason).__name__}", file=sys.stderr)  # not what it holds: that may be personal
        failures: list[KafkaError] = []
        self.producer.produce(
            self.topic,
            key=record.key(),
            value=record.value(),
            headers=[*(record.headers() or []), ("dead-letter-origin", origin), ("dead-letter-error", str(reason))],
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
        self.producer.flush()
        if failures:
            raise KafkaException(failures[0])


class Reader:
    """Record -> event, or an exception."""

    def __init__(self, schema: dict) -> None:
        # Since 2019-09 a `format` is an annotation, unless one asks.
        self.validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)

    def read(self, record: Message) -> BaseCloudEvent:
        if record.value() is None:
            raise ValueError("it has no value")
        # The schema comes first: to an envelope without `id` or `time` this SDK gives a random id and the present time.
        errors = [f"{e.json_path} breaks {e.validator}" for e in self.validator.iter_errors(json.loads(record.value()))]
        if errors:
            raise ValueError("; ".join(errors))
        # The SDK reads binary mode, too (the attributes are ce_ headers then): leave the schema out for that.
        return from_kafka_event(
            KafkaMessage(headers=dict(record.headers() or []), key=record.key(), value=record.value())
        )


def take(database: psycopg.Connection, event: BaseCloudEvent) -> None:
    """The event's effect, once. Should another member take it meanwhile, the insert waits for what becomes of that transaction."""
    with database.transaction():
        added = database.execute("insert into inbox (id) values (%s) on conflict do nothing", (event.get_id(),))
        if added.rowcount == 1:  # else it is a duplicate
            handle(database, event)


def handle(database: psycopg.Connection, event: BaseCloudEvent) -> None:
    """Your work, within the transaction."""
    # LiveChat's own ids are extension attributes: most events can be sorted out without a look into `data`.
    chat, chat_event = event.get_extension("chatid"), event.get_extension("eventid")
    if chat:
        database.execute(
            "insert into chats values (%s, 1) on conflict (chat_id) do update set events = chats.events + 1", (chat,)
        )
    # The type says what `data` is. `eventid` comes from `payload.event`, and is absent where LiveChat has sent none.
    if event.get_type() == "com.livechat.incoming_event" and chat and chat_event:
        data = cast(IncomingEventData, event.get_data())
        text = data["payload"]["event"].get("text")
        # LiveChat may change a payload, and a type checks nothing at run time: what is no string is as good as absent.
        if isinstance(text, str) and text:
            # PostgreSQL takes neither NUL nor half of a surrogate pair, and customers may write both.
            text = text.replace("\0", "").encode(errors="replace").decode()
            database.execute("insert into messages values (%s, %s, %s)", (chat, chat_event, text))


def run(options: argparse.Namespace, reader: Reader, database: psycopg.Connection, stopping: list[int]) -> None:
    dead_letters = DeadLetters(options.brokers, options.dead_letters)
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
        while not stopping:
            # Partitions are given to other members within this call only: what it has brought is committed before the next one.
            records = [message for message in consumer.consume(num_messages=100, timeout=0.5) if not broken(message)]
            for record in records:
                try:
                    event = reader.read(record)
                except Exception as e:  # whatever this record makes its readers raise, the SDK's exceptions share no base class
                    dead_letters.keep(record, e)
                else:
                    take(database, event)
            if records:
                commit(consumer)
    finally:
        consumer.close()  # leaves the group, so that the others need not wait out our session


def commit(consumer: Consumer) -> None:
    try:
        consumer.commit(asynchronous=False)
    except KafkaException as e:
        # Most likely this member was thought dead, and another one has its partitions now: the records come again, and the
        # inbox knows them. Should the brokers be away, the next commit includes this one.
        print(f"not committed, and no harm done: {e}", file=sys.stderr)


def broken(message: Message) -> bool:
    """Whether this is the client's news rather than a record. What is not fatal, librdkafka tries again by itself."""
    error: KafkaError | None = message.error()
    if error is None:
        return False
    if error.fatal():
        raise KafkaException(error)
    print(f"Kafka: {error}", file=sys.stderr)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="consumer", description="Handles each event of livechat-relay once.")
    parser.add_argument("--brokers", required=True, metavar="HOST:PORT")
    parser.add_argument("--prefix", required=True, metavar="livechat.")
    parser.add_argument("--group", required=True)
    parser.add_argument("--schema", required=True, metavar="FILE")
    parser.add_argument("--database", required=True, metavar="postgresql://…")
    parser.add_argument("--dead-letters", required=True, metavar="TOPIC")
    options = parser.parse_args()

    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: stopping.append(got))
    with open(options.schema, encoding="utf-8") as file:
        reader = Reader(json.load(file))
    with psycopg.connect(options.database, autocommit=True) as database:
        run(options, reader, database, stopping)


if __name__ == "__main__":
    main()
