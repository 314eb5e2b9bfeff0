# `make demo` needs Rust, make and a C compiler. What the other targets need besides, scripts/ensure.sh installs on Debian
# and Ubuntu where it may, and else says how to get.

.PHONY: demo release test chaos strangers check guard bench bench-plots profile fuzz contract consumers kafka help

# What is shipped and measured is optimized by what runs in the relay under load (CONTRIBUTING.md, "The profile"). Code that has
# changed since is built as if there were no profile, without a word.
RELEASE = RUSTFLAGS="$$RUSTFLAGS $(patsubst %,-Cprofile-use=%,$(firstword $(wildcard $(CURDIR)/pgo/*.profdata))) -Cllvm-args=-no-pgo-warn-mismatch"

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 21

demo: ## Show it all on this machine: a mock Kafka, the real relay, webhooks; Ctrl-C ends
	cargo run --release --locked -- demo

# With a benchmark beside it: a dependency has all the features that anything in one build asks for, and with others it has other
# names, which the profile does not know.
release: ## Build target/release/livechat-relay, as it is meant to run
	$(RELEASE) cargo build --release --locked --bin livechat-relay --bench throughput

test: ## Run all tests, real Apache Kafka included
	scripts/ensure.sh jdk maven promtool openssl
	scripts/kafka.sh fetch
	cargo test --locked

chaos: ## Kill, freeze, cut and fill everything under load; no accepted event may be lost (25 minutes)
	scripts/ensure.sh jdk maven
	scripts/kafka.sh fetch
	$(RELEASE) cargo test --release --locked --test chaos -- --full

strangers: ## Attack the relay as those without a key can, and write docs/strangers.md (20 minutes; STRANGERS="--only heads-32")
	$(RELEASE) cargo test --release --locked --test strangers -- $(or $(STRANGERS),--full --out docs/strangers.md)

check: ## Formatting, lints and documentation, as CI wants them
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps

guard: ## What an event costs in instructions, against the committed baseline (WRITE=1 writes that anew)
	scripts/ensure.sh valgrind
	$(RELEASE) cargo bench --locked --bench instructions -- $(if $(WRITE),--write)

bench: ## Cost of the pure steps, and the relay against the floor program on a real Kafka and on a mock cluster
	scripts/ensure.sh jdk maven
	scripts/kafka.sh fetch
	$(RELEASE) cargo bench --locked --bench steps -- --noplot --discard-baseline --warm-up-time 1 --measurement-time 1
	$(RELEASE) cargo bench --locked --bench throughput

bench-plots: ## How cost grows, and the footprint: docs/performance/ anew (BENCH="--only apps --runs 3"; all: 11 minutes)
	scripts/ensure.sh jdk maven gnuplot
	scripts/kafka.sh fetch
	$(RELEASE) cargo bench --locked --bench throughput -- growth $(BENCH)

profile: ## What runs in the relay under load, for the release build: pgo/ anew (10 minutes)
	scripts/ensure.sh jdk maven curl llvm-profdata-19
	scripts/kafka.sh fetch
	scripts/profile.sh

consumers: ## The example consumers in four languages against a real Kafka and the real relay
	cargo test --locked --no-run
	scripts/check-consumers.sh

contract: ## Write contract/ anew from the catalogue of actions
	cargo build --locked
	rm -rf contract
	cargo run --locked --quiet -- contract --out contract

kafka: ## Run one Apache Kafka node on localhost:9092; Ctrl-C ends it and removes its data
	scripts/ensure.sh jdk maven
	scripts/kafka.sh run

fuzz: ## Ten minutes of bytes → record under libFuzzer, from and into fuzz/corpus (FUZZ_SECONDS=600)
	test -x target/tools/bin/cargo-fuzz || cargo install --locked --quiet --root target/tools cargo-fuzz
	PATH=$$PWD/target/tools/bin:$$PATH cargo fuzz run --sanitizer none record -- -max_total_time=$${FUZZ_SECONDS:-600} -max_len=16384
