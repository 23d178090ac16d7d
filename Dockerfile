# syntax=docker/dockerfile:1
# The service and its embedded models: docker build -t sparselane:0.1.0 . && docker run --rm -p 8000:8000 sparselane:0.1.0
# Where no container engine runs: image/build.sh. What it weighs and how fast it starts: bench/record/2026-11-27_image.
# Debian 12 or newer, amd64 or arm64, on either of them; the image gets Debian's Python.
ARG DEBIAN_IMAGE=debian:trixie-slim

# On the machine that builds, whichever the image is for: a compiler that is emulated takes an hour, pip half of one.
FROM --platform=$BUILDPLATFORM ${DEBIAN_IMAGE} AS builder
ARG TARGETARCH
ENV PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# Debian's release fixes the versions, and its security updates shall come with every build.
# hadolint ignore=DL3008
RUN native=$(dpkg --print-architecture) \
    && arch=${TARGETARCH:-$native} \
    && dpkg --add-architecture "$arch" \
    && apt-get update \
    && apt-get install --yes --no-install-recommends dpkg-dev "libpython3-dev:$arch" "libstdc++6:$arch" python3-venv \
        "$(if [ "$arch" = "$native" ]; then echo g++; else echo "crossbuild-essential-$arch"; fi)" \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# Dependencies first: this layer is built again only when a version changes, not with every line of code. Then out with
# their tests, and with the symbols that two of them bring for a debugger: 30 MB.
COPY image/build.lock image/requirements.lock image/target.sh image/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-deps --only-binary :all: --require-hashes --requirement image/build.lock \
    && "$(readlink -f /usr/bin/python3)" -m venv --without-pip /opt/sparselane \
    && . image/target.sh \
    && /opt/build/bin/pip --python /opt/sparselane/bin/python install \
        --no-deps --only-binary :all: --require-hashes --requirement image/requirements.lock \
    && find /opt/sparselane/lib -type d -name tests -prune -exec rm -r {} + \
    && find /opt/sparselane/lib -path '*/uvloop/*.so' -exec "$STRIP" --strip-debug {} + \
    && find /opt/sparselane/lib -path '*/httptools/*.so' -exec "$STRIP" --strip-debug {} +

# The trainer is left out, here and in .dockerignore: nothing that it imports is there.
COPY CMakeLists.txt LICENSE README.md pyproject.toml ./
COPY engine engine
COPY service service
RUN . image/target.sh \
    && PATH=/opt/build/bin:$PATH pip wheel --no-deps --no-build-isolation \
        --config-settings 'wheel.packages=engine;service' --wheel-dir dist . \
    && /opt/build/bin/pip --python /opt/sparselane/bin/python install --no-deps --no-index dist/*.whl \
    && find /opt/sparselane/bin -type f ! -name sparselane -delete \
    && /opt/sparselane/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/sparselane/lib

COPY image/root.sh image/
RUN apt-get update && image/root.sh /rootfs /opt/sparselane && rm -rf /var/lib/apt/lists/*

# The platform is said because buildah 1.28 (Debian 12) would go on with that of the stage above.
# hadolint ignore=DL3065
FROM --platform=$TARGETPLATFORM scratch AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sparselane" \
      org.opencontainers.image.description="Sparse, quantized BERT models on CPUs: from training to a REST answer." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /rootfs /
COPY --from=builder /opt/sparselane /opt/sparselane
# Nothing is written at run time: byte code was compiled above, and the root file system may be read-only.
ENV PATH=/opt/sparselane/bin:/usr/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SPARSELANE_HOST=0.0.0.0 \
    SPARSELANE_PORT=8000 \
    SPARSELANE_PROBE_PORT=9090
WORKDIR /
# A number and not a name, so that Kubernetes can check runAsNonRoot without reading the image's user table.
USER 10001:10001
EXPOSE 8000 9090
STOPSIGNAL SIGTERM
# There is no shell and no curl. Liveness only, as in k8s/: a server that drains must not be called unhealthy.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['SPARSELANE_PROBE_PORT']}/healthz\", timeout=2)"]
ENTRYPOINT ["sparselane"]
CMD ["serve"]
