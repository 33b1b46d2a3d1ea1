# `make demo` is the tutorial, `make test` runs the tests; both install what they need first. `make help` lists the rest.
# Everything made is below .venv/ and build/, apart from the compiled core beside its sources in layerstore/_core/.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := build/stamps

C_CORE  := setup.py $(wildcard csrc/*/*.[ch])
CORE    := $(C_CORE) pyproject.toml $(wildcard layerstore/_core/*.pyx layerstore/_core/*.pxd)
MODULES := $(wildcard layerstore/*.py layerstore/*/*.py)
HEADERS := $(wildcard csrc/*/*.h)
UNITS   := $(patsubst csrc/%.c,%,$(wildcard csrc/*/*.c))
# The kernels for one instruction set are not for other processors.
PORTABLE := $(filter-out %_avx2 %_avx512,$(UNITS))
# What clang-format writes differs between its versions: .clang-format is for this one.
CLANG_FORMAT := clang-format-14
C_FILES := $(wildcard csrc/*/*.[ch] $(patsubst %,tests/%/*.[ch],fuzz tsan campaigns security))
FUZZERS := $(patsubst tests/fuzz/%.c,%,$(wildcard tests/fuzz/*.c))
PYTHON_FUZZERS := $(wildcard tests/fuzz/fuzz_*.py)
PACKAGES := $(addprefix packages-,demo test peers bench lint fuzz)

# Tests of the compiled core itself: what `make sanitize` runs. Those of the benchmarks load matplotlib, whose C++ aborts where
# the sanitizers' run-time library is preloaded; those of commands, locks and starts are of Python.
NO_CORE_TESTS := tests/test_bench_% $(addprefix tests/test_,cli.py locks.py startup.py)
CORE_TESTS = $(filter-out $(NO_CORE_TESTS),$(shell grep -lE 'layerstore\._core' tests/test_*.py))
# Tests in which threads share what the core has: what `make tsan` runs besides a program in C.
THREAD_TESTS := -k 'thread or at_once' $(addprefix tests/test_,extents.py extent_files.py load.py resolve.py stacks.py views.py)
# Tests of random stacks, as many as LAYERSTORE_EXAMPLES says.
CAMPAIGN_TESTS = $(shell grep -lE 'max_examples=EXAMPLES|[*] EXAMPLES' tests/test_*.py)
# A worker of pytest for each core; who has done its share takes from that of another. After it, `-n 0` says otherwise.
AT_ONCE := -n auto --dist worksteal
EXAMPLES ?= 5000
FUZZ_SECONDS ?= 12
LONG_FUZZERS ?= fuzz_tar fuzz_index
EXECUTIONS ?= 100000000
CAMPAIGN_ARGS ?=
PYTEST_ARGS ?=
DEMO_ARGS ?=
BITROT_ARGS ?=
MANY_ARGS ?=
HANDS_ARGS ?=
CALLERS_ARGS ?=
CRASH_ARGS ?=
BENCH_ARGS ?=
REV ?=
PERF_ARGS ?=
FAULTS_ARGS ?=

C_FLAGS := -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -Icsrc
TSAN_FLAGS := -std=gnu11 -D_GNU_SOURCE -g -O1 -Icsrc -pthread -fsanitize=thread
FUZZ_FLAGS := -std=gnu11 -D_GNU_SOURCE -g -O2 -Icsrc -fsanitize=address,undefined -fno-sanitize-recover=undefined
# The kernels of BLAKE3 take most of a fuzzer's time when they are instrumented: arithmetic, which `make sanitize` tests.
FUZZ_PLAIN := $(addprefix hash/blake3_,portable avx2 avx512)
# These lead a fuzzer nowhere: no branch of theirs depends on what they hash.
FUZZ_HASHES := $(addprefix hash/,blake3 siphash xxhash32 sha256) erofs/erofs_super
FUZZ_INSTRUMENT = -fsanitize=fuzzer-no-link $(FUZZ_COVERAGE)
# Where the fuzzers are built, and what their coverage leaves out: comparisons, for `make fuzzed`, which cost half its time.
FUZZ_DIR ?= build/fuzz
FUZZ_COVERAGE ?=

.PHONY: help demo test peers campaign crash powerloss many hands callers bitrot faults hostile security lint format sanitize fuzz bench perf clean tsan fuzzed $(PACKAGES)
.DELETE_ON_ERROR:

help:
	@echo 'make demo      the tutorial: build, rebuild and push an image, start 1,000 containers (DEMO_ARGS=--help)'
	@echo 'make test      the tests, on all cores (PYTEST_ARGS="-k name"; with -n 0 one after another)'
	@echo 'make peers     what docker, podman, containerd, skopeo, umoci and buildah make of our images, and we of theirs; clients of users'
	@echo 'make campaign  random stacks of layers against models and the kernel, EXAMPLES ($(EXAMPLES)) for each test'
	@echo 'make many      many processes and threads on one store, with everything beside them (MANY_ARGS=--help)'
	@echo 'make hands     many hands on one container, with every verb and random kills (HANDS_ARGS=--help)'
	@echo 'make callers   10,000 starts, with commands and stops, and SIGKILL of who calls them (CALLERS_ARGS=--help)'
	@echo 'make bitrot    flips bits in the files of a store, checks, repairs and loads it again (BITROT_ARGS=--help)'
	@echo 'make crash     kills operations at each of their system calls, and checks what is left (CRASH_ARGS=--help)'
	@echo 'make faults    has system calls and allocations of operations fail, and checks what is left (FAULTS_ARGS=--help)'
	@echo 'make hostile   input that lies, and what else goes ill; counts the cases in docs/reliability.md'
	@echo 'make security  tries in our, docker'"'"'s and podman'"'"'s containers what none should allow; writes docs/security.md'
	@echo 'make powerloss takes the power away at any moment, on ext4 and XFS (POWERLOSS_ARGS=--help)'
	@echo 'make lint      ruff, mypy, clang-format, and the C core without warnings, for another processor too'
	@echo 'make sanitize  the tests of the core under AddressSanitizer and UndefinedBehaviorSanitizer'
	@echo 'make tsan      the core in threads, and tests of what uses it so, under ThreadSanitizer'
	@echo 'make fuzz      each fuzzer, of the C core and of what is Python, for FUZZ_SECONDS ($(FUZZ_SECONDS))'
	@echo 'make fuzzed    LONG_FUZZERS ($(LONG_FUZZERS)) until each was executed EXECUTIONS ($(EXECUTIONS)) times'
	@echo 'make bench     against docker, podman and containerd; writes docs/benchmarks.md'
	@echo 'make perf      the core by its kernels; with REV=<git revision> against that one, and fails when slower (PERF_ARGS=--help)'
	@echo 'make clean     remove what was built'

demo: packages-demo $(STAMPS)/core
	@$(BIN)/python -m bench.demo $(DEMO_ARGS)

test: packages-test $(STAMPS)/core
	$(BIN)/python -m pytest $(AT_ONCE) $(PYTEST_ARGS)

peers: packages-test packages-peers $(STAMPS)/core $(STAMPS)/extra-peers
	$(BIN)/python -m pytest -m peers $(PYTEST_ARGS)

campaign: packages-test $(STAMPS)/core
	LAYERSTORE_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -o timeout=0 --hypothesis-show-statistics $(CAMPAIGN_TESTS)

many: packages-test $(STAMPS)/core
	PYTHONPATH=tests $(BIN)/python -m campaigns.many $(MANY_ARGS)

hands: packages-test $(STAMPS)/core
	PYTHONPATH=tests $(BIN)/python -m campaigns.hands $(HANDS_ARGS)

callers: packages-test $(STAMPS)/core
	PYTHONPATH=tests $(BIN)/python -m campaigns.callers $(CALLERS_ARGS)

bitrot: packages-test $(STAMPS)/core
	PYTHONPATH=tests $(BIN)/python -m campaigns.bitrot $(BITROT_ARGS)

crash: packages-test $(STAMPS)/core
	PYTHONPATH=tests $(BIN)/python -m campaigns.crash $(CRASH_ARGS)

faults: packages-test $(STAMPS)/core
	PYTHONPATH=tests $(BIN)/python -m campaigns.faults $(FAULTS_ARGS)

hostile: packages-test $(STAMPS)/core
	$(BIN)/python -m pytest tests/hostile tests -m 'hostile and not peers' --record $(PYTEST_ARGS)

security: packages-test packages-peers $(STAMPS)/core
	PYTHONPATH=tests $(BIN)/python -m security.record

powerloss: packages-test $(STAMPS)/core
	PYTHONPATH=tests $(BIN)/python -m campaigns.powerloss $(POWERLOSS_ARGS)

bench: packages-bench $(STAMPS)/core
	$(BIN)/python -m bench.run $(BENCH_ARGS)

perf: packages-test $(STAMPS)/core
	$(BIN)/python -m bench.revisions $(if $(REV),--revision '$(REV)') $(PERF_ARGS)

lint: packages-test packages-lint $(STAMPS)/werror $(PORTABLE:%=build/aarch64/%.o)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict layerstore
	@if command -v $(CLANG_FORMAT) >/dev/null; then $(CLANG_FORMAT) --dry-run -Werror $(C_FILES); \
		else echo 'lint: no $(CLANG_FORMAT) here: the layout of the C core is not checked'; fi

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CLANG_FORMAT) -i $(C_FILES)

sanitize: packages-test $(STAMPS)/sanitize
	ci/sanitized address $(BIN)/python -m pytest -p no:cacheprovider -m 'not peers and not memory' $(AT_ONCE) $(PYTEST_ARGS) $(CORE_TESTS)

fuzz: $(FUZZERS:%=$(FUZZ_DIR)/%) $(STAMPS)/core $(STAMPS)/extra-fuzz
	@failed=; for fuzzer in $(FUZZERS:%=$(FUZZ_DIR)/%) $(PYTHON_FUZZERS); do \
		PATH="$(CURDIR)/$(BIN):$$PATH" ci/fuzz-one $$fuzzer $(FUZZ_SECONDS) || failed=yes; done; [ -z "$$failed" ]

tsan: build/tsan/threads $(STAMPS)/tsan
	TSAN_OPTIONS=halt_on_error=1 build/tsan/threads
	ci/sanitized thread $(BIN)/python -m pytest -p no:cacheprovider $(PYTEST_ARGS) $(THREAD_TESTS)

# Over many sessions: the counts and corpora in build/ are kept.
fuzzed: packages-test $(STAMPS)/core
	@$(MAKE) --no-print-directory FUZZ_DIR=build/fuzz-long FUZZ_COVERAGE=-fno-sanitize-coverage=trace-cmp \
		$(LONG_FUZZERS:%=build/fuzz-long/%)
	@PYTHONPATH=tests $(BIN)/python -m campaigns.fuzzing --executions $(EXECUTIONS) $(CAMPAIGN_ARGS) $(LONG_FUZZERS)

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis layerstore/_core/*.so *.egg-info

# What the targets above are made of.

# A static pattern: make looks for no implicit rule for a phony target.
$(PACKAGES): packages-%:
	@ci/install-packages $*

$(VENV)/installed: pyproject.toml ci/setup | packages-demo
	@mkdir -p $(STAMPS)
	@touch $(STAMPS)/core.begun
	@ci/setup $(VENV) $(PYTHON)
	@mv $(STAMPS)/core.begun $(STAMPS)/core
	@touch $@

# `ci/setup` has built the core already, unless a source changed since it began.
$(STAMPS)/core: $(CORE) $(VENV)/installed
	@if [ -z "$$(find $@ 2>/dev/null)" ] || [ -n "$$(find $(CORE) -newer $@)" ]; then \
		echo 'building the core'; touch $@.begun && $(BIN)/python setup.py -q build_clib build_ext --inplace && mv $@.begun $@; \
		else touch $@; fi

$(STAMPS)/werror: $(C_CORE) $(VENV)/installed
	LAYERSTORE_WERROR=1 $(BIN)/python setup.py -q build_clib --build-temp build/werror --build-clib build/werror
	@touch $@

$(STAMPS)/extra-fuzz $(STAMPS)/extra-peers: $(STAMPS)/extra-%: pyproject.toml $(VENV)/installed
	@ci/install-extra $(BIN)/python $*
	@touch $@

# Beside the tree and not in it, so that no other target meets an instrumented core.
$(STAMPS)/sanitize: $(CORE) $(MODULES) $(VENV)/installed
	LAYERSTORE_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/sanitized --build-lib build/sanitized/lib
	@touch $@

$(STAMPS)/tsan: $(CORE) $(MODULES) $(VENV)/installed
	LAYERSTORE_SANITIZE=thread $(BIN)/python setup.py -q build --build-base build/tsan --build-lib build/tsan/lib
	@touch $@

build/tsan/objects/%.o: csrc/%.c $(HEADERS) | packages-test
	@mkdir -p $(@D)
	@gcc $(TSAN_FLAGS) -c -o $@ $<

build/tsan/threads: tests/tsan/threads.c $(UNITS:%=build/tsan/objects/%.o)
	@gcc $(TSAN_FLAGS) -o $@ $^

build/aarch64/%.o: csrc/%.c $(HEADERS) | packages-test
	@mkdir -p $(@D)
	@aarch64-linux-gnu-gcc $(C_FLAGS) -c -o $@ $<

$(FUZZ_PLAIN:%=$(FUZZ_DIR)/objects/%.o): $(FUZZ_DIR)/objects/%.o: csrc/%.c $(HEADERS) | packages-fuzz
	@mkdir -p $(@D)
	@clang $(filter-out -fsanitize% -fno-sanitize%,$(FUZZ_FLAGS)) -c -o $@ $<

$(FUZZ_DIR)/objects/%.o: csrc/%.c $(HEADERS) | packages-fuzz
	@mkdir -p $(@D)
	@clang $(FUZZ_FLAGS) $(FUZZ_INSTRUMENT) -c -o $@ $<

$(FUZZ_HASHES:%=$(FUZZ_DIR)/objects/%.o): FUZZ_INSTRUMENT :=

$(FUZZ_DIR)/core.a: $(UNITS:%=$(FUZZ_DIR)/objects/%.o)
	@rm -f $@
	@ar rc $@ $^

$(FUZZ_DIR)/%: tests/fuzz/%.c $(FUZZ_DIR)/core.a $(wildcard tests/fuzz/*.h)
	@clang $(FUZZ_FLAGS) -fsanitize=fuzzer $(FUZZ_COVERAGE) -o $@ $(filter-out %.h,$^)
