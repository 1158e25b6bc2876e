# Run `make` alone for a list of the targets. Every virtual environment is made here, and is ready once its stamp
# file is newer than what it was made from.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
# More arguments for the command that a target runs: make serve ARGS="--grpc-port 9001"
ARGS ?=

REPOSITORY := model_repository
MINI := $(REPOSITORY)/m3-mini/1/manifest.json
PERF_ANALYZER := .venv-tritonclient/perf_analyzer/perf_analyzer

PIP_INSTALL := -m pip --disable-pip-version-check install --quiet
INSTALL := .venv/bin/python $(PIP_INSTALL) -c constraints.txt
INSTALL_TORCH := .venv-torch/bin/python $(PIP_INSTALL) -c constraints-torch.txt

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

.PHONY: setup
setup: .venv/.serve ## Install what serving needs into .venv, in the versions of constraints.txt.
	@echo "Ready: .venv/bin/trivec"

.PHONY: serve
serve: .venv/.serve $(MINI) ## Serve model_repository/ on 127.0.0.1:8001; builds the small model m3-mini first.
	@exec .venv/bin/trivec serve --model-repository $(REPOSITORY) $(ARGS)

.PHONY: test
test: .venv/.test .venv-triton/.ready .venv-tritonclient/.ready $(PERF_ANALYZER) .prometheus/.ready .redis/.ready .nginx/.ready .helm/.ready .systemd/.ready $(MINI) ## Run the tests. No torch, no model from the hub.
	.venv/bin/python -m pytest -m "not torch and not cluster" $(ARGS)

.PHONY: test-torch
test-torch: .venv-torch/.test ## Run the tests against torch and FlagEmbedding, in an environment of their own.
	.venv-torch/bin/python -m pytest -m torch $(ARGS)

.PHONY: cluster-test
cluster-test: .venv/.test .nginx/.ready .iptables/.ready ## Kill, hang, drain, restart, upgrade and cut off nodes behind Envoy and nginx; 8 minutes, as root.
	.venv/bin/python -m pytest -s -m cluster tests/cluster $(ARGS)

.PHONY: bench-cluster
bench-cluster: .venv/.test .nginx/.ready .iptables/.ready ## The same and more in three rounds, with the soak; writes the results; an hour, as root.
	.venv/bin/python -m benchmarks.cluster --rounds 3 --save $(ARGS)

.PHONY: soak
soak: .venv/.test ## Send 200,000 mixed requests, and look that nothing grows; fewer: ARGS="--requests 50000".
	.venv/bin/python -m benchmarks.soak $(ARGS)

.PHONY: fuzz
fuzz: .venv/.test ## Send 50,000 cases that nobody would write: messages to every RPC, files to their readers.
	.venv/bin/python -m tests.fuzz $(ARGS)

.PHONY: golden
golden: .venv-torch/.test ## Make the golden files of tests/numerics anew, with FlagEmbedding.
	.venv-torch/bin/python -m tests.numerics.golden

.PHONY: check
check: .venv/.check .venv-stubs/.ready .venv-audit/.ready ## Check style, types, imports, the protocol and its stubs, and the pinned packages.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/hadolint Dockerfile
	tools/lint_protos.sh
	tools/check_stubs.sh
	.venv/bin/python tools/audit.py .venv-audit/bin/pip-audit

.PHONY: format
format: .venv/.check ## Put the code into the style that `make check` asks for.
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

.PHONY: stubs
stubs: .venv-stubs/.ready ## Generate protos/python from the .proto files.
	tools/generate_stubs.sh protos/python

.PHONY: transcoder
transcoder: .venv/.serve ## Write deploy/envoy/embedding.pb, by which Envoy takes JSON, from the stubs.
	.venv/bin/python tools/write_transcoder_descriptor.py deploy/envoy/embedding.pb

.PHONY: breaking
breaking: .venv/.check .venv-stubs/.ready ## Check that the protocol still suits clients of an earlier commit: make breaking AGAINST=v0.1.0
	tools/check_breaking.sh "$(AGAINST)"

.PHONY: bench-overhead
bench-overhead: .venv/.test ## Measure the server against a bare grpc.aio server.
	.venv/bin/python -m benchmarks.overhead $(ARGS)

.PHONY: bench-cpu
bench-cpu: .venv-torch/.bench ## Measure the engines and their peers on the CPU with BGE-M3's sizes: about half an hour, 30 GB of disk.
	.venv-torch/bin/python -m benchmarks.engines.cpu $(ARGS)
	.venv-torch/bin/python -m benchmarks.engines.report

.PHONY: bench-gpu
bench-gpu: ## Measure the engines on a GPU, with the packages of $(PYTHON); no network, less than 8 minutes.
	PYTHONPATH=server:clients/python:protos/python:. $(PYTHON) -m benchmarks.engines.gpu $(ARGS)

.PHONY: bench-triton
bench-triton: .venv/.test .venv-triton/.ready .venv-tritonclient/.ready $(PERF_ANALYZER) $(MINI) ## Measure KServe v2 against a real Triton and MLServer.
	.venv/bin/python -m benchmarks.triton $(ARGS)

.PHONY: accuracy
accuracy: .venv-torch/.test ## Compare every engine and precision with the float32 reference, and write it into docs/benchmarks.md.
	.venv-torch/bin/python -m benchmarks.accuracy $(ARGS)

.PHONY: bench-memory
bench-memory: .venv/.test ## Measure the server's memory and start; ARGS=--full-size adds BGE-M3's shapes: 7 GB of disk.
	.venv/bin/python -m benchmarks.memory $(ARGS)

.PHONY: chaos-small
chaos-small: .venv/.test ## Send 2,000 requests with random cancellations and deadlines.
	.venv/bin/python -m benchmarks.chaos $(ARGS)

.PHONY: image-check
image-check: .venv/.test ## Build the container image, run it read-only, call it, stop it. Needs root, buildah, debootstrap, crun.
	.venv/bin/python -m tools.check_image

.PHONY: pins
pins: ## Write the constraints files anew, with the newest versions.
	tools/write_constraints.sh $(PYTHON)

.PHONY: clean
clean: ## Remove the environments, the caches and the built m3-mini; keeps models that were pulled.
	rm -rf .venv .venv-torch .venv-stubs .venv-triton .venv-tritonclient .venv-audit .venv-peers .prometheus .redis .nginx .iptables .helm benchmarks/out .image .systemd build dist trivec.egg-info $(REPOSITORY)/m3-mini/1
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find benchmarks clients protos server tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(MINI): | .venv/.serve
	@.venv/bin/trivec pull m3-mini --model-repository $(REPOSITORY)

# Without isolation the build uses the pinned setuptools, too.
.venv/.serve: pyproject.toml constraints.txt .venv/bin/python
	@tools/make_venv.sh $(PYTHON) .venv
	@echo "Installing what Trivec needs into .venv: about 500 MB, once."
	@$(INSTALL) setuptools
	@$(INSTALL) --no-build-isolation -e '.[server,openvino,mini,progress]'
	@touch $@

.venv/.test: .venv/.serve
	@echo "Installing what the tests need into .venv."
	@$(INSTALL) --no-build-isolation -e '.[test]'
	@touch $@

.venv/.check: .venv/.test
	@echo "Installing what the checks need into .venv."
	@$(INSTALL) --no-build-isolation -e '.[check]'
	@touch $@

# torch first: FlagEmbedding alone would bring another one.
.venv-torch/.test: pyproject.toml constraints.txt constraints-torch.txt .venv-torch/bin/python
	@tools/make_venv.sh $(PYTHON) .venv-torch
	@echo "Installing torch and FlagEmbedding into .venv-torch: some gigabytes, once."
	@$(INSTALL_TORCH) setuptools torch
	@$(INSTALL_TORCH) FlagEmbedding
	@$(INSTALL_TORCH) --no-build-isolation -e '.[test,flagembedding]'
	@touch $@

.venv-torch/.bench: .venv-torch/.test
	@$(INSTALL_TORCH) --no-build-isolation -e '.[bench,flagembedding]'
	@touch $@

.venv-stubs/.ready: constraints-stubs.txt .venv-stubs/bin/python
	@tools/make_venv.sh $(PYTHON) .venv-stubs
	@.venv-stubs/bin/python $(PIP_INSTALL) -c constraints-stubs.txt grpcio-tools mypy-protobuf googleapis-common-protos
	@touch $@

.venv-triton/.ready: constraints-triton.txt tools/install_triton.sh .venv-triton/bin/python
	@tools/make_venv.sh $(PYTHON) .venv-triton
	@echo "Installing a Triton server to compare with into .venv-triton: about 300 MB, once."
	@tools/install_triton.sh .venv-triton
	@touch $@

.venv-audit/.ready: constraints-audit.txt .venv-audit/bin/python
	@tools/make_venv.sh $(PYTHON) .venv-audit
	@.venv-audit/bin/python $(PIP_INSTALL) --no-deps -r constraints-audit.txt
	@touch $@

.venv-tritonclient/.ready: constraints-tritonclient.txt .venv-tritonclient/bin/python
	@tools/make_venv.sh $(PYTHON) .venv-tritonclient
	@.venv-tritonclient/bin/python $(PIP_INSTALL) --no-deps -r constraints-tritonclient.txt
	@touch $@

$(PERF_ANALYZER): tools/install_perf_analyzer.sh tools/unpack_debian.sh .venv-tritonclient/.ready
	@echo "Installing perf_analyzer into .venv-tritonclient."
	@tools/install_perf_analyzer.sh .venv-tritonclient/bin/python $(@D)
	@touch $@

.prometheus/.ready: tools/install_prometheus.sh tools/unpack_debian.sh
	@echo "Unpacking Prometheus, Alertmanager and the blackbox exporter to test with into .prometheus: 150 MB, once."
	@tools/install_prometheus.sh .prometheus
	@touch $@

.helm/.ready: tools/install_helm.sh | .venv/.serve
	@echo "Unpacking helm and kubectl to test with into .helm: 130 MB, once."
	@tools/install_helm.sh .venv/bin/python .helm
	@touch $@

.redis/.ready: tools/install_redis.sh tools/unpack_debian.sh
	@echo "Unpacking a Redis server to test with into .redis, unless one is installed."
	@tools/install_redis.sh .redis
	@touch $@

.iptables/.ready: tools/install_iptables.sh tools/unpack_debian.sh
	@echo "Unpacking iptables to test with into .iptables, unless it is installed."
	@tools/install_iptables.sh .iptables
	@touch $@

.nginx/.ready: tools/install_nginx.sh tools/unpack_debian.sh
	@echo "Unpacking nginx to test with into .nginx, unless it is installed."
	@tools/install_nginx.sh .nginx
	@touch $@

.systemd/.ready: tools/install_systemd.sh tools/unpack_debian.sh
	@echo "Unpacking systemd-analyze to test with into .systemd, unless it is installed."
	@tools/install_systemd.sh .systemd
	@touch $@

# Also when the Python that an environment was made with is gone.
.venv/bin/python .venv-torch/bin/python .venv-stubs/bin/python .venv-triton/bin/python .venv-tritonclient/bin/python .venv-audit/bin/python:
	@tools/make_venv.sh $(PYTHON) $(@:/bin/python=)
