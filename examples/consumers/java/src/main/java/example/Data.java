package example;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.databind.DeserializationContext;
import com.fasterxml.jackson.databind.JavaType;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.deser.DeserializationProblemHandler;
import com.fasterxml.jackson.databind.deser.ValueInstantiator;
import io.cloudevents.CloudEvent;
import java.io.IOException;
import java.io.UncheckedIOException;

/** An event's data → its type of {@link livechat.LiveChat}. */
final class Data {
    private static final ObjectMapper JSON = new ObjectMapper().addHandler(new Lenient());

    private Data() {}

    static <T> T of(CloudEvent event, Class<T> type) {
        try {
            return JSON.readValue(event.getData().toBytes(), type);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** LiveChat may change a payload: a member of another type is as good as absent, and the others are read. */
    private static final class Lenient extends DeserializationProblemHandler {
        @Override
        public Object handleUnexpectedToken(DeserializationContext context, JavaType type, JsonToken token, JsonParser parser,
                String message) throws IOException {
            parser.skipChildren();
            return null;
        }

        @Override
        public Object handleMissingInstantiator(DeserializationContext context, Class<?> type, ValueInstantiator instantiator,
                JsonParser parser, String message) throws IOException {
            parser.skipChildren();
            return null;
        }

        @Override
        public Object handleWeirdStringValue(DeserializationContext context, Class<?> type, String value, String message) {
            return null;
        }
    }
}
