package example;

import io.cloudevents.CloudEvent;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;
import livechat.LiveChat;

/** Event → its effect in PostgreSQL, once for each id. */
final class Inbox implements AutoCloseable {
    private final Connection database;

    Inbox(String url) throws SQLException {
        database = DriverManager.getConnection(url);
        database.setAutoCommit(false);
    }

    /** Should another member take the same event meanwhile, the insert waits for what becomes of that transaction. */
    void take(CloudEvent event) throws SQLException {
        // Where this throws, the program ends, and the database rolls back with the connection.
        try (var insert = database.prepareStatement("insert into inbox (id) values (?) on conflict do nothing")) {
            insert.setString(1, event.getId());
            if (insert.executeUpdate() == 1) { // else it is a duplicate
                handle(event);
            }
        }
        database.commit();
    }

    /** Your work, within the transaction. */
    private void handle(CloudEvent event) throws SQLException {
        // LiveChat's own ids are extension attributes: most events can be sorted out without a look into `data`.
        if (event.getExtension("chatid") instanceof String chat) {
            try (var add = database.prepareStatement(
                    "insert into chats values (?, 1) on conflict (chat_id) do update set events = chats.events + 1")) {
                add.setString(1, chat);
                add.executeUpdate();
            }
            // The type says what `data` is. `eventid` comes from `payload.event`, and is absent where LiveChat has sent none.
            if (event.getType().equals("com.livechat.incoming_event") && event.getExtension("eventid") instanceof String chatEvent) {
                var text = Data.of(event, LiveChat.IncomingEventData.class).payload().event().text();
                if (text != null && !text.isEmpty()) {
                    keep(chat, chatEvent, text);
                }
            }
        }
    }

    private void keep(String chat, String chatEvent, String text) throws SQLException {
        try (var add = database.prepareStatement("insert into messages values (?, ?, ?)")) {
            add.setString(1, chat);
            add.setString(2, chatEvent);
            add.setString(3, text.replace("\0", "")); // PostgreSQL's texts have no NUL, and customers may write one
            add.executeUpdate();
        }
    }

    @Override
    public void close() throws SQLException {
        database.close();
    }
}
