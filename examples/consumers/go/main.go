// Reads livechat-relay's events from Kafka with franz-go, and handles each once although each may arrive twice.
//
// It shows: every topic with the prefix, from its beginning · the value as a CloudEvent (the relay's `events.mode` is
// "structured", the default), held against the JSON Schema · duplicates known by their id · offsets committed after the
// handling, never before · a record that cannot be read is reported and passed over, so that it stops no other record · SIGTERM
// leaves the group, so that the others take over at once.
//
//	go build -o consumer .
//	./consumer --brokers localhost:9092 --prefix livechat. --group example --expect 100 \
//	  --schema envelope.schema.json --timeout 60 --out handled.jsonl
//
// It ends when --expect events are handled and nothing more comes, which a real consumer would not.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	seenMax  = 100_000 // ids remembered
	pollMax  = 500     // records handled between two commits
	pollWait = 500 * time.Millisecond
	quiet    = 2 * time.Second
)

var (
	brokers = flag.String("brokers", "localhost:9092", "the `brokers`, parted by commas")
	prefix  = flag.String("prefix", "livechat.", "what the names of the topics begin with")
	group   = flag.String("group", "example", "the consumer `group`")
	expect  = flag.Int("expect", 100, "end after this many unique events, when nothing more comes")
	schema  = flag.String("schema", "envelope.schema.json", "the JSON Schema of the envelope, a `file`")
	timeout = flag.Int("timeout", 60, "end after this many `seconds` in any case")
	out     = flag.String("out", "handled.jsonl", "the `file` that gets a line for each event handled")
)

type counts struct {
	Received   int `json:"received"`
	Unique     int `json:"unique"`
	Duplicates int `json:"duplicates"`
	Invalid    int `json:"invalid"`
}

// seen holds the ids handled lately; the oldest go first.
//
// A real consumer keeps them in its database: INSERT … ON CONFLICT DO NOTHING of the id into a table, in the transaction
// that stores the effect of the event. Then neither a restart nor another replica handles an event twice.
type seen struct {
	ids   map[string]bool
	order []string // as they were added
}

func (s *seen) add(id string) {
	s.ids[id] = true
	s.order = append(s.order, id)
	if len(s.order) > seenMax {
		delete(s.ids, s.order[0])
		s.order = s.order[1:]
	}
}

// parse returns the event of a record's value. Errors do not show what the value holds, for that may be personal.
func parse(value []byte, envelope *jsonschema.Schema) (*event.Event, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
	if err != nil {
		return nil, errors.New("not JSON")
	}
	if err := envelope.Validate(document); err != nil {
		cause := err.(*jsonschema.ValidationError)
		for len(cause.Causes) > 0 {
			cause = cause.Causes[0]
		}
		_, rule, _ := strings.Cut(cause.SchemaURL, "#")
		rule = strings.Join(append([]string{rule}, cause.ErrorKind.KeywordPath()...), "/")
		return nil, fmt.Errorf("/%s breaks #%s", strings.Join(cause.InstanceLocation, "/"), rule)
	}
	var parsed event.Event
	if err := json.Unmarshal(value, &parsed); err != nil {
		return nil, err
	}
	return &parsed, parsed.Validate()
}

// handle is what your program does with an event: Source says whose it is, Subject what it is about, Time when it was (zero
// where LiveChat tells none), and Data is LiveChat's body.
func handle(e *event.Event, record *kgo.Record, out *os.File) error {
	chat, _ := e.Extensions()["chatid"].(string)
	return json.NewEncoder(out).Encode(struct {
		ID        string `json:"id"`
		Type      string `json:"type"`
		Chat      string `json:"chatid,omitempty"`
		Topic     string `json:"topic"`
		Partition int32  `json:"partition"`
		Offset    int64  `json:"offset"`
	}{e.ID(), e.Type(), chat, record.Topic, record.Partition, record.Offset})
}

func run(ctx context.Context) (n counts, err error) {
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat() // "format" only informs in draft 2020-12 unless it is asked for
	envelope, err := compiler.Compile(*schema)
	if err != nil {
		return n, err
	}
	file, err := os.OpenFile(*out, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return n, err
	}
	defer file.Close()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(*brokers, ",")...),
		kgo.ConsumerGroup(*group),
		kgo.ConsumeRegex(),
		kgo.ConsumeTopics("^"+regexp.QuoteMeta(*prefix)),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(),
		kgo.BlockRebalanceOnPoll(), // no partition goes to another member between its handling and its commit
	)
	if err != nil {
		return n, err
	}
	defer client.CloseAllowingRebalance() // leaves the group

	known := seen{ids: map[string]bool{}}
	latest := time.Now()
	for ctx.Err() == nil && (n.Unique < *expect || time.Since(latest) < quiet) {
		poll, cancel := context.WithTimeout(ctx, pollWait)
		fetches := client.PollRecords(poll, pollMax)
		cancel()
		if err := fetches.Err(); err != nil && !errors.Is(err, poll.Err()) { // poll's own: nothing came
			fmt.Fprintf(os.Stderr, "could not fetch: %v\n", err)
		}
		records := fetches.Records()
		for _, record := range records {
			n.Received++
			latest = time.Now()
			parsed, err := parse(record.Value, envelope)
			switch {
			case err != nil: // a real consumer puts the record on a topic of its own for people to look at
				n.Invalid++
				fmt.Fprintf(os.Stderr, "invalid: %s/%d@%d: %v\n", record.Topic, record.Partition, record.Offset, err)
			case known.ids[parsed.ID()]:
				n.Duplicates++
			default:
				if err := handle(parsed, record, file); err != nil {
					return n, err // not committed: it comes again at the next start
				}
				known.add(parsed.ID())
				n.Unique++
			}
		}
		// Not ctx: what is handled is committed even while SIGTERM ends the loop. Where it fails, the records come again and
		// are known by their ids.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		if err := client.CommitRecords(last, records...); err != nil {
			fmt.Fprintf(os.Stderr, "could not commit: %v\n", err)
		}
		cancel()
		client.AllowRebalance()
	}
	return n, nil
}

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(*timeout)*time.Second)
	defer cancel()
	n, err := run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(n)
	if n.Unique != *expect || n.Invalid != 0 {
		os.Exit(1)
	}
}
