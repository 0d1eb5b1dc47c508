# make test    install what the tests need, and run them
# make race    the same with the race detector
# make ci      everything that CI runs
# make bench   a benchmark, as in: make bench NAME=stored ARGS='--json'; without NAME, the list of them

GO ?= go

.PHONY: build test race vet ci bench deps clean

build:
	$(GO) build -o dedupd ./cmd/dedupd

test:
	scripts/test ./...

race:
	scripts/test -race -short ./...

vet:
	$(GO) vet ./...

ci:
	.ci/run

bench:
	scripts/with-deps $(GO) run ./benchmarks $(ARGS) $(NAME)

deps:
	scripts/with-deps true

clean:
	rm -f dedupd
