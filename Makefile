.PHONY: build test lint bench

build:
	VLCAL_NATIVE=1 python -m pip install -e .

test:
	python -m pytest

lint:
	ruff format --check .
	ruff check .
	pyright

bench:
	python -m pytest benchmarks/
