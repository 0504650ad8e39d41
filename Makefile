# What is done here is what CI and the packages do: nothing else builds, tests or installs.
GO       ?= go
PREFIX   ?= /usr
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
UNITDIR  ?= $(PREFIX)/lib/systemd/system
TMPFILES ?= $(PREFIX)/lib/tmpfiles.d
SYSUSERS ?= $(PREFIX)/lib/sysusers.d

# What makes the program 1.5 MiB smaller and nothing slower: no HTTP/2, which no git
# server needs, no YAML for a test library that Butane links by mistake, and no
# inlining in what runs a few times. The last pattern that fits a package counts.
TAGS  := nethttpomithttp2,testify_yaml_fail
SMALL := $(foreach cold,github.com/... net/... text/... crypto/tls crypto/x509 golang.org/x/crypto/ssh/...,-gcflags=$(cold)=-l) \
	$(foreach hot,github.com/reconf-pull/... github.com/pjbgf/... github.com/coreos/vcontext/... github.com/coreos/ignition/v2/config/merge,-gcflags=$(hot)=)

.DEFAULT_GOAL := help
.PHONY: help build demo test soak check parity bench install clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

build: ## build bin/reconf-pull, static and stripped
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) $(SMALL) -ldflags '-s -w -X github.com/reconf-pull/reconf-pull/internal/version.Version=$(VERSION)' -o bin/reconf-pull ./cmd/reconf-pull

demo: build ## converge a scratch host from a git repo, and show every step
	demo/run bin/reconf-pull

test: ## everything that CI runs; installs what it lacks when it is root
	.ci/test

CRASHES ?= 500
soak: ## CRASHES=500 power cuts and as many kills at random instants, all swaps by users, again with SEED=
	RECONF_TEST_CRASHES=$(CRASHES) RECONF_TEST_SEED=$(SEED) $(GO) test ./cmd/reconf-pull -run 'AtRandom|^TestSwaps$$' -count=1 -v -parallel 4 -timeout 8h

check: ## formatting, vet, lint, module files
	.ci/check

parity: ## both engines on every case, with the salt-call on the PATH (RECORD=1: write down what it does)
	$(GO) test ./internal/reconcile -run TestParity -timeout 90m -live $(if $(RECORD),-record)

bench: build ## each figure beside its peer, from one run (OLD=path: beside that binary of ours)
	bench/run bin/reconf-pull $(OLD)

install: build ## install below DESTDIR
	install -D -m 0755 bin/reconf-pull $(DESTDIR)$(PREFIX)/bin/reconf-pull
	install -D -m 0644 -t $(DESTDIR)$(UNITDIR) packaging/systemd/*.service packaging/systemd/*.timer packaging/systemd/*.path
	install -D -m 0644 packaging/tmpfiles.d/reconf-pull.conf $(DESTDIR)$(TMPFILES)/reconf-pull.conf
	install -D -m 0644 packaging/sysusers.d/reconf-pull.conf $(DESTDIR)$(SYSUSERS)/reconf-pull.conf
	install -D -m 0644 packaging/salt/Containerfile $(DESTDIR)$(PREFIX)/share/reconf-pull/salt/Containerfile
	install -D -m 0644 packaging/config.toml $(DESTDIR)$(PREFIX)/share/doc/reconf-pull/config.toml
	install -D -m 0644 LICENSE $(DESTDIR)$(PREFIX)/share/licenses/reconf-pull/LICENSE

clean: ## remove what was built
	rm -rf bin
