PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test docs bench check reliability clean

demo: .venv/installed            ## train the default config, generate from it, make the page to play with it
	$(BIN)/gptmini train configs/python_docs.yaml --resume
	$(BIN)/gptmini generate runs/python_docs --prompt "The " --temperature 0.7 --seed 2
	$(BIN)/gptmini export runs/python_docs --format html --output runs/python_docs.html
	@echo "Play with it and look inside: $(BIN)/python -m webbrowser file://$(CURDIR)/runs/python_docs.html"

test: .venv/installed-dev        ## run the tests, a file at a time in each of two processes
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

docs: .venv/installed-docs        ## build the documentation site, build/site/index.html
	$(BIN)/mkdocs build --quiet --strict

reliability: .venv/installed-dev  ## run the long reliability proofs
	$(BIN)/python -m pytest tests/reliability tests/test_config.py tests/test_cli.py tests/test_tokenizers.py --long -s

bench: .venv/installed-dev       ## measure training and generation (half an hour; docs/results.md)
	$(BIN)/python scripts/bench.py train
	$(BIN)/python scripts/bench.py generate

check: .venv/installed-dev       ## style, spelling, types, import contracts, GitHub files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:                           ## remove what make built (never your runs)
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
