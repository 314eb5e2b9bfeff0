# `make demo` needs Rust, make and a C compiler. What the other targets need besides, scripts/ensure.sh installs on Debian
# and Ubuntu where it may, and else says how to get.

.PHONY: demo release test chaos strangers check check-deploy guard bench bench-growth fuzz fuzz-corpus contract types pages consumers docs kafka help

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 21

# Says why a first build is long, while there is no librdkafka of it yet: PROFILE MINUTES
first_build = @ls $${CARGO_TARGET_DIR:-target}/$(1)/build/rdkafka-sys-*/out/src/librdkafka.a >/dev/null 2>&1 || \
	printf '%s\n' 'The first build takes about $(2) minutes on two cores: it compiles OpenSSL, curl' \
	'and librdkafka, which are in C, and 250 crates.' >&2

# Not optimized: `make test` and `make check` go on with what this has built, the C libraries above all.
demo: ## Show it all on this machine: a mock Kafka, the real relay, webhooks; Ctrl-C ends
	$(call first_build,debug,6)
	cargo run --locked -- demo

release: ## Build target/release/livechat-relay, as it is meant to run
	$(call first_build,release,8)
	cargo build --release --locked

test: ## Run all tests, real Apache Kafka included
	scripts/ensure.sh jdk maven promtool openssl curl nginx haproxy pebble
	scripts/kafka.sh fetch
	$(call first_build,debug,8)
	cargo test --locked

chaos: ## Kill, freeze, cut and fill everything under load; no accepted event may be lost (25 minutes)
	scripts/ensure.sh jdk maven
	scripts/kafka.sh fetch
	cargo test --release --locked --test chaos -- --full

strangers: ## Attack the relay as those without a key can, and write docs/strangers.md (20 minutes; STRANGERS="--only heads-32")
	scripts/ensure.sh slowhttptest
	cargo test --release --locked --test strangers -- $(or $(STRANGERS),--full --out docs/strangers.md)

check: ## Formatting, lints and documentation, as CI wants them
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps

check-deploy: ## Check the files in deploy/: alert rules, units, compose files, Dockerfile, settings
	cargo test --locked --no-run
	scripts/check-deploy.sh --install

guard: ## What an event costs in instructions, against the committed baseline (WRITE=1 rewrites the baseline)
	scripts/ensure.sh valgrind
	cargo bench --locked --bench instructions -- $(if $(WRITE),--write)

bench: ## The pure steps; the relay against the best floor on a real Kafka and on a mock cluster (BENCH="--only kafka": no more than that)
	scripts/ensure.sh jdk maven
	scripts/kafka.sh fetch
	$(if $(BENCH),,cargo bench --locked --bench steps -- --noplot --discard-baseline --warm-up-time 1 --measurement-time 1)
	cargo bench --locked --bench throughput -- $(BENCH)

bench-growth: ## How cost grows, and the footprint (BENCH="--only body --runs 10"; all: 10 minutes)
	scripts/ensure.sh jdk maven
	scripts/kafka.sh fetch
	cargo bench --locked --bench throughput -- growth $(BENCH)

pages: ## The installation page and the app's page in Chromium, against a simulated LiveChat; screenshots in target/pages (1 minute)
	cargo build --locked
	scripts/check-pages.sh

consumers: ## The examples (consumers in four languages, Kafka Streams, Kafka Connect) against a real Kafka, PostgreSQL and relay
	cargo test --locked --no-run
	scripts/check-consumers.sh
	scripts/check-derived.sh

docs: ## Run every command of the documents, the slow ones too, and compare what they print (over an hour)
	cargo build --locked
	scripts/check-docs.sh --all

contract: ## Rewrite contract/, but for contract/types, from the catalogue of actions
	cargo build --locked
	rm -rf contract/*.json contract/*.md contract/*.yaml contract/actions contract/examples
	env -u LIVECHAT_RELAY_CONFIG cargo run --locked --quiet -- contract --out contract

types: ## Rewrite contract/types, the types in TypeScript, Python, Java and Go, from the schemas in contract/
	scripts/ensure.sh node
	node scripts/types.mjs

kafka: ## Run one Apache Kafka node on localhost:9092; Ctrl-C ends it and removes its data
	scripts/ensure.sh jdk maven
	scripts/kafka.sh run

FUZZ = PATH=$$PWD/target/tools/bin:$$PATH cargo fuzz

fuzz: target/tools/bin/cargo-fuzz ## Ten minutes of bytes → record under libFuzzer; new inputs go to fuzz/found (FUZZ_SECONDS=600)
	mkdir -p fuzz/found
	$(FUZZ) run --sanitizer none record fuzz/found fuzz/corpus/record -- -max_total_time=$${FUZZ_SECONDS:-600} -max_len=16384

# Coverage is edges alone: with libFuzzer's counters of how often each edge is taken, four times as many files stay. The set cover
# keeps half as many files as the plain merge (-merge=1), which cargo-fuzz asks for.
fuzz-corpus: target/tools/bin/cargo-fuzz ## Move fuzz/found into fuzz/corpus, and keep the fewest files that cover as much
	mkdir -p fuzz/found
	find fuzz/found -type f -exec mv -t fuzz/corpus/record {} +
	$(FUZZ) cmin --sanitizer none record -- -merge=0 -set_cover_merge=1 -use_counters=0 -max_len=16384

target/tools/bin/cargo-fuzz:
	cargo install --locked --quiet --root target/tools cargo-fuzz
