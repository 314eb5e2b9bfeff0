//! The pure steps, bytes → record, by size of the body. `parse` is the floor: what any program must do that looks at JSON.

#[path = "instructions/input.rs"]
mod input;

use std::collections::BTreeMap;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use input::{Input, SIZES};
use serde_json::value::RawValue;

fn steps(c: &mut Criterion) {
    let parse = |body: &str| serde_json::from_str::<BTreeMap<&str, &RawValue>>(body).expect("JSON").len();
    for bytes in SIZES {
        let input = Input::new(bytes);
        let mut group = c.benchmark_group("steps");
        group.throughput(Throughput::Bytes(input.body.len() as u64));
        group.bench_with_input(BenchmarkId::new("parse", bytes), &input, |b, input| b.iter(|| parse(&input.body)));
        group.bench_with_input(BenchmarkId::new("receive+verify", bytes), &input, |b, input| {
            b.iter(|| drop(std::hint::black_box(input.verified())));
        });
        group.bench_with_input(BenchmarkId::new("record", bytes), &input, |b, input| b.iter(|| input.record()));
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
