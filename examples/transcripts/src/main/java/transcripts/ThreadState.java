package transcripts;

import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import livechat.LiveChat;

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
        static Beginning of(LiveChat.Chat chat, Instant at) {
            Transcript.Customer customer = null;
            var agents = new ArrayList<String>();
            for (var user : Payload.elements(chat.users())) {
                if ("customer".equals(user.type())) {
                    customer = new Transcript.Customer(user.id(), user.name(), user.email());
                } else if (user.id() != null && user.id().contains("@")) { // bots are of the type `agent` here, but have no e-mail address
                    agents.add(user.id());
                }
            }
            return new Beginning(at, customer, agents, Payload.elements(chat.thread().tags()), queueSeconds(chat.thread()));
        }

        private static Long queueSeconds(LiveChat.Thread thread) {
            if (thread.queuesDuration() != null) {
                return thread.queuesDuration();
            }
            return thread.queue() == null ? null : thread.queue().waitTime();
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
