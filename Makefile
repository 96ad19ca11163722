# The contributor's door. `make help` lists what there is; every target does its own set-up.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CLUSTER ?= demo
TESTBED := target/debug/escadre-testbed

.PHONY: help demo demo-down test check fmt generate models templates clients reference bench-first-token \
	check-cuda soak-operator soak-rollouts soak-serving bench-operator bench-rollouts bench-fleet bench-serving \
	bench-cpu fuzz-short cluster-up cluster-down cluster-status cluster-exec cluster-shell prerequisites testbed

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

demo: ## A real Kubernetes, Escadre, a model, a streamed answer; leaves the cluster up
	@dev/demo.sh $(CLUSTER)

demo-down: cluster-down ## Stop what `make demo` started

test: ## Everything that must hold before a change lands; ends with `N passed, N failed`
	@dev/test.sh

check: prerequisites ## The quick part of `make test`: format, lints, generated files, unit tests
	@dev/test.sh quick

fmt: ## Format the code
	@cargo fmt --all
	@cargo fmt --manifest-path fuzz/Cargo.toml

generate: ## Write the CRD, its reference and the examples again from the Rust types
	@dev/build.sh -q --bin crdgen && target/debug/crdgen

.PHONY: generate-api
generate-api: ## Write the reference of the API again
	@dev/build.sh -q --bin escadre-runtime && target/debug/escadre-runtime describe --markdown > docs/reference/api.md

.PHONY: generate-operator
generate-operator: ## Write the reference of the operator's options and metrics again
	@dev/build.sh -q --bin escadre-operator && target/debug/escadre-operator --print-reference > docs/reference/operator.md

models: ## Download the model that the tests and the demo serve (98 MB), and make the second one of the tests
	@dev/second-model.sh

templates: ## Download the chat templates that the tests render (77 MB)
	@dev/templates.sh

clients: ## Install the official OpenAI clients, and frameworks on them, that the tests use
	@dev/clients.sh

reference: ## Compute the reference numbers again with llama.cpp (builds it; about 10 minutes)
	@dev/reference.sh

bench-first-token: ## Measure the time from `kubectl apply` to the first token on a warm node
	@dev/bench-first-token.sh

check-cuda: prerequisites ## Compile the runtime with CUDA (about 15 minutes at first); no graphics processor is needed
	@dev/check-cuda.sh

test-deep: prerequisites ## The kernels' tests under AddressSanitizer (needs a nightly compiler)
	@dev/test-deep.sh

fuzz-short: prerequisites ## Fuzz what reads requests, vocabularies, templates and headers, a minute each (FUZZ_SECONDS)
	@dev/fuzz.sh

soak-operator: prerequisites ## 10,000 random operations while the API misbehaves; ends with ten idle minutes
	@dev/soak-operator.sh

soak-rollouts: prerequisites ## 100 model updates under traffic while the operator is killed and the API misbehaves
	@dev/soak-rollouts.sh

soak-serving: prerequisites ## 20,000 requests of every kind to a tiny model, many given up; nothing is left behind
	@dev/soak-serving.sh

bench-operator: prerequisites ## Measure the operator at fleet size on simulated nodes (about 20 minutes)
	@dev/bench-operator.sh

bench-rollouts: ## Measure a model update under traffic beside a plain Deployment (about 15 minutes)
	@dev/bench-rollouts.sh

bench-serving: prerequisites ## Measure serving to up to 64 clients at once beside llama-server (about 20 minutes)
	@dev/bench-serving.sh

bench-cpu: prerequisites ## Measure the arithmetic on processors beside llama.cpp (about 20 minutes)
	@dev/bench-cpu.sh

bench-fleet: prerequisites ## Measure a whole fleet that is updated at once without a free GPU
	@dev/bench-fleet.sh

cluster-up: testbed ## Start a cluster: control plane and one node (CLUSTER=name, default demo)
	@$(TESTBED) up --name $(CLUSTER)

cluster-down: testbed ## Stop it and remove what it left
	@$(TESTBED) down --name $(CLUSTER)

cluster-status: testbed ## Say what runs
	@$(TESTBED) status --name $(CLUSTER)

cluster-exec: testbed ## Run a command inside: make cluster-exec CMD='kubectl get llm -A'
	@$(TESTBED) exec --name $(CLUSTER) -- bash -c '$(CMD)'

cluster-shell: testbed ## A shell inside, with kubectl and helm
	@$(TESTBED) shell --name $(CLUSTER)

prerequisites:
	@dev/prerequisites.sh

testbed: prerequisites
	@dev/build.sh -q --bin escadre-testbed
