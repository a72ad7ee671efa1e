# make demo and make test do all set-up: PYTHON creates the environment in VENV.
# To use an existing environment: make test VENV=/path/to/venv SETUP=no
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

.PHONY: help docs install demo demo-caption demo-dense demo-video test test-slow test-stacks lint format bench chaos fuzz mutants clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

install: $(READY)  ## make the environment

demo: $(READY)  ## train LookupViT and a ViT on rendered shapes, test both, print one table (4 minutes on 2 cores)
	$(BIN)/lookupvit compare configs/demo.yaml configs/demo_vit.yaml --title demo

demo-caption: $(READY)  ## caption drawn scenes with LookupViT and a ViT: one table, and a picture with captions marked true or false
	$(BIN)/lookupvit compare configs/demo_caption_pairs.yaml configs/demo_caption_pairs_vit.yaml --title demo_caption

demo-dense: $(READY)  ## segment and detect in rendered scenes, LookupViT beside ViT: one table and pictures in outputs/
	$(BIN)/lookupvit compare $(addprefix configs/demo_,$(addsuffix .yaml,segment segment_vit detect detect_vit)) --title demo_dense --jobs 2

demo-video: $(READY)  ## tell ten motions apart with LookupViViT and ViViT: one table, and a picture of clips with predictions
	$(BIN)/lookupvit compare configs/demo_video.yaml configs/demo_video_vivit.yaml --title demo_video

lint: $(READY)  ## check with ruff, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY) lint  ## run ruff and the tests (under 10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2

test-slow: $(READY)  ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-stacks:  ## run the tests on every supported torch, each in its own environment (hours; STACKS='--only oldest --core' runs some)
	$(PYTHON) tools/stacks.py $(STACKS)

docs: $(READY)  ## build the documentation as a site in site/, strict about links (seconds); open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(READY)  ## measure speed and memory against timm's ViT and ToMe; tables in outputs/bench/
	$(BIN)/lookupvit bench all

chaos: $(READY)  ## kill and resume training KILLS times, with 0 and 2 workers, on 1 and 2 processes (an hour or more)
	$(BIN)/python benchmarks/chaos.py --kills $(KILLS)

fuzz: $(READY)  ## try mutated configurations, mistakes, damaged and hostile files: nothing hangs, fails silently or is executed (11 minutes of one core)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --configs 300 --mistakes 300 --files 200
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/hostile.py

mutants: $(READY)  ## make small changes to the code, each of which a test must notice; goes on where it stopped (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py --sample 300

clean:  ## remove build files, caches and outputs/, but no data
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache site outputs
