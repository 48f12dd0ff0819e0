# Two commands do everything: `make demo` sets up and shows it, `make test` sets up and tests it.
SHELL := /bin/sh
BIN := .venv/bin
OWN := mitmsec certs redirect addons
COMPILE := $(BIN)/python -m compileall -q -j 0 -o 0 -o 1
PIP := $(BIN)/pip --disable-pip-version-check -qq install --no-input
RUN_PACKAGES := curl:curl ip:iproute2
SECONDS := 60
TIMES := 1000
# Many tests wait for a process to start or to die, so two more than there are cores.
PARALLEL = -n $$(( $$(nproc) + 2 )) --dist worksteal
# Servers whose dialogues go on under TLS: tests/end_to_end/test_upgrades.py.
SERVER_PACKAGES := pg_ctlcluster:postgresql mariadbd:mariadb-server-core doveconf:dovecot-core /usr/lib/dovecot/imap:dovecot-imapd /usr/lib/dovecot/pop3:dovecot-pop3d slapd:slapd ldapsearch:ldap-utils prosody:prosody
SCANNER_PACKAGES := clamd:clamav-daemon c-icap:libc-icap-mod-virus-scan 7zr:p7zip
PROXY_PACKAGES := tinyproxy:tinyproxy-bin microsocks:microsocks
TEST_PACKAGES := $(RUN_PACKAGES) openssl:openssl tshark:tshark nsenter:util-linux nginx:nginx-light node:nodejs wget:wget git:git nft:nftables gnutls-serv:gnutls-bin certutil:libnss3-tools trust:p11-kit softhsm2-util:softhsm2 javac:default-jdk-headless chromium:chromium firefox-esr:firefox-esr $(SERVER_PACKAGES) $(PROXY_PACKAGES) $(SCANNER_PACKAGES)

.PHONY: help demo test wheel wine lint format fuzz torture bench bench-policy bench-attribution bench-redirect bench-inspect bench-audit checklist badssl clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(BIN)/.run ## set up, then a tour of everything in under 20 seconds (root)
	@tools/packages $(RUN_PACKAGES)
	@$(BIN)/mitmsec demo

test: $(BIN)/.dev ## set up, then lint, types and the whole suite (root, for what touches the kernel)
	@tools/packages $(TEST_PACKAGES)
	@umask 022 && $(COMPILE) $(OWN) || true  # what changed since: our processes may write no byte code themselves
	@$(MAKE) --no-print-directory -j 2 lint $(BIN)/.tests
	@$(BIN)/pytest -q $(PARALLEL)

wheel: $(BIN)/.dev ## the suite, or TESTS of it, against the built wheel in an environment of its own; PYTHON names another Python
	@tools/packages $(TEST_PACKAGES)
	@tools/wheel-test $(PARALLEL) $(TESTS)

wine: $(BIN)/.dev ## the real WinDivert.dll and a Windows Python under Wine, for the suite (root; 700 MB, a minute)
	@tools/packages wine:wine
	@tools/windivert-under-wine .venv/wine $(BIN)/pip

lint: $(BIN)/.dev ## style, types, dependency rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q --exclude '*.md' .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo >/tmp/mitmsec-lint-$$$$ 2>&1 || { cat /tmp/mitmsec-lint-$$$$; rm -f /tmp/mitmsec-lint-$$$$; exit 1; }; rm -f /tmp/mitmsec-lint-$$$$

format: $(BIN)/.dev ## put the layout right
	@$(BIN)/ruff check --fix-only -q . ; $(BIN)/ruff format --exclude '*.md' .

fuzz: $(BIN)/.fuzz ## parsers and the divert engine, guided by coverage: SECONDS=60 for each of TARGETS=divert dns hello nat packet quic
	@$(BIN)/python tests/fuzz/fuzz.py $(SECONDS) $(TARGETS) $(KEEP)

torture: $(BIN)/.dev ## the audit log under TIMES=1000 kills and power cuts, and tampered with at every position
	@PYTHONPATH=tests $(BIN)/python tests/audit_torture.py $(TIMES)

bench: $(BIN)/.dev ## measure against the peers (root; about ten minutes; installs the peers)
	@$(BIN)/python -m benchmarks --report docs/performance.md --json benchmarks/results/latest.json --plot docs/performance.svg

bench-policy: $(BIN)/.dev ## measure what a decision costs under 1,000 rules and lists of 1,000,000 names, and to load them
	@$(BIN)/python -m benchmarks.long_lists

bench-attribution: $(BIN)/.dev ## make 20,000 flows whose owner is known and score what is recorded of them (root; some minutes)
	@$(BIN)/python -m benchmarks.attribution --report docs/attribution.md

bench-redirect: $(BIN)/.dev ## measure what leading connections to the gate costs (root; about fifteen minutes)
	@$(BIN)/python -m benchmarks.redirect --report docs/redirect-performance.md --json benchmarks/results/redirect.json

bench-inspect: $(BIN)/.dev ## how right inspectors are, how fast, and how long they hold the loop (root; some minutes)
	@$(BIN)/python -m benchmarks.inspect --report docs/inspectors.md

bench-audit: $(BIN)/.dev ## how the audit log does at EVENTS=1000000: what is appended, asked and proven
	@$(BIN)/python -O -m benchmarks.audit --events $(or $(EVENTS),1000000)

checklist: $(BIN)/.tests ## the tests of the security checklist, and docs/security-checklist.md from what they came to (root)
	@tools/packages $(TEST_PACKAGES)
	@$(BIN)/pytest -q $(PARALLEL) -m checklist --checklist=docs/security-checklist.md

badssl: $(BIN)/.dev ## what mitmsec, curl and mitmproxy think of a local mirror of badssl.com: docs/badssl.md
	@PYTHONPATH=tests $(BIN)/python tests/engine/badssl_table.py docs/badssl.md

clean: ## remove what this file made
	rm -rf .venv .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/.made: tools/python
	@echo "setting up .venv" >&2
	@python=$$(tools/python) && umask 022 && { $$python -m venv .venv 2>/dev/null || \
	  { tools/packages ensurepip-of-$$python:python3-venv && $$python -m venv .venv; }; }
	@touch $@

$(BIN)/.run: $(BIN)/.made requirements/linux.txt pyproject.toml
	@echo "installing what mitmsec needs" >&2
	@umask 022 && $(PIP) --require-hashes -r requirements/linux.txt && $(PIP) --no-deps --no-build-isolation -e .
	@umask 022 && $(COMPILE) $(OWN) .venv/lib >/dev/null 2>&1 || true
	@touch $@

$(BIN)/.dev: $(BIN)/.made requirements/dev.txt pyproject.toml
	@echo "installing what mitmsec and its tests need" >&2
	@umask 022 && $(PIP) --require-hashes -r requirements/dev.txt && $(PIP) --no-deps --no-build-isolation -e .
	@umask 022 && $(COMPILE) $(OWN) .venv/lib >/dev/null 2>&1 || true
	@touch $@ $(BIN)/.run

# The tests' byte code, once: otherwise each of pytest's processes compiles all of it, which takes longer than linting.
$(BIN)/.tests: $(BIN)/.dev $(wildcard tests/*.py tests/*/*.py)
	@umask 022 && env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -q -p no:cacheprovider --collect-only >/dev/null 2>&1 || true
	@touch $@

$(BIN)/.fuzz: $(BIN)/.dev requirements/fuzz.txt
	@echo "installing what the fuzzers need" >&2
	@umask 022 && $(PIP) --require-hashes -r requirements/fuzz.txt
	@touch $@
