-- The tables of the two PostgreSQL connectors. A connector inserts JSON as it is on Kafka into an inbox, which stays empty: its trigger
-- writes to the real table instead, so that a duplicate changes nothing. Add the columns that you search by.
--
-- A record that is not a valid event or transcript goes to the table `refused`: left to fail, it would stop its connector at the same
-- record again and again. Look there from time to time.
--
-- PostgreSQL stores no NUL in jsonb. LiveChat does not say that a message has none: it becomes the replacement character.

create table refused (
    refused_at  timestamptz not null default now(),
    inbox       text not null,
    reason      text not null,
    value       text
);

create table events (
    id           text primary key,
    type         text not null,
    chat_id      text,
    thread_id    text,
    recorded_at  timestamptz not null,
    event        jsonb not null
);
create index on events (chat_id, thread_id);
create index on events (recorded_at); -- to delete what is older than you may keep

create table events_inbox (event text);
create function take_event() returns trigger language plpgsql as $$
declare
    event jsonb;
begin
    event := replace(new.event, '\u0000', '\ufffd')::jsonb;
    insert into events values (event->>'id', event->>'type', event->>'chatid', event->>'threadid',
        (event->>'recordedtime')::timestamptz, event)
        on conflict do nothing; -- a duplicate
    return null;
exception when data_exception or integrity_constraint_violation then
    insert into refused (inbox, reason, value) values (tg_table_name, sqlerrm, new.event);
    return null;
end $$;
create trigger take_event before insert on events_inbox for each row execute function take_event();

create table transcripts (
    chat_id                 text,
    thread_id               text,
    started_at              timestamptz not null,
    ended_at                timestamptz,
    first_response_seconds  double precision,
    handling_seconds        double precision,
    queue_seconds           bigint,
    transcript              jsonb not null,
    primary key (chat_id, thread_id)
);

create table transcripts_inbox (transcript text);
create function take_transcript() returns trigger language plpgsql as $$
declare
    t jsonb;
begin
    t := replace(new.transcript, '\u0000', '\ufffd')::jsonb;
    insert into transcripts values (t->>'chat_id', t->>'thread_id', (t->>'started_at')::timestamptz, (t->>'ended_at')::timestamptz,
        (t->>'first_response_seconds')::double precision, (t->>'handling_seconds')::double precision, (t->>'queue_seconds')::bigint, t)
        on conflict (chat_id, thread_id) do update -- a later record of a thread knows more
        set started_at = excluded.started_at, ended_at = excluded.ended_at, first_response_seconds = excluded.first_response_seconds,
            handling_seconds = excluded.handling_seconds, queue_seconds = excluded.queue_seconds, transcript = excluded.transcript;
    return null;
exception when data_exception or integrity_constraint_violation then
    insert into refused (inbox, reason, value) values (tg_table_name, sqlerrm, new.transcript);
    return null;
end $$;
create trigger take_transcript before insert on transcripts_inbox for each row execute function take_transcript();
