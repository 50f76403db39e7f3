//! The times of the functions on a request's way: `cargo bench`.
//!
//! Owns nothing but the groups that criterion prints; what is run and checked stands in `cases.rs`. With `--test`, or
//! under `cargo test --bench functions`, each case runs once.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod cases;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

fn functions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("functions");
    for mut case in cases::of("") {
        group.throughput(Throughput::Elements(case.batch));
        group.bench_function(case.name, |bencher| bencher.iter(&mut case.run));
    }
    group.finish();
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = functions
}
criterion_main!(all);
