# make test    install what the tests need, and run them
# make race    the same with the race detector
# make ci      everything that CI runs
# make powercut TIME=10m    cut the power of a server's disk again and again; as root
# make faults FAULTS=all     break the disk and S3, kill the server and cut its power, at every operation of a run
# make kills TIME=10m    kill the server and its MinIO while clients upload, for twice that long, and imports
# make simulate TIME=1h     the simulation, from SEED=… on or from anywhere
# make docs    the manual pages, in man/, and contrib/dedupd.toml
# make bench   a benchmark, as in: make bench NAME=stored ARGS='--json'; without NAME, the list of them

GO ?= go

.PHONY: build test race vet ci faults kills simulate docs bench powercut deps clean

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

faults: FAULTS ?= all
faults:
	DEDUPD_FAULTS=$(FAULTS) scripts/with-deps $(GO) test -count 1 -p 1 -timeout 0 -v -run '^(TestFault|TestKillPoints)' ./chunkstore ./cmd/dedupd

kills: TIME ?= 10m
kills:
	DEDUPD_KILLS=$(TIME) DEDUPD_IMPORT_KILLS=20 scripts/with-deps $(GO) test -count 1 -timeout 0 -v -run '^TestKill(S3|Import)$$' ./cmd/dedupd

simulate: TIME ?= 1h
simulate:
	DEDUPD_SIMULATE=$(TIME) SEED=$(SEED) $(GO) test -count 1 -timeout 0 -v -run '^TestSimulation$$' ./simulation

docs:
	$(GO) run ./cmd/dedupd docs man
	mv man/dedupd.toml contrib/

bench:
	scripts/with-deps $(GO) run ./benchmarks $(ARGS) $(NAME)

# In namespaces of its own: whatever ends it, no process and no mount stays.
powercut: TIME ?= 10m
powercut:
	DEDUPD_POWERCUT=$(TIME) scripts/with-deps unshare --mount --pid --fork --kill-child --mount-proc \
		$(GO) test -count 1 -timeout 0 -v -run TestPowerCut ./cmd/dedupd

deps:
	scripts/with-deps true

clean:
	rm -rf dedupd man
