//! The floor: the smallest program that does the relay's job. It reads the body with hyper, borrows its members with
//! `serde_json`, hands it to an idempotent producer and answers 200 on the ack. No limits, no envelope, no metrics, no spool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use livechat_relay::config::{Config, Need};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::value::RawValue;

use crate::webhooks::{SECRET_KEY, floor_topic};

#[derive(clap::Args)]
pub struct Arguments {
    #[arg(long)]
    brokers: String,
    #[arg(long)]
    port: u16,
    /// How long records wait in the producer for others of their batch, in milliseconds
    #[arg(long)]
    linger: u32,
}

/// As `incoming_chat` has it.
#[derive(serde::Deserialize)]
struct Chat<'a> {
    id: &'a str,
}

pub fn run(arguments: &Arguments) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(serve(arguments));
}

async fn serve(arguments: &Arguments) {
    // The relay's own settings but for the linger, so that they cancel out.
    let brokers = ("LIVECHAT_RELAY__KAFKA__BROKERS".into(), arguments.brokers.clone().into());
    let config = Config::load(None, [brokers], Need::Kafka).expect("the relay's defaults");
    let mut settings = config.kafka.producer();
    settings.set("linger.ms", arguments.linger.to_string());
    let producer: Arc<FutureProducer> = Arc::new(settings.create().expect("a producer"));
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind((std::net::Ipv4Addr::LOCALHOST, arguments.port).into()).expect("a free port");
    let listener = socket.listen(4096).expect("a socket"); // hundreds connect at once, and wait for seconds where it is full
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let producer = Arc::clone(&producer);
        let service = service_fn(move |request| answer(Arc::clone(&producer), request));
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    producer: Arc<FutureProducer>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let body = request.into_body().collect().await?.to_bytes();
    let status = publish(&producer, &body).await.map_or(StatusCode::BAD_REQUEST, |()| StatusCode::OK);
    let mut answer = Response::new(Full::new(Bytes::new()));
    *answer.status_mut() = status;
    Ok(answer)
}

async fn publish(producer: &FutureProducer, body: &[u8]) -> Option<()> {
    let members: BTreeMap<&str, &RawValue> = serde_json::from_slice(body).ok()?;
    let text = |raw: &&RawValue| raw.get().trim_matches('"').to_owned();
    if members.get("secret_key").map(text)? != SECRET_KEY {
        return None;
    }
    let topic = floor_topic(&members.get("action").map(text)?);
    let payload: BTreeMap<&str, &RawValue> = serde_json::from_str(members.get("payload")?.get()).ok()?;
    let chat = || serde_json::from_str::<Chat<'_>>(payload.get("chat")?.get()).ok();
    let key = payload.get("chat_id").map(text).or_else(|| Some(chat()?.id.to_owned())).unwrap_or_default();
    producer.send(FutureRecord::to(&topic).key(&key).payload(body), Duration::ZERO).await.ok()?;
    Some(())
}
