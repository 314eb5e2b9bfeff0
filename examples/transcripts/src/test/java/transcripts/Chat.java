package transcripts;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.streams.test.TestRecord;

/** Events of a thread as the relay writes them. Times are seconds after {@link #START}. */
final class Chat {
    static final Instant START = Instant.parse("2026-03-01T10:00:00Z");
    static final String CUSTOMER = "b3c1a5c8-0b68-4f6c-9d4f-0d6f8c7e2a11";
    static final String AGENT = "ines@shop.example";
    static final String BOT = "0f9d2c";

    final String chat;
    final String thread;

    Chat(String chat, String thread) {
        this.chat = chat;
        this.thread = thread;
    }

    /** An event as LiveChat has it: number N of the thread. */
    ObjectNode said(int number, double seconds, String author, String text) {
        var event = Json.MAPPER.createObjectNode();
        event.put("id", thread + "_" + number).put("type", "message").put("author_id", author);
        return event.put("created_at", at(seconds)).put("text", text).put("visibility", "all");
    }

    /** `incoming_chat` at second 0, with what was said first inside it. */
    ObjectNode begins(ObjectNode... first) {
        var envelope = envelope("incoming_chat").put("time", at(0));
        var body = payload(envelope).putObject("chat").put("id", chat);
        var users = body.putArray("users");
        users.addObject().put("id", CUSTOMER).put("type", "customer").put("name", "Ana").put("email", "ana@mail.example");
        users.addObject().put("id", AGENT).put("type", "agent");
        users.addObject().put("id", BOT).put("type", "agent");
        var started = body.putObject("thread").put("id", thread).put("created_at", at(0)).put("queues_duration", 40);
        started.putArray("tags").add("order");
        var events = started.putArray("events");
        for (var event : first) {
            events.add(event);
        }
        return envelope;
    }

    /** `incoming_event`. */
    ObjectNode event(ObjectNode said) {
        var envelope = envelope("incoming_event").put("time", said.get("created_at").asText());
        payload(envelope).put("chat_id", chat).put("thread_id", thread).set("event", said);
        return envelope;
    }

    /** `chat_deactivated`, which has no time but the relay's. */
    ObjectNode ends(double seconds) {
        var envelope = envelope("chat_deactivated").put("recordedtime", at(seconds));
        payload(envelope).put("chat_id", chat).put("thread_id", thread);
        return envelope;
    }

    private ObjectNode envelope(String action) {
        var envelope = Json.MAPPER.createObjectNode().put("specversion", "1.0").put("id", "00000000-0000-8000-8000-000000000000");
        envelope.put("source", "/livechat/organizations/o").put("type", "com.livechat." + action).put("chatid", chat);
        envelope.put("threadid", thread).put("recordedtime", at(0.5)).put("datacontenttype", "application/json");
        envelope.putObject("data").put("action", action);
        return envelope;
    }

    private static ObjectNode payload(ObjectNode envelope) {
        return ((ObjectNode) envelope.get("data")).putObject("payload");
    }

    private static String at(double seconds) {
        return START.plusMillis(Math.round(seconds * 1000)).toString();
    }

    /** The record of an envelope in structured mode, written to Kafka when the relay took the event. */
    static TestRecord<String, byte[]> structured(ObjectNode envelope, Instant written) {
        var headers = new RecordHeaders().add("content-type", "application/cloudevents+json".getBytes(StandardCharsets.UTF_8));
        return new TestRecord<>(envelope.path("chatid").asText(), Json.bytes(envelope), headers, written);
    }

    /** The same in binary mode: the attributes are headers, the value is `data`. */
    static TestRecord<String, byte[]> binary(ObjectNode envelope, Instant written) {
        var headers = new RecordHeaders().add("content-type", "application/json".getBytes(StandardCharsets.UTF_8));
        envelope.properties().forEach(member -> {
            if (!member.getKey().equals("data") && !member.getKey().equals("datacontenttype")) {
                headers.add("ce_" + member.getKey(), member.getValue().asText().getBytes(StandardCharsets.UTF_8));
            }
        });
        return new TestRecord<>(envelope.path("chatid").asText(), Json.bytes(envelope.get("data")), headers, written);
    }
}
