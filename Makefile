# Everything runs in a virtual environment, .venv. On a bare Debian 12 what is missing is installed
# first, and each installation is said; a second run installs nothing.

# Debian builds its Python with profile-guided and link-time optimisation, which a Python built by
# hand or by pyenv usually lacks; so Debian's is taken where it is 3.11 or later.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo /usr/bin/python3 || echo python3)

PIP := .venv/bin/python -m pip --quiet --disable-pip-version-check install

# $(call debian,PACKAGE): install a package of Debian, or say who has to.
debian = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing the Debian package $(1)" && apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(1); \
	else \
		echo "$(1) is missing: install it as root (apt-get install $(1))" >&2; false; \
	fi

.DELETE_ON_ERROR:
.PHONY: demo test lint bench faults fuzz clean servers

demo: .venv/package
	.venv/bin/cdrd demo

test: .venv/development servers
	.venv/bin/python -m pytest -n $$((2 * $$(nproc)))  # at any time half of them wait

lint: .venv/development
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/development servers build/peers/node-red
	.venv/bin/python -m tests.bench

faults: .venv/development servers
	.venv/bin/python -m tests.faults

fuzz: .venv/development
	@$(PIP) --editable '.[fuzz]'
	.venv/bin/python -m tests.fuzz

clean:
	rm -rf .venv .fuzz .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/made:
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(call debian,python3-venv); }
	@echo "making the virtual environment .venv with $(PYTHON)"
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/package: .venv/made pyproject.toml
	@echo "installing cdrd into .venv"
	@$(PIP) --editable .
	@touch $@

.venv/development: .venv/made pyproject.toml
	@echo "installing cdrd and what its tests and checks need into .venv"
	@$(PIP) --editable '.[dev]'
	@touch .venv/package $@

# $(call server,COMMAND,PACKAGE): what the tests start, and the Debian package that brings it.
server = @command -v $(1) >/dev/null || { $(call debian,$(2)); }

servers: build/peers/syslog-ng build/peers/rsyslog
	$(call server,curl,curl)
	$(call server,systemd-analyze,systemd)
	$(call server,systemd-sysusers,systemd)
	$(call server,ip,iproute2)
	$(call server,mariadbd,mariadb-server-core)
	$(call server,my_print_defaults,mariadb-client-core)
	$(call server,soffice,libreoffice-calc-nogui)
	$(call server,sqlite3,sqlite3)
	$(call server,strace,strace)
	$(call server,gcc,gcc libc6-dev)
	@test -e /usr/include/sqlite3.h || { $(call debian,libsqlite3-dev); }
	@ls /usr/lib/*/dbd/libdbdsqlite3.so >/dev/null 2>&1 || { $(call debian,libdbd-sqlite3); }

# What the bench compares with. Debian's syslog-ng and rsyslog exclude each other and would run as
# services, so they are unpacked, not installed; what cannot be had is left out of the comparison.
build/peers/syslog-ng: unpacked = syslog-ng-core syslog-ng-mod-sql
build/peers/rsyslog: unpacked = rsyslog
build/peers/syslog-ng build/peers/rsyslog:
	@echo "unpacking Debian's $(unpacked) into $@"
	@mkdir -p $@/packages/partial
	@{ apt-get -qq update && apt-get -qq install -y --no-install-recommends --download-only \
		--reinstall -o Dir::Cache::archives="$(CURDIR)/$@/packages" $(unpacked) && \
		for package in $@/packages/*.deb; do dpkg-deb -x $$package $@ || exit 1; done; } || \
		{ echo "$(unpacked) cannot be had" >&2; rm -rf $@; }

build/peers/node-red:
	@echo "installing Node-RED with its SQLite node into $@"
	@mkdir -p $@
	@cd $@ && npm install --silent --no-audit --no-fund --prefix . node-red node-red-node-sqlite || \
		{ echo "Node-RED cannot be had" >&2; rm -rf $(CURDIR)/$@; }
