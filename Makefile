PYTHON = .venv/bin/python

.PHONY: train test test-lowest torture lint tensorboard demo peers lock

train: .venv/ready
	$(PYTHON) scripts/train.py model=separable

# One process a core (up to eight, for their memory), of one thread each: most tests do not fill two threads.
test: .venv/ready
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

# The same at the lowest versions that pyproject.toml admits, in an environment of its own (7 GB), which is made anew.
# make test-lowest PYTHON=python3.13: by another Python
test-lowest: PYTHON = python3
test-lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --quiet --upgrade uv 'setuptools>=77'
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -r pyproject.toml --extra dev --extra search
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --no-deps --no-build-isolation --editable .
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal $(TESTS)

# Trials of what docs/promises.md promises, which they write: about twelve minutes on two cores.
torture: .venv/ready
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/torture --numprocesses 2 --dist worksteal --timeout 1800

lint: .venv/ready
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

tensorboard: .venv/ready
	$(PYTHON) -m tensorboard.main --logdir runs

# A page on which two networks classify what you draw; Gradio is installed for it.
demo: .venv/demo
	$(PYTHON) scripts/demo.py

# Keras, for scripts/benchmark.py suite=peers: an environment of its own, 1.6 GB.
peers: .venv-peers/ready

# Installed from the lock alone, each file checked against its hash; pip compiles it, for quick starts.
.venv/ready: requirements.lock pyproject.toml
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sepconv needs Python 3.11 or newer")'
	python3 -m venv .venv
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --require-hashes -r requirements.lock
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	touch $@

# The lock has all that requirements.lock has not, so that pip need not look for more.
.venv/demo: .venv/ready requirements-demo.lock
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --require-hashes --no-deps -r requirements-demo.lock
	touch $@

.venv-peers/ready: requirements-peers.lock
	python3 -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "TensorFlow needs Python 3.11 to 3.13")'
	python3 -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes -r $<
	touch $@

# After a change of pyproject.toml's dependencies, or of requirements-peers.in; needs uv.
LOCK = uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --upgrade --quiet
lock:
	$(LOCK) pyproject.toml --extra dev --extra search --output-file requirements.lock
	$(LOCK) pyproject.toml --extra demo --constraints requirements.lock \
		$$(sed -n 's/^\([^ =]*\)==.*/--no-emit-package \1/p' requirements.lock) --output-file requirements-demo.lock
	$(LOCK) requirements-peers.in --output-file requirements-peers.lock
