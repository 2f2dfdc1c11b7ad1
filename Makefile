PYTHON = .venv/bin/python

.PHONY: train test lint tensorboard lock

train: .venv/ready
	$(PYTHON) scripts/train.py model=separable

test: .venv/ready
	$(PYTHON) -m pytest

lint: .venv/ready
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

tensorboard: .venv/ready
	$(PYTHON) -m tensorboard.main --logdir runs

# Installed from the lock alone, each file checked against its hash; pip compiles it, for quick starts.
.venv/ready: requirements.lock pyproject.toml
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sepconv needs Python 3.11 or newer")'
	python3 -m venv .venv
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --require-hashes -r requirements.lock
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	touch $@

# After a change of pyproject.toml's dependencies; needs uv.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --upgrade --quiet --output-file requirements.lock
