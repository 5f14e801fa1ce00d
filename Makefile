# make tiny-selm             the whole loop on a laptop: SFT, DPO, three SELM iterations, report
# make zephyr-selm-iter3     whatever iteration 3 still needs, in order; safe to interrupt and to repeat
# make -n zephyr-selm-iter3  print the commands instead
# make table-sera1 SEEDS=3   a table of a paper at tiny scale; make tables: all of them
# make help                  every recipe and every other target
#
# A run is a recipe, or <recipe>-seed<K>: the same recipe with another seed. Its folder is $(RUNS)/<run>.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
RUNS   ?= runs
SEEDS  ?= 3
VENV   := .venv
PYTHON := $(VENV)/bin/python
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

ifeq ($(filter grouped-target,$(.FEATURES)),)
$(error this Makefile needs GNU Make 4.3 or newer (macOS: brew install make, then gmake))
endif

# A goal names its run: tiny-selm, tiny-selm-iter2, tiny-selm-report, or a file under runs/tiny-selm/.
RECIPES   := $(foreach f,$(filter-out %/base.yaml recipes/accelerate/% recipes/tables/%,$(wildcard recipes/*/*.yaml)),$(subst /,-,$(patsubst recipes/%.yaml,%,$f)))
numbers   := 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20
stem       = $(firstword $(foreach n,$(numbers),$(patsubst %-iter$n,%,$(filter %-iter$n,$1))) $(patsubst %-report,%,$(filter %-report,$1)) $1)
of_file    = $(firstword $(subst /, ,$(patsubst $(RUNS)/%,%,$(filter $(RUNS)/%,$1))))
seeded     = $(filter-out %-seeds,$(foreach r,$(RECIPES),$(filter $r-seed%,$1)))
known      = $(foreach r,$1,$(if $(strip $(filter $r,$(RECIPES)) $(call seeded,$r)),$r))
seeds_of   = $(patsubst %-seeds,%,$(filter %-seeds,$(MAKECMDGOALS)))
more_seeds = $(shell seq 2 $(SEEDS))
many       = $1 $(foreach k,$(more_seeds),$1-seed$k)

# make table-sera1 SEEDS=3: a table of a paper at tiny scale; make tables: all of them. table.mk names a table's recipes.
ALL_TABLES := $(patsubst recipes/tables/%.yaml,%,$(wildcard recipes/tables/*.yaml))
TABLES     := $(filter $(ALL_TABLES),$(patsubst table-%,%,$(filter table-%,$(MAKECMDGOALS))) $(if $(filter tables,$(MAKECMDGOALS)),$(ALL_TABLES)))
include $(foreach t,$(TABLES),$(RUNS)/table-$t/table.mk)
RUN_NAMES := $(sort $(foreach t,$(TABLES),$(foreach r,$(recipes.$t),$(call many,$r))) $(call known,$(foreach g,$(MAKECMDGOALS),$(call of_file,$g) $(call stem,$g)) $(foreach r,$(seeds_of) $(if $(seeds_of),$(BESIDE)),$(call many,$r))))

# ---------------------------------------------------------------------------------------------------------------------
# The environment, made once
# ---------------------------------------------------------------------------------------------------------------------

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	@command -v python3.11 >/dev/null || python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "error: Python 3.11 or newer is needed" >&2; exit 2; }
	@echo "setting up the environment in $(VENV), once (some minutes)"
	"$$(command -v python3.11 || command -v python3)" -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# ---------------------------------------------------------------------------------------------------------------------
# A run: run.mk holds what its recipe says of iterations and launch; making it also writes the settings of every stage,
# each rewritten only when its content changes. So one changed value runs again exactly the stages below it.
# ---------------------------------------------------------------------------------------------------------------------

# A goal that is nothing of this is told before any stage starts.
PROJECT := help setup test test-slow test-liger lint bench
unknown := $(foreach g,$(filter-out $(PROJECT) tables $(addprefix table-,$(ALL_TABLES)) $(addsuffix -seeds,$(RECIPES)),$(MAKECMDGOALS)),$(if $(findstring /,$g)$(call known,$(call stem,$g)),,$g))
RUN_FILES := $(foreach r,$(RUN_NAMES),$(RUNS)/$r/run.mk)
.PHONY: resolved
resolved: $(VENV)/ready
	@$(PYTHON) scripts/resolve_recipe.py $(RUN_NAMES) $(unknown) --runs $(RUNS)
# Each by itself, and with a command: make starts again for a new file only where it looks at that file's time.
$(RUN_FILES): resolved
	@:
include $(RUN_FILES)

# One thread per process: small models gain nothing from more, and the bits are the same on every machine.
THREADS ?= 1
warm     = OMP_NUM_THREADS=$(THREADS) $(PYTHON) -m handbook_ext.core.warm_start
launcher = $(if $(filter cpu,$(launch.$1)),$(warm),$(VENV)/bin/accelerate launch --config_file recipes/accelerate/$(launch.$1).yaml)
# Stages without a model.
single   = $(if $(filter cpu,$(launch.$1)),$(warm),$$(PYTHON))

# $1 run. The policy that starts the loop: the SFT stage's, or the recipe's checkpoint.
define start_rules
$(RUNS)/$1/data/rows/manifest.json: $(RUNS)/$1/data/data.yaml $(wildcard $(files.$1))
	$(call single,$1) scripts/prepare_data.py $(RUNS)/$1
$(RUNS)/$1/sft/policy/manifest.json: $(RUNS)/$1/sft/sft.yaml $(RUNS)/$1/data/rows/manifest.json $(checkpoint.$1)
	$(call launcher,$1) scripts/train_sft.py $(RUNS)/$1
$(RUNS)/$1/ranker/model/manifest.json: $(RUNS)/$1/ranker/ranker.yaml $(RUNS)/$1/data/rows/manifest.json $(call policy,$1,$(filter sft,$(start.$1)))
	$(call launcher,$1) scripts/train_ranker.py $(RUNS)/$1
endef

# A stage's policy, or the recipe's checkpoint: its files, where it is a folder here.
policy = $(if $2,$(RUNS)/$1/$2/policy/manifest.json,$(checkpoint.$1))
# The policy that an iteration starts from; where the recipe sets limits, the iteration before must be in good health.
from   = $(call policy,$1,$2) $(if $(filter $2,$(watched.$1)),$(RUNS)/$1/$2/health.json)
ranker = $(if $(fitted.$1),$(RUNS)/$1/ranker/model/manifest.json) $(judge.$1)
both   = $1.$2 $1.manifest.json

# $1 run, $2 iteration, $3 what it starts from (empty: the recipe's checkpoint). What a recipe does not need has no rule.
define sampled_rules
$(RUNS)/$1/$2/completions.jsonl $(RUNS)/$1/$2/completions.manifest.json &: $(RUNS)/$1/$2/generate.yaml $(RUNS)/$1/data/rows/manifest.json $(call from,$1,$3)
	$(call launcher,$1) scripts/generate_completions.py $(RUNS)/$1/$2
endef
define judged_rules
$(RUNS)/$1/$2/rankings.jsonl $(RUNS)/$1/$2/rankings.manifest.json &: $(RUNS)/$1/$2/rank.yaml $(call both,$(RUNS)/$1/$2/completions,jsonl) $(RUNS)/$1/data/rows/manifest.json $(call ranker,$1)
	$(call launcher,$1) scripts/rank_completions.py $(RUNS)/$1/$2
endef
define reviewed_rules
$(RUNS)/$1/$2/logprobs/manifest.json: $(RUNS)/$1/$2/score.yaml $(RUNS)/$1/data/rows/manifest.json $(call sampled_of,$1,$2) $(call from,$1,$3) $(call stores,$1,$2)
	$(call launcher,$1) scripts/score_candidates.py $(RUNS)/$1/$2
endef
define scored_rules
$(RUNS)/$1/$2/logprobs/manifest.json: $(RUNS)/$1/$2/score.yaml $(call both,$(RUNS)/$1/$2/pairs,jsonl) $(call from,$1,$3)
	$(call launcher,$1) scripts/score_completions.py $(RUNS)/$1/$2
endef
store      = $(RUNS)/$1/$2/logprobs/manifest.json
stores     = $(foreach i,$(filter $(scored.$1),$(call until,$2,$(iterations.$1))),$(call store,$1,$i))
sampled_of = $(if $(filter $2,$(sampled.$1)),$(call both,$(RUNS)/$1/$2/completions,jsonl))
# What the pairs are made from: judged samples, or samples, or log-probs, or the data alone.
made_from  = $(if $(filter $2,$(judged.$1)),$(call both,$(RUNS)/$1/$2/rankings,jsonl),$(sampled_of)) $(if $(filter $2,$(reviewed.$1)),$(call store,$1,$2))
define iteration_rules
$(RUNS)/$1/$2/pairs.jsonl $(RUNS)/$1/$2/pairs.manifest.json &: $(RUNS)/$1/$2/select.yaml $(RUNS)/$1/data/rows/manifest.json $(call made_from,$1,$2)
	$(call single,$1) scripts/select_pairs.py $(RUNS)/$1/$2
$(RUNS)/$1/$2/policy/manifest.json: $(RUNS)/$1/$2/train.yaml $(call both,$(RUNS)/$1/$2/pairs,jsonl) $(if $(filter $2,$(scored.$1)),$(call store,$1,$2)) $(call from,$1,$3)
	$(call launcher,$1) scripts/train_policy.py $(RUNS)/$1/$2
.PHONY: $1-$2
$1-$2: $(RUNS)/$1/$2/policy/manifest.json
endef

# $1 run, $2 the start or an iteration, $3 the stage whose policy is evaluated (empty: the recipe's checkpoint).
define evaluation_rules
$(RUNS)/$1/$2/eval.json $(RUNS)/$1/$2/eval.manifest.json &: $(RUNS)/$1/$2/evaluate.yaml $(RUNS)/$1/data/rows/manifest.json $(call policy,$1,$3) $(call ranker,$1)
	$(call launcher,$1) scripts/evaluate_policy.py $(RUNS)/$1/$2
endef

# $1 run, $2 iteration with limits.
define watched_rules
$(RUNS)/$1/$2/health.json $(RUNS)/$1/$2/health.manifest.json &: $(RUNS)/$1/$2/health.yaml $(call both,$(RUNS)/$1/$2/pairs,jsonl) $(RUNS)/$1/$2/policy/manifest.json $(if $(kl.$1),$(call both,$(RUNS)/$1/$2/eval,json))
	$$(PYTHON) scripts/check_health.py $(RUNS)/$1/$2
endef

# $1 run. Its report, and what `make <run>` prints.
define report_rules
$(RUNS)/$1/report/manifest.json: $(RUNS)/$1/report.yaml $(foreach i,$(start.$1) $(iterations.$1),$(call both,$(RUNS)/$1/$i/eval,json)) $(foreach i,$(iterations.$1),$(RUNS)/$1/$i/policy/manifest.json)
	$$(PYTHON) scripts/write_report.py $(RUNS)/$1
.PHONY: $1 $1-report
$1 $1-report: $(RUNS)/$1/report/manifest.json
$1-iter%:
	+@$$(PYTHON) scripts/resolve_recipe.py $1 --show iter$$*
endef

before = $(lastword $(filter sft,$(start.$1)) $(call until,$2,$(iterations.$1)))
until  = $(if $(filter-out $1,$(firstword $2)),$(firstword $2) $(call until,$1,$(wordlist 2,$(words $2),$2)))
define run_rules
$(eval $(call start_rules,$1))
$(foreach kind,sampled judged reviewed watched,$(foreach i,$($(kind).$1),$(eval $(call $(kind)_rules,$1,$i,$(call before,$1,$i)))))
$(foreach i,$(filter-out $(reviewed.$1),$(scored.$1)),$(eval $(call scored_rules,$1,$i,$(call before,$1,$i))))
$(foreach i,$(iterations.$1),$(eval $(call iteration_rules,$1,$i,$(call before,$1,$i))))
$(foreach i,$(iterations.$1),$(eval $(call evaluation_rules,$1,$i,$i)))
$(eval $(call evaluation_rules,$1,$(start.$1),$(filter sft,$(start.$1))))
$(eval $(call report_rules,$1))
endef
$(foreach r,$(RUN_NAMES),$(if $(iterations.$r),$(call run_rules,$r)))

# make tiny-selm-seeds SEEDS=3: the recipe's own seed and SEEDS-1 others, one report with intervals over seeds and prompts.
# BESIDE=tiny-dpo puts another recipe's finished seeds into the same tables. Runs under $(RUNS) share what they have in
# common, such as the SFT policy, wherever settings and inputs are equal by content.
BESIDE ?=
$(foreach b,$(BESIDE),$(if $(filter $b,$(RECIPES)),,$(error BESIDE: no recipe is called '$b'; make help lists them)))
$(if $(filter-out $(shell seq 1 99),$(SEEDS)),$(error SEEDS: '$(SEEDS)' is not a number from 1 to 99))
beside := $(foreach b,$(BESIDE),$(call many,$b))
define seeds_rules
.PHONY: $1-seeds
$1-seeds: export HANDBOOK_SHARE := 1
$1-seeds: $(foreach r,$(call many,$1) $(beside),$(RUNS)/$r/report/manifest.json)
	$$(PYTHON) scripts/write_report.py $(addprefix $(RUNS)/,$(call many,$1)) $(if $(beside),--beside $(addprefix $(RUNS)/,$(beside))) --out $(RUNS)/$1-seeds/report
endef
$(foreach r,$(seeds_of),$(eval $(call seeds_rules,$r)))

$(RUNS)/table-%/table.mk: recipes/tables/%.yaml scripts/write_table.py $(VENV)/ready
	@mkdir -p $(@D)
	@$(PYTHON) scripts/write_table.py $* --list > $@.partial
	@mv $@.partial $@
# $1 <recipe>/<policy>, $2 a run of that recipe: the folder of the policy, of which `start` and `last` depend on the recipe.
shown = $(or $(if $(filter %/start,$1),$(start.$2)),$(if $(filter %/last,$1),$(lastword $(iterations.$2))),$(lastword $(subst /, ,$1)))
evaluated = $(foreach s,$(call many,$(firstword $(subst /, ,$1))),$(call both,$(RUNS)/$s/$(call shown,$1,$s)/eval,json))
define table_rules
.PHONY: table-$1
table-$1: export HANDBOOK_SHARE := 1
table-$1: $(foreach p,$(policies.$1),$(call evaluated,$p))
	$$(PYTHON) scripts/write_table.py $1 --seeds 1 $(more_seeds) --runs $(RUNS)
endef
$(foreach t,$(TABLES),$(eval $(call table_rules,$t)))
.PHONY: tables
tables: $(addprefix table-,$(ALL_TABLES))

# ---------------------------------------------------------------------------------------------------------------------
# The project itself
# ---------------------------------------------------------------------------------------------------------------------

.PHONY: $(PROJECT)
help:
	@sed -n 's/^# \(make .*\)/\1/p' $(firstword $(MAKEFILE_LIST)) | head -n 5
	@echo "make $(PROJECT)"
	@echo "tables: $(ALL_TABLES)"
	@echo "recipes: $(RECIPES)"
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
	PYTHONPATH=$(VENV)/liger $(PYTHON) -m pytest tests/test_liger.py
lint: $(VENV)/ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
bench: $(VENV)/ready
	$(PYTHON) scripts/bench_training.py --out $(RUNS)/bench

.DEFAULT:
	+@if test -x $(PYTHON); then $(PYTHON) scripts/resolve_recipe.py $@ > /dev/null; \
	else echo "error: there is no target '$@'; make help lists the recipes, the tables and every other target" >&2; fi; exit 2

# A failed stage leaves no target behind. Stages that share GPUs run one at a time; on a CPU the evaluation of an iteration
# runs beside the sampling of the next.
.DELETE_ON_ERROR:
JOBS ?= 2
ifeq ($(filter-out cpu,$(foreach r,$(RUN_NAMES),$(launch.$r))),)
MAKEFLAGS += -j$(JOBS)
else
.NOTPARALLEL:
endif
