# `make demo` needs Rust, make and a C compiler. What the other targets need besides, scripts/ensure.sh installs on Debian
# and Ubuntu where it may, and else says how to get.

.PHONY: demo test check bench kafka help

help: ## Say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: ## Show it all on this machine: a mock Kafka, the real relay, webhooks; Ctrl-C ends
	cargo run --release --locked -- demo

test: ## Run all tests, real Apache Kafka included
	scripts/ensure.sh jdk maven promtool
	scripts/kafka.sh fetch
	cargo test --locked

check: ## Formatting, lints and documentation, as CI wants them
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps

bench: ## Cost of the pure steps, and the relay against the floor program on a real Kafka
	scripts/ensure.sh jdk maven
	scripts/kafka.sh fetch
	cargo bench --locked --bench steps -- --warm-up-time 1 --measurement-time 3
	cargo bench --locked --bench throughput

kafka: ## Run one Apache Kafka node on localhost:9092; Ctrl-C ends it and removes its data
	scripts/ensure.sh jdk maven
	scripts/kafka.sh run
