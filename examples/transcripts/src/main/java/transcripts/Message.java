package transcripts;

import java.time.Instant;
import java.util.Comparator;
import java.util.List;
import livechat.LiveChat;

/**
 * Something said or shown in a thread.
 *
 * @param type LiveChat's type of event: `message`, `file`, `filled_form`, `system_message`, …
 * @param internal true for what only agents see; else null
 * @param text of messages
 * @param url of files
 * @param fields of forms
 */
record Message(String id, Instant at, String type, String authorKind, String authorId, Boolean internal, String text, String url,
        List<LiveChat.ChatEventField> fields) {
    /** By time; what has the same time by id, which LiveChat counts upwards within a thread: `T_9` is before `T_10`. */
    static final Comparator<Message> ORDER = Comparator.comparing(Message::at)
            .thenComparing(message -> message.id.length())
            .thenComparing(Message::id);

    /** Of LiveChat's event. Where it lacks its id or time, which LiveChat documents as always there, `within` lends its own. */
    static Message of(LiveChat.ChatEvent event, Event within, String authorKind) {
        var at = Json.time(event.createdAt());
        // `recipients` is the name up to API 3.3.
        boolean internal = "agents".equals(event.visibility()) || "agents".equals(event.recipients());
        return new Message(event.id() != null ? event.id() : within.id(), at != null ? at : within.at(), event.type(), authorKind,
                event.authorId(), internal ? true : null, event.text(), event.url(), event.fields());
    }

    /**
     * Who wrote it. Webhooks of `incoming_event` say it of LiveChat's own events only; the thread's customer says the rest: other ids
     * are agents' e-mail addresses, or bots'. A bot is `unknown` where the relay could not prove it.
     */
    Message withAuthorOf(Transcript.Customer customer) {
        String kind;
        if (authorKind != null) {
            kind = authorKind;
        } else if ("system".equals(type) || "system_message".equals(type)) {
            kind = "system";
        } else if (authorId != null && customer != null && authorId.equals(customer.id())) {
            kind = "customer";
        } else if (authorId != null && authorId.contains("@")) {
            kind = "agent";
        } else {
            kind = "unknown";
        }
        return new Message(id, at, type, kind, authorId, internal, text, url, fields);
    }
}
