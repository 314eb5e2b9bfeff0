package example;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.networknt.schema.Schema;
import com.networknt.schema.SchemaRegistry;
import com.networknt.schema.SpecificationVersion;
import io.cloudevents.CloudEvent;
import io.cloudevents.kafka.KafkaMessageFactory;
import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerRecord;

/** Record → handled event, once for each id. */
final class Inbox implements AutoCloseable {
    /** More ids than this are not remembered: the oldest is forgotten for the newest. */
    private static final int IDS_MAX = 100_000;

    private final ObjectMapper json = new ObjectMapper();
    private final Schema schema;
    private final BufferedWriter out;

    // A real consumer keeps these in the database that it writes to, in the transaction of its own work:
    //
    //     begin;
    //     insert into events_seen (id) values (?) on conflict do nothing;  -- 0 rows: a duplicate, rollback and go on
    //     … what the event means to you …
    //     commit;                                                          -- then commit the offset
    //
    // So "seen" and "done" are one thing, through a crash as well. The relay's key is the chat: both copies of an event are on
    // one partition, and one consumer at a time gets them. Ids older than the topic's retention can be deleted.
    private final Set<String> seen = Collections.newSetFromMap(new LinkedHashMap<>() {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
            return size() > IDS_MAX;
        }
    });

    private long received;
    private long unique;
    private long duplicates;
    private long invalid;

    Inbox(Path schemaFile, Path outFile) throws IOException {
        try (var file = Files.newInputStream(schemaFile)) {
            schema = SchemaRegistry.withDefaultDialect(SpecificationVersion.DRAFT_2020_12).getSchema(file);
        }
        out = Files.newBufferedWriter(outFile, StandardOpenOption.CREATE, StandardOpenOption.APPEND);
    }

    void take(ConsumerRecord<String, byte[]> record) throws IOException {
        received++;
        CloudEvent event;
        try {
            event = read(record);
        } catch (IOException | RuntimeException e) {
            // It will be no better the next time. A real consumer puts it aside, on a dead-letter topic, and goes on.
            invalid++;
            System.err.printf("%s-%d@%d is no event: %s%n", record.topic(), record.partition(), record.offset(), e.getMessage());
            return;
        }
        if (seen.contains(event.getId())) {
            duplicates++;
            return;
        }
        handle(event, record);
        seen.add(event.getId());
        unique++;
    }

    /** The envelope follows its schema, and the SDK reads it. */
    private CloudEvent read(ConsumerRecord<String, byte[]> record) throws IOException {
        if (record.value() == null) {
            throw new IllegalArgumentException("it has no value");
        }
        JsonNode envelope = json.readTree(record.value());
        // Since 2019-09 a `format` is an annotation, unless one asks.
        var errors = schema.validate(envelope, run -> run.executionConfig(config -> config.formatAssertionsEnabled(true)));
        if (!errors.isEmpty()) {
            throw new IllegalArgumentException(errors.toString());
        }
        // It reads binary mode as well (the attributes are ce_ headers then); there is no envelope to check there.
        return KafkaMessageFactory.createReader(record).toEvent();
    }

    /** Your work. Here: a line in a file. */
    private void handle(CloudEvent event, ConsumerRecord<String, byte[]> record) throws IOException {
        var line = new LinkedHashMap<String, Object>();
        line.put("id", event.getId());
        line.put("type", event.getType());
        // LiveChat's own ids are extension attributes: most events can be sorted out without a look into `data`.
        if (event.getExtension("chatid") instanceof String chat) {
            line.put("chatid", chat);
        }
        line.put("topic", record.topic());
        line.put("partition", record.partition());
        line.put("offset", record.offset());
        out.write(json.writeValueAsString(line));
        out.newLine();
    }

    /** After this, what was taken is done, and its offsets may be committed. */
    void flush() throws IOException {
        out.flush();
    }

    long unique() {
        return unique;
    }

    long invalid() {
        return invalid;
    }

    String summary() throws IOException {
        var counts = new LinkedHashMap<String, Long>();
        counts.put("received", received);
        counts.put("unique", unique);
        counts.put("duplicates", duplicates);
        counts.put("invalid", invalid);
        return json.writeValueAsString(counts);
    }

    @Override
    public void close() throws IOException {
        out.close();
    }
}
