package transcripts;

import com.fasterxml.jackson.databind.JsonNode;
import io.cloudevents.CloudEvent;
import io.cloudevents.kafka.CloudEventDeserializer;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Instant;
import java.util.Set;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.Deserializer;

/**
 * An event of livechat-relay, as far as transcripts need it.
 *
 * @param at when it happened; for events whose payload does not say, when the relay took it
 * @param authorKind `customer`, `agent`, `bot` or `system` where the relay could prove it, else null
 */
record Event(String id, String type, String chatId, String threadId, Instant at, String authorKind, JsonNode payload) {
    static final String INCOMING_CHAT = "com.livechat.incoming_chat";
    static final String INCOMING_EVENT = "com.livechat.incoming_event";
    static final String CHAT_DEACTIVATED = "com.livechat.chat_deactivated";
    private static final Set<String> ACTIONS = Set.of(INCOMING_CHAT, INCOMING_EVENT, CHAT_DEACTIVATED);

    String threadKey() {
        return chatId + "/" + threadId;
    }

    /** Whether it is of an action that transcripts are made of: an operator may send several actions to one topic. */
    boolean isPartOfTranscript() {
        return ACTIONS.contains(type);
    }

    /** Reads both modes of the relay, structured and binary. What it throws, Kafka Streams sends to the dead-letter topic. */
    static final class Reader implements Deserializer<Event> {
        private final CloudEventDeserializer cloudEvents = new CloudEventDeserializer();

        @Override
        public Event deserialize(String topic, byte[] value) {
            throw new UnsupportedOperationException("a CloudEvent cannot be read without the record's headers");
        }

        @Override
        public Event deserialize(String topic, Headers headers, byte[] value) {
            CloudEvent cloudEvent = cloudEvents.deserialize(topic, headers, value);
            var event = new Event(cloudEvent.getId(), cloudEvent.getType(), attribute(cloudEvent, "chatid"),
                    attribute(cloudEvent, "threadid"), at(cloudEvent), attribute(cloudEvent, "authorkind"), payload(cloudEvent));
            if (event.isPartOfTranscript() && (event.chatId == null || event.threadId == null || event.at == null)) {
                throw new SerializationException("the event " + event.id + " has no chatid, threadid or recordedtime");
            }
            return event;
        }

        private static String attribute(CloudEvent event, String name) {
            return event.getExtension(name) instanceof String value ? value : null;
        }

        private static Instant at(CloudEvent event) {
            return event.getTime() != null ? event.getTime().toInstant() : Json.time(attribute(event, "recordedtime"));
        }

        private static JsonNode payload(CloudEvent event) {
            if (event.getData() == null) {
                throw new SerializationException("the event " + event.getId() + " has no data");
            }
            try {
                return Json.MAPPER.readTree(event.getData().toBytes()).path("payload");
            } catch (IOException e) {
                throw new UncheckedIOException(e);
            }
        }
    }
}
