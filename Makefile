# The front door. `make` alone says what there is.
.SILENT:
.PHONY: help up down test test-long test-services bench bench-scale check audit build setup root bench-policy bench-services bench-ipam bench-responsive fuzz-policy fuzz-yaml fuzz-packets

# Three profiles: `dev` for the tests, `look` for a first look (`make up`), `release` for everything that is measured or
# shipped.
PROGRAMS := -p weft-cli -p weft-lab-cluster -p weft-agent -p weft-operator -p weft-cni
RELEASE := target/release
LOOK := target/look
NAME ?= weft
TEST ?=
UP ?=
SECONDS ?= 60
SCALE ?= --nodes 500 --pods 10000 --rate 10 --seconds 20 --rates 15,20,30,50,75,100

help:
	echo "make up     a 3-node cluster on this machine (UP='--nodes 5 --routing vxlan' for another; root)"
	echo "make down   remove it, however it was left (root)"
	echo "make test   all tests, whole clusters included (root; TEST='policy mesh' for those with such a name)"
	echo "make test-long  the same with loads and random worlds of full size (some hours; root)"
	echo "make test-services  of them: every kind of service from every client, rolling updates under load (root)"
	echo "make bench  benchmarks beside plain forwarding and the bridge CNI (root)"
	echo "make bench-policy  10,000 rules, 20,000 identities, 250 endpoints in the kernel's maps (root)"
	echo "make bench-ipam  0 to 250 pods on a node: addresses in batches beside a prefix of the node's own (root)"
	echo "make bench-responsive  how soon the agent answers while 10,000 rules are compiled and written (root)"
	echo "make bench-services  services at sockets, packet by packet, at the edge, beside iptables (root)"
	echo "make bench-scale   the control plane at scale: 500 agents in one process, three ways to propagate endpoints"
	echo "make fuzz-policy  random policies against the specification (SECONDS=600 for longer)"
	echo "make fuzz-yaml  any text as a policy (a nightly tool chain)"
	echo "make fuzz-packets  any frame through the kernel's programs (a nightly tool chain; root)"
	echo "make check  format, lints, licences, structure"
	echo "make audit  known vulnerabilities of the crates (needs the network)"
	echo "make build  the programs, into $(RELEASE)"
	echo "make setup  install what building needs; the others do so by themselves"

root:
	[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS) needs root (network namespaces, eBPF): sudo -E env PATH=\$$PATH make $(MAKECMDGOALS)" >&2; exit 1; }

setup:
	scripts/setup.sh

build: setup
	cargo xtask build-ebpf
	cargo build --quiet --release $(PROGRAMS) -p weft-sim

up: root
	scripts/setup.sh compiler
	cargo xtask build look $(LOOK)/weft up --name $(NAME) $(UP)

# Also when nothing was ever built here.
down: root
	for weft in $(LOOK)/weft $(RELEASE)/weft target/debug/weft; do \
	  if [ -x $$weft ] && [ -x $$weft-lab ]; then exec $$weft down --name $(NAME); fi; \
	done; cargo xtask build look $(LOOK)/weft down --name $(NAME)

test: root
	scripts/setup.sh compiler
	cargo xtask test $(TEST)

# The seeds of random worlds are those of the day, too; WEFT_SEED repeats one.
test-long: root
	scripts/setup.sh compiler
	cargo xtask test --long $(TEST)

test-services: root
	scripts/setup.sh compiler
	cargo xtask test "tests cluster service" "tests cluster alone::service" "tests cluster alone::rollout"

bench: root build
	scripts/setup.sh test
	cargo build --quiet --release -p weft-bench
	$(RELEASE)/weft-bench $(BENCH)

bench-policy: root build
	cargo build --quiet --release -p weft-bench
	$(RELEASE)/weft-bench policy-scale

bench-ipam: root build
	cargo build --quiet --release -p weft-bench
	$(RELEASE)/weft-bench watermarks

bench-responsive: root
	cargo xtask build-ebpf
	cargo build --quiet --release -p weft-bench
	$(RELEASE)/weft-bench responsive

bench-services: root build
	scripts/setup.sh test
	cargo build --quiet --release -p weft-bench
	$(RELEASE)/weft-bench services-scale
	$(RELEASE)/weft-bench services $(BENCH)

# The sizes of the growth are part of it, and 1,000 nodes with 25,000 pods where memory allows (some 50 GiB).
bench-scale:
	cargo xtask build-ebpf
	cargo build --quiet --release -p weft-sim
	ulimit -n 65536 2>/dev/null; $(RELEASE)/weft-sim scale $(SCALE)

check:
	scripts/setup.sh check
	cargo xtask build-ebpf
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo deny --log-level error check bans licenses sources
	cargo xtask tidy

# Random worlds through the policy compiler and the oracle; a difference is shown in the smallest world that has it.
fuzz-policy:
	cargo run --quiet --release -p weft-trial -- --seconds $(SECONDS)

# Both need cargo-fuzz and a nightly tool chain (`scripts/setup.sh fuzz`).
fuzz-yaml:
	scripts/setup.sh fuzz
	cargo +nightly fuzz run policy_yaml -s none -- -max_total_time=$(SECONDS) -max_len=8192 -timeout=10

fuzz-packets: root
	scripts/setup.sh fuzz
	cargo xtask build-ebpf
	cargo +nightly fuzz run packets -s none -- -max_total_time=$(SECONDS) -max_len=512 -timeout=10

# Asks the network for known vulnerabilities.
audit:
	scripts/setup.sh check
	cargo deny --log-level error check advisories
