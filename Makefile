# Ostraka's commands. Everything needs only Go, make and git; tools are built into .bin at pinned versions.
SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := $(CURDIR)/.bin
BUF := v1.75.0
PROTOC_GEN_GO := v1.36.12
PROTOC_GEN_GO_GRPC := v1.6.2
STATICCHECK := v0.8.2

.PHONY: help build run test test-once race lint generate check-generated bench bench-compare bench-failover torture torture-smoke fuzz check check-compare clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build: ## the binary, ./ostraka
	go build -o ostraka ./cmd/ostraka

run: build ## a cluster of three processes on this machine; Ctrl-C ends it
	./ostraka dev --data-dir data/dev

test: ## every test, real processes included
	go test -timeout 10m ./...

test-once: ## INCREMENTS (2000000) and more while leaders are killed and paused: each write is done once
	OSTRAKA_TEST_INCREMENTS=$(or $(INCREMENTS),2000000) go test ./cmd/ostraka/e2e -run '^TestExactlyOnce$$' -v -count 1 -timeout 60m

race: ## every test with the race detector, in the tested processes too
	OSTRAKA_TEST_RACE=1 go test -race -timeout 15m $$(go list ./... | grep -v '/raftfsm$$')
	@$(RACE_RAFTFSM)

# Under raftfsm's bubbles of virtual time the race detector itself crashes now and then, in its own C++ code: a signal outside of Go,
# which no fault of Go code brings about. Such a run says nothing, and is repeated; any other failure is one.
define RACE_RAFTFSM
mkdir -p $(BIN); log=$(BIN)/race-raftfsm.log; \
for try in 1 2 3 4 5; do \
	if go test -race -timeout 15m ./raftfsm > $$log 2>&1; then cat $$log; exit 0; fi; \
	if grep -qE 'DATA RACE|^ *--- FAIL|^panic' $$log || ! grep -qE '^SIGSEGV: segmentation violation|^ThreadSanitizer: CHECK failed' $$log; then break; fi; \
	echo "the race detector crashed by itself, try $$try"; \
done; cat $$log; exit 1
endef

lint: $(BIN)/staticcheck ## gofmt, go vet, staticcheck, tidy modules
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	go vet ./...
	$(BIN)/staticcheck ./...
	go mod tidy -diff
	go mod verify

generate: $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-grpc ## the code in proto/ from its .proto files
	cd proto && PATH="$(BIN):$$PATH" buf lint && PATH="$(BIN):$$PATH" buf generate

check-generated: generate ## fails if the committed code in proto/ is not what its .proto files make
	@git diff --exit-code -- proto || { echo "run make generate and commit the result"; exit 1; }

bench: ## Go microbenchmarks, ten counts, for benchstat
	go test -run '^$$' -bench . -benchmem -count 10 ./shard ./store ./raftfsm/...

# bench/compare is a module of its own, so that etcd's dependencies (some 180 MB) stay out of this one, and of make test.
COMPARE ?=
bench-compare: build ## etcd, Redis and Ostraka side by side on this machine, ten minutes; COMPARE='-rounds 1' adds flags
	cd bench/compare && go build -o $(BIN)/compare .
	mkdir -p data
	$(BIN)/compare -binary $(CURDIR)/ostraka -dir $(CURDIR)/data -json data/compare.json -plot data/compare.svg $(COMPARE)

FAILOVERS ?= 50
bench-failover: build ## how long writes stand still when a leader is killed, etcd and Ostraka in turn, FAILOVERS (50) times each
	cd bench/compare && go build -o $(BIN)/compare .
	mkdir -p data
	$(BIN)/compare -binary $(CURDIR)/ostraka -dir $(CURDIR)/data -failovers $(FAILOVERS) $(COMPARE)

check-compare: $(BIN)/staticcheck ## lint, build and tests of bench/compare
	cd bench/compare && go vet ./... && $(BIN)/staticcheck ./... && go mod tidy -diff && go mod verify && go test -timeout 10m ./...

MINUTES ?= 5
SEED ?= 0
TORTURE ?=
torture: build ## break a cluster under load for MINUTES (5) and check every promise; SEED=7 repeats a script, TORTURE='-only isolate' adds flags
	go run ./bench/torture -binary $(CURDIR)/ostraka -dir $(CURDIR)/data/torture -minutes $(MINUTES) -seed $(SEED) -ledger docs/torture-ledger.md $(TORTURE)

torture-smoke: build ## a minute of it, always the same script
	go run ./bench/torture -binary $(CURDIR)/ostraka -dir $(CURDIR)/data/torture -minutes 1 -seed 1

FUZZTIME ?= 20s
fuzz: ## every fuzz target for FUZZTIME (20s); what it finds stays in testdata/fuzz
	@set -e; for pkg in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "== $$pkg $$target"; go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$pkg; done; done

check: lint check-generated test torture-smoke race check-compare ## what CI runs

clean: ## the binary and the tools
	rm -rf ostraka .bin

$(BIN)/buf:
	GOBIN=$(BIN) go install github.com/bufbuild/buf/cmd/buf@$(BUF)
$(BIN)/protoc-gen-go:
	GOBIN=$(BIN) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO)
$(BIN)/protoc-gen-go-grpc:
	GOBIN=$(BIN) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GO_GRPC)
$(BIN)/staticcheck:
	GOBIN=$(BIN) go install honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK)
