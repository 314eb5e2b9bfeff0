package transcripts;

import com.fasterxml.jackson.databind.JsonNode;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;

/**
 * What is known of a thread but for its messages.
 *
 * @param beginning of `incoming_chat`; null before it has come
 * @param endedAt of `chat_deactivated`; null before it has come
 * @param lastChange the stream's time when something new was learnt
 * @param publishing whether its record is due
 */
record ThreadState(String chatId, String threadId, Beginning beginning, Instant endedAt, long lastChange, boolean publishing) {

    record Beginning(Instant startedAt, Transcript.Customer customer, List<String> agents, List<String> tags, Long queueSeconds) {
        static Beginning of(Event event) {
            var chat = event.payload().path("chat");
            var thread = chat.path("thread");
            Transcript.Customer customer = null;
            var agents = new ArrayList<String>();
            for (var user : chat.path("users")) {
                var id = Json.text(user, "id");
                if ("customer".equals(Json.text(user, "type"))) {
                    customer = new Transcript.Customer(id, Json.text(user, "name"), Json.text(user, "email"));
                } else if (id != null && id.contains("@")) { // bots are of the type `agent` here, but have no e-mail address
                    agents.add(id);
                }
            }
            var tags = new ArrayList<String>();
            thread.path("tags").forEach(tag -> tags.add(tag.asText()));
            return new Beginning(event.at(), customer, agents, tags, queueSeconds(thread));
        }

        private static Long queueSeconds(JsonNode thread) {
            JsonNode all = thread.path("queues_duration");
            JsonNode seconds = all.isNumber() ? all : thread.path("queue").path("wait_time");
            return seconds.isNumber() ? seconds.longValue() : null;
        }
    }

    static ThreadState of(Event event) {
        return new ThreadState(event.chatId(), event.threadId(), null, null, 0, false);
    }

    ThreadState begun(Beginning of) {
        return new ThreadState(chatId, threadId, of, endedAt, lastChange, publishing);
    }

    ThreadState ended(Instant at) {
        return new ThreadState(chatId, threadId, beginning, at, lastChange, publishing);
    }

    ThreadState changed(long at) {
        return new ThreadState(chatId, threadId, beginning, endedAt, at, publishing);
    }

    ThreadState publishing(boolean due) {
        return new ThreadState(chatId, threadId, beginning, endedAt, lastChange, due);
    }
}
