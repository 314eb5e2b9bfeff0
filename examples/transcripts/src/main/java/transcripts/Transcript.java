package transcripts;

import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.List;

/**
 * What is published for a thread. Seconds are absent where the thread does not have what they are between.
 *
 * @param agents who wrote in the thread, and who was in it when it began
 * @param endedAt absent in a thread of which no end has come within the retention
 * @param queueSeconds how long the chat waited for an agent before `incoming_chat`, by LiveChat
 * @param firstResponseSeconds from the customer's first event to an agent's first visible one after it; queue time is part of it
 * @param handlingSeconds from an agent's first visible event to the end
 * @param messagesLeftOut how many of the last messages did not fit into a record
 */
record Transcript(String chatId, String threadId, Customer customer, Collection<String> agents, List<String> tags, Instant startedAt,
        Instant endedAt, Long queueSeconds, Double firstResponseSeconds, Double handlingSeconds, List<Message> messages,
        int messagesLeftOut) {
    /** The brokers' limit for a record is 1 MiB unless the operator has raised it. */
    private static final int MESSAGES_BYTES_MAX = 900_000;

    record Customer(String id, String name, String email) {}

    /** Of a thread that has begun, and its messages in any order. */
    static Transcript of(ThreadState thread, Collection<Message> unordered) {
        var beginning = thread.beginning();
        var messages = unordered.stream().map(message -> message.withAuthorOf(beginning.customer())).sorted(Message.ORDER).toList();
        var agents = new LinkedHashSet<>(beginning.agents());
        Instant asked = null;
        Instant answered = null;
        Instant handled = null;
        for (var message : messages) {
            boolean byAgent = "agent".equals(message.authorKind()) && message.internal() == null;
            if ("agent".equals(message.authorKind())) {
                agents.add(message.authorId());
            }
            if (asked == null && "customer".equals(message.authorKind())) {
                asked = message.at();
            } else if (asked != null && answered == null && byAgent) {
                answered = message.at();
            }
            if (handled == null && byAgent) {
                handled = message.at();
            }
        }
        var fitting = new ArrayList<Message>();
        int bytes = 0;
        for (var message : messages) {
            bytes += Json.bytes(message).length;
            if (bytes > MESSAGES_BYTES_MAX) {
                break;
            }
            fitting.add(message);
        }
        return new Transcript(thread.chatId(), thread.threadId(), beginning.customer(), agents, beginning.tags(),
                beginning.startedAt(), thread.endedAt(), beginning.queueSeconds(), seconds(asked, answered),
                seconds(handled, thread.endedAt()), fitting, messages.size() - fitting.size());
    }

    /** LiveChat's clock says when something was written, and the relay's when the thread was closed: they may disagree a little. */
    private static Double seconds(Instant from, Instant to) {
        return from == null || to == null ? null : Math.max(0, Duration.between(from, to).toMillis()) / 1000.0;
    }
}
