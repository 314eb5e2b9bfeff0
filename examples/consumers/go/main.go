// Reads livechat-relay's events from Kafka with franz-go, and handles each once in PostgreSQL although each may arrive twice.
//
// It shows: every topic with the prefix, from its beginning · the value as a CloudEvent (the relay's `events.mode` is
// "structured", the default), held against the JSON Schema · duplicates known by their id, stored with the effect in one
// transaction · offsets committed after that, never before · a record that is not a valid event goes to a dead-letter topic,
// and the rest goes on · SIGTERM leaves the group, so that the others take over at once.
//
// If the database or Kafka does not accept something, the program ends: its supervisor starts it again, and it goes on with
// what is not committed.
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
	"github.com/jackc/pgx/v5"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/twmb/franz-go/pkg/kgo"

	"livechat-relay.example/consumer/livechat" // contract/types
)

const pollMax = 100 // records handled between two commits

var (
	brokers     = flag.String("brokers", "localhost:9092", "the `brokers`, parted by commas")
	prefix      = flag.String("prefix", "livechat.", "what the names of the topics begin with")
	group       = flag.String("group", "example", "the consumer `group`")
	schema      = flag.String("schema", "envelope.schema.json", "the JSON Schema of the envelope, a `file`")
	database    = flag.String("database", "postgresql://localhost/livechat", "the `URL` of the database with the tables of inbox.sql")
	deadLetters = flag.String("dead-letters", "example.dead-letter", "the `topic` for records that are not valid events")
)

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

// take has the event's effect, once. Should another member take it meanwhile, the insert waits for what becomes of that transaction.
func take(ctx context.Context, db *pgx.Conn, e *event.Event) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		added, err := tx.Exec(ctx, "insert into inbox (id) values ($1) on conflict do nothing", e.ID())
		if err != nil || added.RowsAffected() == 0 { // a duplicate
			return err
		}
		return handle(ctx, tx, e)
	})
}

// handle is your work, within the transaction: Source says whose the event is, Subject what it is about, Time when it was (zero
// where LiveChat sends no time), and Data is LiveChat's body.
func handle(ctx context.Context, tx pgx.Tx, e *event.Event) error {
	chat, _ := e.Extensions()["chatid"].(string)
	if chat == "" {
		return nil
	}
	_, err := tx.Exec(ctx, "insert into chats values ($1, 1) on conflict (chat_id) do update set events = chats.events + 1", chat)
	if err != nil || e.Type() != "com.livechat.incoming_event" {
		return err
	}
	// The type says what the data is. LiveChat may change a payload: a member of another type is left out, and the others are read.
	var data livechat.IncomingEventData
	if err := json.Unmarshal(e.Data(), &data); err != nil && !errors.As(err, new(*json.UnmarshalTypeError)) {
		return err
	}
	said := data.Payload.Event
	if said.ID == "" || said.Text == "" {
		return nil
	}
	text := strings.ReplaceAll(said.Text, "\x00", "") // PostgreSQL's texts have no NUL, and customers may write one
	_, err = tx.Exec(ctx, "insert into messages values ($1, $2, $3)", chat, said.ID, text)
	return err
}

// keep keeps a record that is not a valid event, as it is, for people to look at. An alert on the topic's growth tells them.
func keep(ctx context.Context, client *kgo.Client, record *kgo.Record, reason error) error {
	origin := fmt.Sprintf("%s/%d@%d", record.Topic, record.Partition, record.Offset)
	fmt.Fprintf(os.Stderr, "dead letter: %s: %v\n", origin, reason)
	letter := &kgo.Record{Topic: *deadLetters, Key: record.Key, Value: record.Value, Headers: append(record.Headers,
		kgo.RecordHeader{Key: "dead-letter-origin", Value: []byte(origin)},
		kgo.RecordHeader{Key: "dead-letter-error", Value: []byte(reason.Error())})}
	return client.ProduceSync(ctx, letter).FirstErr()
}

// handleAll takes the records and commits them. It is not stopped by SIGTERM: what has been fetched is done in a moment.
func handleAll(client *kgo.Client, db *pgx.Conn, envelope *jsonschema.Schema, records []*kgo.Record) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, record := range records {
		parsed, err := parse(record.Value, envelope)
		if err != nil {
			err = keep(ctx, client, record, err)
		} else {
			err = take(ctx, db, parsed)
		}
		if err != nil {
			return err // not committed: it comes again at the next start
		}
	}
	if err := client.CommitRecords(ctx, records...); err != nil {
		// Most likely this member was thought dead: the records come again, to another one, and the inbox knows them.
		fmt.Fprintf(os.Stderr, "could not commit: %v\n", err)
	}
	return nil
}

func run(ctx context.Context) error {
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat() // "format" only informs in draft 2020-12 unless it is asked for
	envelope, err := compiler.Compile(*schema)
	if err != nil {
		return err
	}
	db, err := pgx.Connect(ctx, *database)
	if err != nil {
		return err
	}
	defer db.Close(context.Background())
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
		return err
	}
	defer client.CloseAllowingRebalance() // leaves the group

	for ctx.Err() == nil {
		fetches := client.PollRecords(ctx, pollMax)
		if err := fetches.Err(); err != nil && ctx.Err() == nil {
			fmt.Fprintf(os.Stderr, "could not fetch: %v\n", err)
		}
		if err := handleAll(client, db, envelope, fetches.Records()); err != nil {
			return err
		}
		client.AllowRebalance()
	}
	return nil
}

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
