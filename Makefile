# The two commands a newcomer needs; everything else is `cargo xtask`.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: demo bench test test-full setup

# Over-committed VMs with and without eCS. Options: make demo ARGS="--seconds 5 --vcpus 4"
demo: setup
	@cargo build --release -p vmm-ecs -p ecs-exporter
	@target/release/vmm-ecs demo $(ARGS)

# Every claim with its scenario, on and off, in half an hour: docs/evaluation.md. A part of it: make bench ARGS=bench/ticket
bench: setup
	-@sh xtask/scx.sh install
	@cargo xtask bench $(ARGS)

# Everything this machine can check; what it cannot is listed at the end.
test: setup
	-@sh xtask/scx.sh install
	@cargo xtask test

# The same, with the slow cases.
test-full: setup
	-@sh xtask/scx.sh install
	@cargo xtask test-full

# Not by cargo: without a linker cargo cannot build a thing.
setup:
	@sh xtask/setup.sh
