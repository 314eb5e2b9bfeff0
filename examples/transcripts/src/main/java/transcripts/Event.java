package transcripts;

import io.cloudevents.CloudEvent;
import io.cloudevents.kafka.CloudEventDeserializer;
import java.time.Instant;
import java.util.Set;
import livechat.LiveChat;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.Deserializer;

/**
 * An event of livechat-relay, as far as transcripts need it.
 *
 * @param at when it happened; for events whose payload does not say, when the relay received it
 * @param authorKind `customer`, `agent`, `bot` or `system` where the relay could prove it, else null
 * @param chat of `incoming_chat`, else null
 * @param said of `incoming_event`, else null
 */
record Event(String id, String type, String chatId, String threadId, Instant at, String authorKind, LiveChat.Chat chat,
        LiveChat.ChatEvent said) {
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
            if (cloudEvent.getData() == null) {
                throw new SerializationException("the event " + cloudEvent.getId() + " has no data");
            }
            var event = of(cloudEvent, cloudEvent.getData().toBytes());
            if (event.isPartOfTranscript() && (event.chatId == null || event.threadId == null || event.at == null)) {
                throw new SerializationException("the event " + event.id + " has no chatid, threadid or recordedtime");
            }
            return event;
        }

        /** Which of the types in LiveChat.java the data has, the event's type says. */
        private static Event of(CloudEvent event, byte[] data) {
            LiveChat.Chat chat = null;
            LiveChat.ChatEvent said = null;
            switch (event.getType()) {
                case INCOMING_CHAT -> {
                    var payload = Payload.read(data, LiveChat.IncomingChatData.class).payload();
                    if (payload == null || payload.chat() == null || payload.chat().thread() == null) {
                        throw new SerializationException("the event " + event.getId() + " has no chat with a thread");
                    }
                    chat = payload.chat();
                }
                case INCOMING_EVENT -> {
                    var payload = Payload.read(data, LiveChat.IncomingEventData.class).payload();
                    if (payload == null || payload.event() == null) {
                        throw new SerializationException("the event " + event.getId() + " has no event of a chat");
                    }
                    said = payload.event();
                }
                default -> {} // transcripts need nothing of it
            }
            return new Event(event.getId(), event.getType(), attribute(event, "chatid"), attribute(event, "threadid"), at(event),
                    attribute(event, "authorkind"), chat, said);
        }

        private static String attribute(CloudEvent event, String name) {
            return event.getExtension(name) instanceof String value ? value : null;
        }

        private static Instant at(CloudEvent event) {
            return event.getTime() != null ? event.getTime().toInstant() : Json.time(attribute(event, "recordedtime"));
        }
    }
}
