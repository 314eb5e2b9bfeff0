package example;

import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.regex.Pattern;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.errors.RebalanceInProgressException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Reads the events of livechat-relay from Kafka: poll, take each record, then commit.
 *
 * <p>Offsets are committed after the work, so a crash between the two brings records again, never loses one. What makes that
 * harmless is {@link Inbox}, which knows the ids that are done. If the database or Kafka does not accept something, the program
 * ends: its supervisor starts it again, and it goes on with what is not committed.
 */
public final class Consumer {
    private Consumer() {}

    public static void main(String[] arguments) throws Exception {
        var options = options(arguments);
        var stopping = new AtomicBoolean();
        var finished = new CountDownLatch(1);
        // At SIGTERM the JVM lives until its hooks have returned: this one waits until the loop has committed and left the group.
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            stopping.set(true);
            try {
                finished.await(10, TimeUnit.SECONDS);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }));
        try {
            run(options, stopping);
        } finally {
            finished.countDown();
        }
    }

    private static void run(Map<String, String> options, AtomicBoolean stopping) throws Exception {
        var settings = new Properties();
        settings.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, options.get("brokers"));
        settings.put(ConsumerConfig.GROUP_ID_CONFIG, options.get("group"));
        settings.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, "false");
        // A group that has committed nothing yet begins with the oldest event.
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");

        var events = new EventReader(Path.of(options.get("schema")));
        // Keys and values stay bytes: a value that is no CloudEvent is then ours to keep as a dead letter. Thrown by a deserializer,
        // it would stop poll() at the same record again and again.
        try (var inbox = new Inbox(options.get("database"));
                var deadLetters = new DeadLetters(options.get("brokers"), options.get("dead-letters"));
                var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            // The relay's topics of today and of tomorrow: a new one is noticed within metadata.max.age.ms (5 minutes).
            consumer.subscribe(Pattern.compile(Pattern.quote(options.get("prefix")) + ".*"));
            while (!stopping.get()) {
                // Partitions are given to other members within poll() only: what it has brought is committed before the next one.
                var records = consumer.poll(Duration.ofMillis(500));
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    try {
                        inbox.take(events.read(record));
                    } catch (EventReader.NoEvent e) {
                        deadLetters.keep(record, e);
                    }
                }
                if (!records.isEmpty()) {
                    commit(consumer);
                }
            }
        } // close() leaves the group, so that the others need not wait out our session.
    }

    private static void commit(KafkaConsumer<?, ?> consumer) {
        try {
            consumer.commitSync();
        } catch (CommitFailedException | RebalanceInProgressException e) {
            // Another member has these partitions now and gets the records again: the inbox knows them.
            System.err.println("not committed, and no harm done: " + e.getMessage());
        }
    }

    /** {@code --name value} pairs; all are needed. */
    private static Map<String, String> options(String[] arguments) {
        var options = new HashMap<String, String>();
        for (int i = 0; i + 1 < arguments.length; i += 2) {
            options.put(arguments[i].replaceFirst("^--", ""), arguments[i + 1]);
        }
        for (String name : new String[] {"brokers", "prefix", "group", "schema", "database", "dead-letters"}) {
            if (!options.containsKey(name)) {
                System.err.println("usage: consumer --brokers HOST:PORT --prefix livechat. --group GROUP --schema FILE"
                        + " --database jdbc:postgresql://… --dead-letters TOPIC\n\n--" + name + " is missing");
                System.exit(2);
            }
        }
        return options;
    }
}
