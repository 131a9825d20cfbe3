# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install into .venv first.
PYTHON ?= python3
VENV ?= .venv
DATA ?= tickets

.PHONY: install demo test check clean

install: $(VENV)/.installed

# lorax-client declares huggingface-hub<1 and certifi==2024.7.4 but imports neither; beside transformers 5 those pins
# cannot be met, so it goes in without its declared dependencies (requests, aiohttp and pydantic come by our extras).
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (two to four minutes the first time) …"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[all,demo,dev]'
	$(VENV)/bin/python -m pip install --quiet --no-deps lorax-client==0.6.3
	@touch $@

demo: install
	@$(VENV)/bin/python -m examples.walkthrough --data $(DATA) $(if $(JIGSAW),--jigsaw $(JIGSAW))

test: install
	@scripts/test

check: install
	@scripts/check

clean:
	rm -rf $(VENV) .graduate build dist *.egg-info
