package example;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.util.Map;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Keeps a record that is not a valid event, as it is, for people to look at. An alert on the topic's growth tells them. */
final class DeadLetters implements AutoCloseable {
    private final KafkaProducer<byte[], byte[]> producer;
    private final String topic;

    DeadLetters(String brokers, String topic) {
        producer = new KafkaProducer<>(Map.of(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, brokers), new ByteArraySerializer(),
                new ByteArraySerializer());
        this.topic = topic;
    }

    /** Returns once the brokers have it: the record's offset may be committed then. */
    void keep(ConsumerRecord<byte[], byte[]> record, EventReader.NoEvent reason) throws ExecutionException, InterruptedException {
        var origin = record.topic() + "/" + record.partition() + "@" + record.offset();
        System.err.println("dead letter: " + origin + ": " + reason.getMessage());
        var letter = new ProducerRecord<>(topic, null, record.key(), record.value(), record.headers());
        letter.headers().add("dead-letter-origin", origin.getBytes(UTF_8)).add("dead-letter-error", reason.getMessage().getBytes(UTF_8));
        producer.send(letter).get();
    }

    @Override
    public void close() {
        producer.close();
    }
}
