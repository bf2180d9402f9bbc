# One word for each thing that is done often. `make` lists them; each is a command that can be run by itself.
.PHONY: help check fix quick test cluster figures fuzz images

help:            ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

check:           ## what must hold and builds no program: documents, format, lints, licences
	deploy/check-docs
	cargo fmt --all --check
	deploy/check-circles
	cargo clippy --workspace --all-targets --features attestation/simulated -- -D warnings
	if command -v cargo-deny > /dev/null; then cargo deny check licenses bans sources; fi

fix:             ## rewrites what `check` can mend by itself
	cargo fmt --all
	cargo clippy --workspace --all-targets --features attestation/simulated --fix --allow-dirty

quick:           ## unit tests, without root
	./test quick

test:            ## everything that a fresh Debian machine can run, as root
	./test

cluster:         ## our pods on a real Kubernetes of this machine's own, as root
	./test cluster

figures:         ## the figures of docs/performance.md: certificates, policies, evidence, the mesh (as root)
	cargo build --release --workspace --bins
	./target/release/load --seconds 20
	cargo bench -p attestation -p runtime-policy -p storage-schema -p keys
	service-mesh/figures.sh

fuzz:            ## libFuzzer on every parser of foreign bytes
	./test fuzz

images:          ## images and their SBOMs, as deploy/images/build says
	deploy/images/build target/images
