-- What the example consumers write to. The id of an event and the effect of it are one transaction, so both are there or neither is.

-- The events that are done. What is older than the topics' retention can be deleted.
create table inbox (
    id          text primary key,
    handled_at  timestamptz not null default now()
);
create index on inbox (handled_at);

-- The effect, yours instead: how many events each chat has had. To add one twice would be wrong, so this needs the inbox.
create table chats (
    chat_id  text primary key,
    events   bigint not null
);

-- The effect, too: what was said, of the events whose payload has a text.
create table messages (
    chat_id   text not null,
    event_id  text not null,
    text      text not null
);
