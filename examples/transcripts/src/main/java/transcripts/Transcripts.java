package transcripts;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.common.config.TopicConfig;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.CloseOptions;
import org.apache.kafka.streams.CloseOptions.GroupMembershipOperation;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.LogAndContinueExceptionHandler;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/** Makes one transcript of each thread of LiveChat out of the events that livechat-relay has put on Kafka. */
public final class Transcripts {
    private Transcripts() {}

    public static void main(String[] arguments) throws Exception {
        if (arguments.length > 1 || (arguments.length == 1 && arguments[0].startsWith("-"))) {
            System.err.println("usage: transcripts [FILE.properties]");
            System.exit(2);
        }
        var settings = settings(arguments.length == 0 ? Optional.empty() : Optional.of(Path.of(arguments[0])));
        prepareTopics(settings);
        var streams = new KafkaStreams(topology(settings), settings);
        var failed = new CountDownLatch(1);
        streams.setStateListener((state, old) -> {
            if (state == KafkaStreams.State.ERROR) {
                failed.countDown();
            }
        });
        // SIGTERM: commit what is done and leave the group, so that the others need not wait out our session.
        var leave = CloseOptions.timeout(Duration.ofSeconds(20)).withGroupMembershipOperation(GroupMembershipOperation.LEAVE_GROUP);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(leave)));
        streams.start();
        failed.await(); // what cannot be healed by a retry: the log has it, and a supervisor starts it again
        System.exit(1);
    }

    /** The defaults, and what the file says otherwise. */
    static Properties settings(Optional<Path> file) throws IOException {
        var settings = new Properties();
        try (var defaults = Transcripts.class.getResourceAsStream("/transcripts.properties")) {
            settings.load(defaults);
        }
        if (file.isPresent()) {
            try (var own = Files.newBufferedReader(file.get())) {
                settings.load(own);
            }
        }
        // A record that is not a valid event goes to the dead-letter topic as it is, with headers that say why; the rest goes on.
        settings.put(StreamsConfig.DESERIALIZATION_EXCEPTION_HANDLER_CLASS_CONFIG, LogAndContinueExceptionHandler.class);
        settings.put(StreamsConfig.ERRORS_DEAD_LETTER_QUEUE_TOPIC_NAME_CONFIG, settings.getProperty("transcripts.dead-letter"));
        return settings;
    }

    static Topology topology(Properties settings) {
        var grace = Duration.ofSeconds(Long.parseLong(settings.getProperty("transcripts.grace.seconds")));
        var retention = Duration.ofHours(Long.parseLong(settings.getProperty("transcripts.retention.hours")));
        Serde<Event> events = Serdes.serdeFrom((topic, event) -> {
            throw new UnsupportedOperationException("events are only read");
        }, new Event.Reader());
        var builder = new StreamsBuilder();
        builder.addStateStore(store(Collector.THREADS, Json.serde(ThreadState.class)));
        builder.addStateStore(store(Collector.MESSAGES, Json.serde(Message.class)));
        builder.addStateStore(store(Collector.DEADLINES, Serdes.String()));
        builder.stream(inputs(settings), Consumed.with(Serdes.String(), events))
                .process(() -> new Collector(grace, retention), Collector.THREADS, Collector.MESSAGES, Collector.DEADLINES)
                .to(settings.getProperty("transcripts.output"), Produced.with(Serdes.String(), Json.serde(Transcript.class)));
        return builder.build();
    }

    private static <V> StoreBuilder<?> store(String name, Serde<V> values) {
        return Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(name), Serdes.String(), values);
    }

    private static List<String> inputs(Properties settings) {
        return List.of(settings.getProperty("transcripts.topics").split(" *, *"));
    }

    /** The events of a chat must be in the same partition of every input; the outputs are created where they do not exist. */
    private static void prepareTopics(Properties settings) throws InterruptedException, ExecutionException {
        Map<String, Object> client = new HashMap<>();
        settings.forEach((name, value) -> client.put((String) name, value));
        try (var admin = Admin.create(client)) {
            var counts = new HashMap<String, Integer>();
            for (var topic : admin.describeTopics(inputs(settings)).topicNameValues().entrySet()) {
                try {
                    counts.put(topic.getKey(), topic.getValue().get().partitions().size());
                } catch (ExecutionException e) {
                    throw new IllegalStateException("the topic " + topic.getKey() + " cannot be read (the relay creates its topics when"
                            + " it starts): " + e.getCause().getMessage(), e);
                }
            }
            if (new HashSet<>(counts.values()).size() != 1) {
                throw new IllegalStateException("the topics need the same number of partitions, and have " + counts);
            }
            int partitions = counts.values().iterator().next();
            var output = new NewTopic(settings.getProperty("transcripts.output"), Optional.of(partitions), Optional.empty())
                    .configs(Map.of(TopicConfig.CLEANUP_POLICY_CONFIG, TopicConfig.CLEANUP_POLICY_COMPACT));
            var deadLetter = new NewTopic(settings.getProperty("transcripts.dead-letter"), Optional.of(1), Optional.empty());
            for (var created : admin.createTopics(List.of(output, deadLetter)).values().values()) {
                try {
                    created.get();
                } catch (ExecutionException e) {
                    if (!(e.getCause() instanceof TopicExistsException)) {
                        throw e;
                    }
                }
            }
        }
    }
}
