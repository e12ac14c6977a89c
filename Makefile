# Public commands; README.md and docs/commands.md say what each promises. Caches live in .cache/, binaries in bin/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VERSION ?= 0.1.0
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
NODES   ?= 2
PROXY   ?= nftables
FAMILY  ?= ipv4
NAME    ?= undermesh
RUN     ?= .
FUZZTIME ?= 1m

# Each recipe that builds runs "$(setup) STEP…" first: it installs what is missing and makes the right Go be found.
setup = gobin=$$(.ci/setup $(1)); [ -z "$$gobin" ] || export PATH="$$gobin:$$PATH";
ldflags = -s -w -X github.com/undermesh/undermesh/controller/api/version.Version=$(VERSION) -X github.com/undermesh/undermesh/controller/api/version.Commit=$(COMMIT)
components = undermesh controller nodeagent ztunnel undermesh-cni
cluster_flags = --name $(NAME) --nodes $(NODES) --proxy $(PROXY) --family $(FAMILY)

.PHONY: help build images test test-unit test-node test-cluster cluster-up cluster-down mesh-up demo demo-down \
	generate check-generate check fuzz bench capabilities clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## build           bin/undermesh and the component binaries, static
build:
	@$(call setup,build) mkdir -p bin; for c in $(components); do \
		echo "build bin/$$c"; CGO_ENABLED=0 go build -trimpath -ldflags '$(ldflags)' -o bin/$$c ./cmd/$$c; done; ln -sf undermesh bin/istioctl

bin/cluster: FORCE
	@$(call setup,build) mkdir -p bin; CGO_ENABLED=0 go build -C test/cluster -trimpath -o $(CURDIR)/bin/cluster .
.PHONY: FORCE
FORCE:

## images          OCI images of the components and samples in .cache/images
images: build bin/cluster
	@$(call setup,build cluster) mkdir -p .cache/images; \
	for c in controller ztunnel; do bin/cluster image -name docker.io/undermesh/$$c:$(VERSION) -o .cache/images/$$c.tar -entrypoint /$$c bin/$$c:/$$c; done; \
	bin/cluster image -name docker.io/undermesh/nodeagent:$(VERSION) -o .cache/images/nodeagent.tar -entrypoint /nodeagent bin/nodeagent:/nodeagent bin/undermesh-cni:/usr/local/bin/undermesh-cni; \
	bin/cluster samples

## cluster-up      a bare Kubernetes on this machine (NODES, PROXY, FAMILY, NAME); kubeconfig in .cache/cluster/kubeconfig
cluster-up: bin/cluster
	@$(call setup,build cluster) bin/cluster up $(cluster_flags)

## cluster-down    remove it, without a trace
cluster-down: bin/cluster
	@bin/cluster down --name $(NAME)

## mesh-up         cluster-up, images, install
mesh-up: cluster-up images
	@bin/cluster load --name $(NAME) .cache/images/*.tar; bin/undermesh --kubeconfig .cache/cluster/kubeconfig install --set profile=demo -y

## test            everything that CI runs
test: test-unit test-node

## test-unit       go test ./... without root or clang
test-unit:
	@$(call setup,build) go vet ./... ; go test ./...

## test-node       privileged tests on network namespaces, no Kubernetes
test-node:
	@$(call setup,build node) MESH_TEST_PRIVILEGED=1 go test -count=1 -p 1 ./nodeagent/... ./test/netnstest/...

## generate        BPF objects, protobuf, definitions
generate:
	@$(call setup,build generate) go generate ./bpf/... ; \
	go build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go; \
	for p in controller/api/workloadapi/workload controller/api/securityapi/authorization controller/api/settings/settings nodeagent/zds/zdsapi/zds; do \
		protoc --plugin=bin/protoc-gen-go -I "$$(dirname $$p)" --go_out=. --go_opt=module=github.com/undermesh/undermesh "$$(basename $$p).proto"; done; \
	go run ./deploy/gen; go test ./deploy -update >/dev/null

## check-generate  fails when a generated file is not what "make generate" makes
check-generate: generate
	@git diff --exit-code

## check           vet, formatting, the shape of the tree, generated files
check: check-generate
	@$(call setup,build) test -z "$$(gofmt -l $$(git ls-files '*.go'))"; go vet ./...; go test ./test/shape

## clean           removes bin/ and .cache/
clean:
	rm -rf bin .cache
