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
import org.apache.kafka.common.serialization.StringDeserializer;

/**
 * Reads the events of livechat-relay from Kafka: poll, take each record, then commit.
 *
 * <p>Offsets are committed after the work, so a crash between the two brings records again, never loses one. What makes that
 * harmless is {@link Inbox}, which knows the ids that it has handled.
 */
public final class Consumer {
    /** Nothing more for this long, once all expected events are here: the end of a run. A real consumer has none. */
    private static final Duration QUIET = Duration.ofSeconds(2);

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
        boolean good = false;
        try {
            good = run(options, stopping);
        } finally {
            finished.countDown();
        }
        System.exit(good ? 0 : 1);
    }

    private static boolean run(Map<String, String> options, AtomicBoolean stopping) throws Exception {
        var settings = new Properties();
        settings.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, options.get("brokers"));
        settings.put(ConsumerConfig.GROUP_ID_CONFIG, options.get("group"));
        settings.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, "false");
        // A group that has committed nothing yet begins with the oldest event.
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");

        long expected = Long.parseLong(options.get("expect"));
        long deadline = System.nanoTime() + Duration.ofSeconds(Long.parseLong(options.get("timeout"))).toNanos();
        long last = System.nanoTime();
        var inbox = new Inbox(Path.of(options.get("schema")), Path.of(options.get("out")));
        // Values stay bytes: a value that is no CloudEvent is then ours to count and pass by. Thrown by a deserializer, it would
        // stop poll() at the same record again and again.
        try (inbox; var consumer = new KafkaConsumer<>(settings, new StringDeserializer(), new ByteArrayDeserializer())) {
            // The relay's topics of today and of tomorrow: a new one is noticed within metadata.max.age.ms (5 minutes).
            consumer.subscribe(Pattern.compile(Pattern.quote(options.get("prefix")) + ".*"));
            while (!stopping.get() && System.nanoTime() < deadline) {
                var records = consumer.poll(Duration.ofMillis(200));
                if (records.isEmpty()) {
                    if (inbox.unique() >= expected && System.nanoTime() - last > QUIET.toNanos()) {
                        break;
                    }
                    continue;
                }
                last = System.nanoTime();
                for (ConsumerRecord<String, byte[]> record : records) {
                    inbox.take(record);
                }
                inbox.flush();
                try {
                    consumer.commitSync();
                } catch (CommitFailedException | RebalanceInProgressException e) {
                    // Someone else has these partitions now and gets the records again: their ids tell that they are done.
                    System.err.println("not committed, and no harm done: " + e.getMessage());
                }
            }
        } // close() leaves the group, so that the others need not wait out our session.
        System.out.println(inbox.summary());
        return inbox.unique() == expected && inbox.invalid() == 0;
    }

    /** {@code --name value} pairs; all are needed. */
    private static Map<String, String> options(String[] arguments) {
        var options = new HashMap<String, String>();
        for (int i = 0; i + 1 < arguments.length; i += 2) {
            options.put(arguments[i].replaceFirst("^--", ""), arguments[i + 1]);
        }
        for (String name : new String[] {"brokers", "prefix", "group", "expect", "schema", "timeout", "out"}) {
            if (!options.containsKey(name)) {
                System.err.println("usage: consumer --brokers HOST:PORT --prefix livechat. --group GROUP --expect N"
                        + " --schema FILE --timeout SECONDS --out FILE\n\n--" + name + " is missing");
                System.exit(2);
            }
        }
        return options;
    }
}
