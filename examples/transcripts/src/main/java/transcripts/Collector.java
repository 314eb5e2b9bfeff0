package transcripts;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import org.apache.kafka.common.serialization.StringSerializer;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Events → a transcript for each thread, whatever the order in which they come, and however often.
 *
 * <p>What is stored does not depend on the order: a message by its id, the first beginning, the first end. A thread is published some
 * time after it has both, and again when something new comes later; the key is the thread, so the last record counts.
 */
final class Collector implements Processor<String, Event, String, Transcript> {
    static final String THREADS = "threads";
    static final String MESSAGES = "messages";
    static final String DEADLINES = "deadlines";
    /** How often deadlines are looked at. */
    static final Duration TICK = Duration.ofSeconds(1);

    private static final Logger LOG = LoggerFactory.getLogger(Collector.class);
    /** The kinds of deadlines: what their keys begin with. */
    private static final String PUBLISH = "publish/";
    private static final String FORGET = "forget/";

    private final Duration grace;
    private final Duration retention;
    private ProcessorContext<String, Transcript> context;
    private KeyValueStore<String, ThreadState> threads;
    /** Thread's key, `/`, message's id → message. Of their own, so that a message costs one write, however long its thread is. */
    private KeyValueStore<String, Message> messages;
    /** Kind, milliseconds, `/`, thread's key → nothing. Sorted by time, so that no tick looks at all threads. */
    private KeyValueStore<String, String> deadlines;

    Collector(Duration grace, Duration retention) {
        this.grace = grace;
        this.retention = retention;
    }

    @Override
    public void init(ProcessorContext<String, Transcript> context) {
        this.context = context;
        threads = context.getStateStore(THREADS);
        messages = context.getStateStore(MESSAGES);
        deadlines = context.getStateStore(DEADLINES);
        context.schedule(TICK, PunctuationType.WALL_CLOCK_TIME, this::tick);
    }

    @Override
    public void process(Record<String, Event> record) {
        var event = record.value();
        if (event == null || !event.isPartOfTranscript()) {
            return;
        }
        var key = event.threadKey();
        var known = threads.get(key);
        var thread = known == null ? ThreadState.of(event) : known;
        boolean changed = false;
        switch (event.type()) {
            case Event.INCOMING_CHAT -> {
                // Its first events stand inside it, and may come as `incoming_event` with the attribute `initial`, too.
                for (var first : Payload.elements(event.chat().thread().events())) {
                    changed |= store(key, Message.of(first, event, null));
                }
                if (thread.beginning() == null) {
                    thread = thread.begun(ThreadState.Beginning.of(event.chat(), event.at()));
                    changed = true;
                }
            }
            case Event.INCOMING_EVENT -> changed = store(key, Message.of(event.said(), event, event.authorKind()));
            default -> { // chat_deactivated
                if (thread.endedAt() == null) {
                    thread = thread.ended(event.at());
                    changed = true;
                }
            }
        }
        if (!changed) {
            return; // a duplicate
        }
        thread = thread.changed(context.currentStreamTimeMs());
        if (known == null) {
            schedule(FORGET, thread.lastChange() + retention.toMillis(), key);
        }
        if (thread.beginning() != null && thread.endedAt() != null && !thread.publishing()) {
            schedule(PUBLISH, context.currentSystemTimeMs() + grace.toMillis(), key);
            thread = thread.publishing(true);
        }
        threads.put(key, thread);
    }

    /** Whether it is new, or says who wrote it where the one that is known does not. */
    private boolean store(String threadKey, Message message) {
        var key = threadKey + "/" + message.id();
        var known = messages.get(key);
        if (known != null && (known.authorKind() != null || message.authorKind() == null)) {
            return false;
        }
        messages.put(key, message);
        return true;
    }

    /**
     * Publishing waits by the clock, so that the last thread of a quiet evening does not wait for the next event. Forgetting waits by
     * the time of the events, so that threads do not expire while this program is down or catches up.
     */
    private void tick(long now) {
        due(PUBLISH, now, key -> {
            var thread = threads.get(key);
            if (thread != null && thread.publishing()) {
                publish(key, thread);
                threads.put(key, thread.publishing(false));
            }
        });
        due(FORGET, context.currentStreamTimeMs(), key -> {
            var thread = threads.get(key);
            long until = thread.lastChange() + retention.toMillis();
            if (until > context.currentStreamTimeMs()) {
                schedule(FORGET, until, key);
            } else {
                forget(key, thread);
            }
        });
    }

    private void publish(String key, ThreadState thread) {
        context.forward(new Record<>(key, Transcript.of(thread, messagesOf(key)), context.currentSystemTimeMs()));
    }

    private void forget(String key, ThreadState thread) {
        if (thread.beginning() == null) {
            LOG.warn("no transcript of a thread whose incoming_chat has not come: {}", key);
        } else if (thread.endedAt() == null || thread.publishing()) {
            publish(key, thread);
        }
        for (var message : messagesOf(key)) {
            messages.delete(key + "/" + message.id());
        }
        threads.delete(key);
    }

    private List<Message> messagesOf(String threadKey) {
        var found = new ArrayList<Message>();
        try (var all = messages.prefixScan(threadKey + "/", new StringSerializer())) {
            all.forEachRemaining(entry -> found.add(entry.value));
        }
        return found;
    }

    private void schedule(String kind, long at, String threadKey) {
        deadlines.put(kind + sortable(at) + "/" + threadKey, "");
    }

    /** Takes the deadlines that have passed at `until`, and does what they are for with the thread's key. */
    private void due(String kind, long until, Consumer<String> action) {
        var passed = new ArrayList<String>();
        try (var found = deadlines.range(kind, kind + sortable(until + 1))) {
            found.forEachRemaining(entry -> passed.add(entry.key));
        }
        for (var deadline : passed) {
            deadlines.delete(deadline);
            action.accept(deadline.substring(kind.length() + sortable(until).length() + 1));
        }
    }

    private static String sortable(long millis) {
        return String.format("%019d", Math.max(0, millis));
    }
}
