//! The pure steps, bytes → record, by size of the body. `parse` is the floor: what any program must do that looks at JSON.

#[path = "instructions/body.rs"]
mod body;

use body::body;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use livechat_relay::event::normalize::normalize;
use livechat_relay::event::receive::receive;
use livechat_relay::event::route::route;
use livechat_relay::event::verify::verify;
use livechat_relay::event::{Keyring, Keys, Mode, Receipt, Routing, Topics};
use serde_json::value::RawValue;

fn steps(c: &mut Criterion) {
    let keyring = Keyring::new([("k".to_owned(), &"k-0123456789".to_owned().into())]);
    let topics = Topics::new("livechat.", |_| None);
    let routing = Routing { topics, mode: Mode::Structured, keys: Keys::Plain, api_version: None };
    let receipt = || Receipt { app: "default", time: jiff::Timestamp::UNIX_EPOCH, fresh_id: uuid::Uuid::nil };
    for bytes in [700, 6_000, 200_000] {
        let body = body(bytes);
        let mut group = c.benchmark_group("steps");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::new("parse", bytes), &body, |b, body| {
            b.iter(|| {
                serde_json::from_slice::<std::collections::BTreeMap<&str, &RawValue>>(body.as_bytes())
                    .expect("JSON")
                    .len()
            });
        });
        group.bench_with_input(BenchmarkId::new("receive+verify", bytes), &body, |b, body| {
            b.iter(|| verify(receive(body.as_bytes()).expect("well-formed"), &keyring).is_ok());
        });
        group.bench_with_input(BenchmarkId::new("receive+verify+normalize", bytes), &body, |b, body| {
            b.iter(|| {
                let (webhook, _) = verify(receive(body.as_bytes()).expect("well-formed"), &keyring).ok()?;
                Some(normalize(webhook, receipt()).id)
            });
        });
        group.bench_with_input(BenchmarkId::new("record", bytes), &body, |b, body| {
            b.iter(|| {
                let (webhook, _) = verify(receive(body.as_bytes()).expect("well-formed"), &keyring).ok()?;
                route(normalize(webhook, receipt()), &routing, None)
            });
        });
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
