# syntax=docker/dockerfile:1
# Three images of one file:  docker build --target serve -t clipmill/serve:0.2.0 .
#
#   data    shards, captions, scores and selects
#   train   pretrains, fine-tunes, evaluates; runs the pipelines' components
#   serve   an endpoint, without CUDA: under 2 GB
#
# BASE_IMAGE   a Debian or Ubuntu with Python 3.11 or 3.12; pin it by digest in your CI.
# TORCH_INDEX  where torch and torchvision come from: an index of wheels; empty for PyPI, whose Linux
#              wheels bring CUDA; "pypi-cpu" for PyPI's with CUDA taken out (x86_64).
#
# Layers go from what seldom changes to what often does: packages, torch, requirements, clipmill.
# Every file that pip takes must have a hash of requirements/, torch from an index of its own
# excepted. Downloads are kept between builds, beside the image. A pip.conf of yours comes in as a
# secret, and stays out too:
#   docker build --secret id=pip,src=$HOME/.config/pip/pip.conf ...
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/clipmill/bin:$PATH \
    # The root is read-only: whatever a library likes to keep goes here.
    HOME=/tmp XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib \
    # numba, a dependency of a dependency, looks for a place beside its code otherwise.
    NUMBA_CACHE_DIR=/tmp/numba
RUN groupadd --gid 10001 clipmill \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin clipmill

FROM base AS builder
ENV MMCV_WITH_OPS=0 PIP_CACHE_DIR=/var/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
# pip compiles nothing: one pass after it does, by hashes of the sources, so that layers reproduce.
ENV PIP_NO_COMPILE=1 SOURCE_DATE_EPOCH=0
RUN python3 -m venv /opt/clipmill
WORKDIR /build
COPY requirements /build/requirements

FROM builder AS data-build
ARG TORCH_INDEX=
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    --mount=type=cache,target=/var/cache/pip \
    sh requirements/install.sh data "$TORCH_INDEX"
COPY . /build
RUN sh requirements/finish.sh

FROM builder AS train-build
ARG TORCH_INDEX=
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    --mount=type=cache,target=/var/cache/pip \
    sh requirements/install.sh train-image "$TORCH_INDEX"
COPY . /build
RUN sh requirements/finish.sh

FROM builder AS serve-build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    --mount=type=cache,target=/var/cache/pip \
    sh requirements/install.sh serve "$TORCH_INDEX"
COPY . /build
RUN sh requirements/finish.sh

FROM base AS labeled
ARG VERSION=0.2.0
ARG REVISION=
LABEL org.opencontainers.image.title="clipmill" \
      org.opencontainers.image.description="Quality-captioned CLIP encoders: pretrained, fine-tuned, served" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/clipmill/clipmill" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /tmp
ENTRYPOINT ["clipmill"]

FROM labeled AS data
COPY --from=data-build /opt/clipmill /opt/clipmill
COPY --from=data-build /own /opt/clipmill
RUN mkdir -p /usr/share/clipmill && python -m clipmill.cluster.sbom > /usr/share/clipmill/sbom.json
USER 10001:10001

FROM labeled AS train
COPY --from=train-build /opt/clipmill /opt/clipmill
COPY --from=train-build /own /opt/clipmill
RUN mkdir -p /usr/share/clipmill && python -m clipmill.cluster.sbom > /usr/share/clipmill/sbom.json
USER 10001:10001

FROM labeled AS serve
COPY --from=serve-build /opt/clipmill /opt/clipmill
COPY --from=serve-build /own /opt/clipmill
RUN mkdir -p /usr/share/clipmill && python -m clipmill.cluster.sbom > /usr/share/clipmill/sbom.json
USER 10001:10001
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/v2/health/ready', timeout=4)"]
