# make demo, make test: all set-up included. PYTHON makes the environment; VENV is where it goes.
# An existing environment: make test VENV=/path/to/venv SETUP=no
PYTHON ?= python3
VENV ?= .venv
SETUP ?= yes
KILLS ?= 20
STACKS ?=
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed

ifeq ($(SETUP),yes)
READY = $(STAMP)
else
READY =
endif

.PHONY: help install demo demo-caption demo-video test test-slow test-stacks lint format bench chaos fuzz mutants clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(READY)  ## make the environment

demo: $(READY)  ## train LookupViT and a ViT on rendered shapes, test both, print one table (4 minutes on 2 cores)
	$(BIN)/lookupvit compare configs/demo.yaml configs/demo_vit.yaml --title demo

demo-caption: $(READY)  ## caption rendered scenes with LookupViT and a ViT; the part of true captions (an hour or more)
	$(BIN)/lookupvit fit --config configs/demo_caption.yaml
	$(BIN)/lookupvit fit --config configs/demo_caption_vit.yaml
	$(BIN)/lookupvit test --config configs/demo_caption.yaml --ckpt_path best
	$(BIN)/lookupvit test --config configs/demo_caption_vit.yaml --ckpt_path best

demo-video: $(READY)  ## ten motions: LookupViViT and ViViT, joint and factorised, and a single frame (not timed)
	$(BIN)/lookupvit compare $(addprefix configs/demo_video_,$(addsuffix .yaml,joint factorised vivit_joint vivit_factorised single_frame)) --title demo_video

lint: $(READY)  ## ruff, check only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## ruff, mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY) lint  ## lint and the tests (under 10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-stacks:  ## the tests on every supported torch, an environment each (hours; STACKS='--only oldest --core': some)
	$(PYTHON) tools/stacks.py $(STACKS)

bench: $(READY)  ## speed and memory against timm's ViT and ToMe; tables in outputs/bench/
	$(BIN)/lookupvit bench all

chaos: $(READY)  ## kill and resume training KILLS times, with 0 and 2 workers, on 1 and 2 processes (an hour or more)
	$(BIN)/python benchmarks/chaos.py --kills $(KILLS)

fuzz: $(READY)  ## 300 mutated configurations, 300 mistakes, 200 damaged and 148 hostile files: nothing hangs, fails silently or runs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --configs 300 --mistakes 300 --files 200
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hostile.py

mutants: $(READY)  ## small changes to the code, each of which a test must notice; goes on where it stopped (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py --sample 300

clean:  ## remove what was built, not the data
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache outputs
