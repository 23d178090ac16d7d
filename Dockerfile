# syntax=docker/dockerfile:1
# The service and its embedded models: docker build -t sparselane . && docker run --rm -p 8000:8000 --read-only sparselane
# Both stages start from the same image: the environment is copied, so interpreter path and C library must agree.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# Dependencies first: this layer is built again only when a version changes, not with every line of code.
COPY pyproject.toml constraints.txt ./
RUN pip install --constraint constraints.txt scikit-build-core nanobind cmake ninja \
    && python -m venv --without-pip /opt/sparselane \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && pip --python /opt/sparselane/bin/python install --constraint constraints.txt --requirement requirements.txt

COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/sparselane/bin/python install --no-deps --no-index dist/*.whl \
    && /opt/sparselane/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/sparselane/lib

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sparselane" \
      org.opencontainers.image.description="Sparse, quantized BERT models on CPUs: from training to a REST answer." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# A number and not a name, so that Kubernetes can check runAsNonRoot without reading the image's user table.
RUN groupadd --gid 10001 sparselane \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sparselane
COPY --from=builder /opt/sparselane /opt/sparselane
# Nothing is written at run time: byte code was compiled above, and the root file system may be read-only.
ENV PATH=/opt/sparselane/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SPARSELANE_HOST=0.0.0.0 \
    SPARSELANE_PORT=8000 \
    SPARSELANE_PROBE_PORT=9090
WORKDIR /
USER 10001:10001
EXPOSE 8000 9090
STOPSIGNAL SIGTERM
# The slim image has no curl. Liveness only, as in k8s/: a server that drains must not be called unhealthy.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['SPARSELANE_PROBE_PORT']}/healthz\", timeout=2)"]
ENTRYPOINT ["sparselane"]
CMD ["serve"]
