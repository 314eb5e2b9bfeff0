package transcripts;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.TestInputTopic;
import org.apache.kafka.streams.TestOutputTopic;
import org.apache.kafka.streams.TopologyTestDriver;
import org.apache.kafka.streams.test.TestRecord;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class TranscriptsTest {
    private static final Duration GRACE = Duration.ofSeconds(60);
    private static final Duration RETENTION = Duration.ofHours(168);

    @TempDir
    Path state;

    private TopologyTestDriver driver;
    private final Map<String, TestInputTopic<String, byte[]>> inputs = new HashMap<>();
    private TestOutputTopic<String, Transcript> output;
    private Instant now = Chat.START;

    @BeforeEach
    void start() throws Exception {
        var settings = Transcripts.settings(Optional.empty());
        settings.put(StreamsConfig.STATE_DIR_CONFIG, state.toString());
        // The driver has no transactions to speak of; with them it loses what is sent to the dead-letter topic.
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.AT_LEAST_ONCE);
        driver = new TopologyTestDriver(Transcripts.topology(settings), settings, now);
        for (var topic : List.of("incoming_chat", "incoming_event", "chat_deactivated")) {
            inputs.put(topic, driver.createInputTopic("livechat." + topic, new StringSerializer(), new ByteArraySerializer()));
        }
        output = driver.createOutputTopic("transcripts", new StringDeserializer(), Json.serde(Transcript.class).deserializer());
    }

    @AfterEach
    void stop() {
        driver.close();
    }

    /** Writes the event to the topic of its action. */
    private void read(TestRecord<String, byte[]> record, String type) {
        inputs.get(type.substring("com.livechat.".length())).pipeInput(record);
    }

    private void read(ObjectNode... envelopes) {
        for (var envelope : envelopes) {
            read(Chat.structured(envelope, now), envelope.get("type").asText());
        }
    }

    private void pass(Duration time) {
        now = now.plus(time);
        driver.advanceWallClockTime(time);
    }

    /** What the last record of each thread says, once the grace is over. */
    private Map<String, Transcript> transcripts() {
        pass(GRACE.plus(Collector.TICK));
        return output.readKeyValuesToMap();
    }

    private static List<String> texts(Transcript transcript) {
        return transcript.messages().stream().map(Message::text).toList();
    }

    private static List<String> kinds(Transcript transcript) {
        return transcript.messages().stream().map(Message::authorKind).toList();
    }

    private static ObjectNode[] ordinary(Chat chat) {
        return new ObjectNode[] {
            chat.begins(chat.said(1, 0, Chat.CUSTOMER, "the kettle leaks")),
            chat.event(chat.said(2, 3, Chat.BOT, "an agent will be here soon")),
            chat.event(chat.said(3, 30, Chat.AGENT, "look at this").put("visibility", "agents")),
            chat.event(chat.said(4, 45.5, Chat.AGENT, "I send you a new one")),
            chat.event(chat.said(5, 60, Chat.CUSTOMER, "thank you")),
            chat.ends(105),
        };
    }

    @Test
    void aThreadThatEndsIsOneRecordWithItsMessagesAndTimes() {
        var chat = new Chat("C", "T");
        read(ordinary(chat));

        var transcript = transcripts().get("C/T");
        assertEquals(List.of("C", "T"), List.of(transcript.chatId(), transcript.threadId()));
        assertEquals(new Transcript.Customer(Chat.CUSTOMER, "Ana", "ana@mail.example"), transcript.customer());
        assertEquals(List.of(Chat.AGENT), List.copyOf(transcript.agents()));
        assertEquals(List.of("order"), transcript.tags());
        assertEquals(Chat.START, transcript.startedAt());
        assertEquals(Chat.START.plusSeconds(105), transcript.endedAt());
        assertEquals(40, transcript.queueSeconds());
        // Neither the bot nor what agents say to each other is a response.
        assertEquals(45.5, transcript.firstResponseSeconds());
        assertEquals(59.5, transcript.handlingSeconds());
        assertEquals(List.of("customer", "unknown", "agent", "agent", "customer"), kinds(transcript));
        assertEquals(0, transcript.messagesLeftOut());
    }

    @Test
    void anyOrderAndAnyDuplicatesMakeTheSameRecord() {
        read(ordinary(new Chat("C", "T")));
        var expected = transcripts().get("C/T");
        for (int seed = 0; seed < 20; seed++) {
            var chat = new Chat("C" + seed, "T");
            var events = new ArrayList<>(List.of(ordinary(chat)));
            events.addAll(List.of(ordinary(chat)));
            Collections.shuffle(events, new Random(seed));
            read(events.toArray(ObjectNode[]::new));
            var found = transcripts();
            assertEquals(1, found.size());
            assertEquals(Json.MAPPER.valueToTree(expected).toString().replace("\"C\"", "\"" + chat.chat + "\""),
                    Json.MAPPER.valueToTree(found.get(chat.chat + "/T")).toString());
        }
    }

    @Test
    void aDuplicateAfterTheRecordWritesNothing() {
        var chat = new Chat("C", "T");
        read(ordinary(chat));
        assertEquals(1, transcripts().size());
        read(ordinary(chat));
        pass(GRACE.multipliedBy(2));
        assertTrue(output.isEmpty());
    }

    @Test
    void whatComesAfterTheEndIsInTheRecord() {
        var chat = new Chat("C", "T");
        read(chat.begins(), chat.ends(50), chat.event(chat.said(1, 40, Chat.CUSTOMER, "late")));
        assertEquals(List.of("late"), texts(transcripts().get("C/T")));
        // Later than the grace: another record with the same key.
        read(chat.event(chat.said(2, 45, Chat.AGENT, "very late")));
        assertEquals(List.of("late", "very late"), texts(transcripts().get("C/T")));
    }

    @Test
    void nothingIsWrittenWithinTheGrace() {
        read(ordinary(new Chat("C", "T")));
        pass(GRACE.minus(Collector.TICK));
        assertTrue(output.isEmpty());
        pass(Collector.TICK.multipliedBy(2));
        assertEquals(1, output.getQueueSize());
    }

    @Test
    void aResumedChatHasARecordForEachThread() {
        var first = new Chat("C", "T1");
        var second = new Chat("C", "T2");
        read(ordinary(first));
        read(second.begins(second.said(1, 0, Chat.CUSTOMER, "me again")), second.ends(9));
        var found = transcripts();
        assertEquals(5, found.get("C/T1").messages().size());
        assertEquals(List.of("me again"), texts(found.get("C/T2")));
    }

    @Test
    void aThreadWhoseIdBeginsLikeAnotherKeepsItsOwnMessages() {
        var one = new Chat("C", "T");
        var other = new Chat("C", "T1");
        read(one.begins(one.said(1, 0, Chat.CUSTOMER, "one")), other.begins(other.said(1, 0, Chat.CUSTOMER, "other")));
        read(one.ends(5), other.ends(5));
        var found = transcripts();
        assertEquals(List.of("one"), texts(found.get("C/T")));
        assertEquals(List.of("other"), texts(found.get("C/T1")));
    }

    @Test
    void initialEventsCountOnceAndProveWhoWrote() {
        var chat = new Chat("C", "T");
        var hello = chat.said(1, 0, Chat.BOT, "hello");
        read(chat.begins(hello), chat.event(hello).put("initial", "true").put("authorkind", "bot"), chat.ends(5));
        assertEquals(List.of("bot"), kinds(transcripts().get("C/T")));
    }

    @Test
    void aBackfillOfAThreadThatIsKnownWritesNothing() {
        var chat = new Chat("C", "T");
        var hello = chat.said(1, 0, Chat.CUSTOMER, "hello");
        read(chat.begins(hello), chat.ends(5));
        assertEquals(1, transcripts().size());
        read(chat.begins().put("backfill", "true"), chat.event(hello).put("backfill", "true"),
                chat.ends(0).put("time", "2026-03-01T10:00:00Z").put("backfill", "true"));
        pass(GRACE.multipliedBy(2));
        assertTrue(output.isEmpty());
    }

    @Test
    void aBackfillAloneIsARecord() {
        var chat = new Chat("C", "T");
        var hello = chat.said(1, 2, Chat.CUSTOMER, "hello");
        read(chat.ends(86_400).put("time", hello.get("created_at").asText()).put("backfill", "true"));
        read(chat.event(hello).put("backfill", "true").put("authorkind", "customer"), chat.begins().put("backfill", "true"));
        var transcript = transcripts().get("C/T");
        assertEquals(List.of("hello"), texts(transcript));
        assertEquals(Chat.START.plusSeconds(2), transcript.endedAt());
    }

    @Test
    void equalTimesAreInTheOrderOfTheThread() {
        var chat = new Chat("C", "T");
        read(chat.begins(), chat.event(chat.said(10, 1, Chat.AGENT, "ten")), chat.event(chat.said(9, 1, Chat.AGENT, "nine")),
                chat.ends(5));
        assertEquals(List.of("nine", "ten"), texts(transcripts().get("C/T")));
    }

    @Test
    void withoutAnAnswerThereAreNoSecondsOfIt() {
        var chat = new Chat("C", "T");
        read(chat.begins(chat.said(1, 0, Chat.AGENT, "welcome"), chat.said(2, 1, Chat.CUSTOMER, "hello?")), chat.ends(600));
        var transcript = transcripts().get("C/T");
        assertNull(transcript.firstResponseSeconds()); // a greeting before the question is no answer to it
        assertEquals(600, transcript.handlingSeconds());
    }

    @Test
    void bothModesAreRead() {
        var chat = new Chat("C", "T");
        for (var envelope : ordinary(chat)) {
            read(Chat.binary(envelope, now), envelope.get("type").asText());
        }
        assertEquals(5, transcripts().get("C/T").messages().size());
    }

    @Test
    void aThreadThatNeverEndsIsPublishedAsItIsAndForgottenAfterTheRetention() {
        var chat = new Chat("C", "T");
        read(chat.begins(chat.said(1, 0, Chat.CUSTOMER, "anyone?")));
        pass(RETENTION.minusHours(1));
        read(chat.event(chat.said(2, 5, Chat.AGENT, "yes"))); // it lives longer by this
        pass(RETENTION.minusHours(1));
        read(new Chat("D", "T").begins()); // the time of the stream is that of its events
        pass(Collector.TICK);
        assertTrue(output.isEmpty());

        pass(Duration.ofHours(1));
        read(new Chat("E", "T").begins());
        pass(Collector.TICK);
        var transcript = output.readKeyValuesToMap().get("C/T");
        assertEquals(List.of("anyone?", "yes"), texts(transcript));
        assertNull(transcript.endedAt());
        assertNull(transcript.handlingSeconds());
        assertEquals(List.of("D/T", "E/T"), keys(Collector.THREADS));
        assertEquals(List.of(), keys(Collector.MESSAGES));
    }

    @Test
    void theStateOfThreadsThatEndedIsForgottenToo() {
        read(ordinary(new Chat("C", "T")));
        read(new Chat("D", "T").event(new Chat("D", "T").said(1, 0, Chat.AGENT, "its beginning never comes")));
        assertEquals(1, transcripts().size());
        pass(RETENTION);
        read(new Chat("E", "T").begins());
        pass(Collector.TICK);
        assertTrue(output.isEmpty());
        assertEquals(List.of("E/T"), keys(Collector.THREADS));
        assertEquals(List.of(), keys(Collector.MESSAGES));
        assertEquals(1, keys(Collector.DEADLINES).size());
    }

    private List<String> keys(String store) {
        var keys = new ArrayList<String>();
        try (var all = driver.getKeyValueStore(store).all()) {
            all.forEachRemaining(entry -> keys.add((String) entry.key));
        }
        return keys;
    }

    @Test
    void whatIsNoEventGoesToTheDeadLetterTopicAsItIs() {
        var deadLetters = driver.createOutputTopic("transcripts.dead-letter", new ByteArrayDeserializer(), new ByteArrayDeserializer());
        var input = inputs.get("incoming_event");
        input.pipeInput("C", "no event".getBytes(StandardCharsets.UTF_8));
        var noThread = new Chat("C", "T").event(new Chat("C", "T").said(1, 0, Chat.AGENT, "where?"));
        noThread.remove("threadid");
        input.pipeInput(Chat.structured(noThread, now));
        var nothingSaid = new Chat("C", "T").event(new Chat("C", "T").said(1, 0, Chat.AGENT, "lost"));
        ((ObjectNode) nothingSaid.at("/data/payload")).remove("event");
        input.pipeInput(Chat.structured(nothingSaid, now));
        read(ordinary(new Chat("C", "T"))); // the rest goes on

        assertEquals("no event", new String(deadLetters.readValue(), StandardCharsets.UTF_8));
        assertEquals(noThread.toString(), new String(deadLetters.readValue(), StandardCharsets.UTF_8));
        assertEquals(nothingSaid.toString(), new String(deadLetters.readValue(), StandardCharsets.UTF_8));
        assertTrue(deadLetters.isEmpty());
        assertEquals(5, transcripts().get("C/T").messages().size());
    }

    @Test
    void otherActionsOnTheSameTopicArePassedBy() {
        var agent = Json.MAPPER.createObjectNode().put("specversion", "1.0").put("id", "1").put("source", "/livechat");
        agent.put("type", "com.livechat.agent_created").put("datacontenttype", "application/json").putObject("data");
        inputs.get("incoming_event").pipeInput(Chat.structured(agent, now));
        assertTrue(transcripts().isEmpty());
        assertEquals(List.of(), keys(Collector.THREADS));
    }

    @Test
    void aThreadThatIsTooLargeForARecordIsCutAndSaysSo() {
        var chat = new Chat("C", "T");
        read(chat.begins());
        for (int number = 1; number <= 30; number++) {
            read(chat.event(chat.said(number, number, Chat.AGENT, "x".repeat(50_000))));
        }
        read(chat.ends(60));
        var transcript = transcripts().get("C/T");
        assertEquals(30, transcript.messages().size() + transcript.messagesLeftOut());
        assertTrue(transcript.messagesLeftOut() > 0);
        assertTrue(Json.bytes(transcript).length < 1_000_000);
    }

    @Test
    void aPayloadThatIsNotAsDocumentedCostsWhatItLacksAndNotTheThread() {
        var chat = new Chat("C", "T");
        var odd = chat.event(chat.said(1, 0, Chat.CUSTOMER, "odd"));
        ((ObjectNode) odd.at("/data/payload/event")).put("created_at", "yesterday").put("text", 7).remove("author_id");
        var begins = chat.begins();
        ((ObjectNode) begins.at("/data/payload/chat")).put("users", "none");
        var thread = (ObjectNode) begins.at("/data/payload/chat/thread");
        thread.put("queues_duration", "long").put("queue", "first").putObject("tags");
        thread.putArray("events").add("odd").addArray();
        read(begins, odd, chat.ends(5));
        var transcript = transcripts().get("C/T");
        assertNull(transcript.customer());
        assertNull(transcript.queueSeconds());
        assertEquals(List.of(), transcript.tags());
        assertEquals(List.of("unknown"), kinds(transcript));
    }
}
