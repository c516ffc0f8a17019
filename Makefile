# make demo   install and compile a trained digit recogniser for an iPhone, proven
# make test   install with the test extras and run all tests
# make lint   ruff, mypy --strict, import-linter

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	cd examples/digits && ../../$(BIN)/edgec digits.onnx -O2 --target ios --shape N:1 \
		--inputs digits.npz --report digits.html --report digits.json

# Some tests read pages in a real browser: the system's, installed by its package manager where there is none.
test: $(VENV)/.test
	$(BIN)/python tests/chromium.py
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	mkdir -p build/types && ln -sfn ../.. build/types/edgec
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml $(addprefix -p edgec.,compiler passes formats frontends backends)
	$(BIN)/lint-imports

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
