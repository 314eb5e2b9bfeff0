package example;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.networknt.schema.Schema;
import com.networknt.schema.SchemaRegistry;
import com.networknt.schema.SpecificationVersion;
import io.cloudevents.CloudEvent;
import io.cloudevents.kafka.KafkaMessageFactory;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Collectors;
import org.apache.kafka.clients.consumer.ConsumerRecord;

/** Record → event. */
final class EventReader {
    /** It will be no better the next time. */
    static final class NoEvent extends Exception {
        NoEvent(String reason) {
            super(reason);
        }
    }

    private final ObjectMapper json = new ObjectMapper();
    private final Schema schema;

    EventReader(Path schemaFile) throws IOException {
        try (var file = Files.newInputStream(schemaFile)) {
            schema = SchemaRegistry.withDefaultDialect(SpecificationVersion.DRAFT_2020_12).getSchema(file);
        }
    }

    /** The envelope follows its schema, and the SDK reads it. */
    CloudEvent read(ConsumerRecord<byte[], byte[]> record) throws NoEvent {
        if (record.value() == null) {
            throw new NoEvent("it has no value");
        }
        try {
            // Since 2019-09 a `format` is an annotation, unless one asks.
            var errors = schema.validate(json.readTree(record.value()),
                    run -> run.executionConfig(config -> config.formatAssertionsEnabled(true)));
            if (!errors.isEmpty()) {
                throw new NoEvent(errors.stream().map(error -> error.getInstanceLocation() + " breaks " + error.getKeyword())
                        .collect(Collectors.joining("; ")));
            }
            // The SDK reads binary mode, too (the attributes are ce_ headers then): leave the schema out for that.
            return KafkaMessageFactory.createReader(record.headers(), record.value()).toEvent();
        } catch (IOException | RuntimeException e) { // the SDK's exceptions are RuntimeExceptions
            throw new NoEvent(e.getClass().getSimpleName());
        }
    }
}
