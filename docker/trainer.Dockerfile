# syntax=docker/dockerfile:1
# The job image: `stage` and `train`. `make images` builds it; by hand, from the repository's root:
# docker build -f docker/trainer.Dockerfile -t rewardfl-trainer .
# CUDA's runtime libraries come with torch's wheels; the node needs a driver that supports their CUDA version (docs/images.md).
# BASE needs Python 3.11 or newer with venv; the official slim image is the one that users get.
# Secrets, all optional and gone after their step: pip.conf, ca-certificates, apt.conf (what this machine needs to reach packages).
# Why it is built this way: docs/decisions/0126-images-from-scratch.md, 0127-cpu-adam-in-the-image.md.
ARG BASE=python:3.12-slim-bookworm

# What installs: it is lent to the steps below and is part of no image.
FROM ${BASE} AS installer
COPY requirements/build.txt requirements/uv.txt requirements/trainer.txt /requirements/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca-certificates \
    python3 -m venv /installer \
    && PIP_CONFIG_FILE=/run/secrets/pip.conf /installer/bin/pip install --no-cache-dir --require-hashes \
       -r /requirements/build.txt -r /requirements/uv.txt
# One layer for CUDA's libraries, one for torch with triton, one for the others: a change of the last leaves the large ones alone.
COPY docker/add_packages.py /requirements/
RUN cd /requirements && awk '/^[a-z]/ { part = /^nvidia-/ ? "cuda" : /^(torch|triton)==/ ? "torch" : "others" } \
    part { print >(part ".txt") }' trainer.txt

FROM installer AS compiler
COPY docker/apt-install.sh /tmp/
RUN --mount=type=secret,id=apt.conf --mount=type=secret,id=ca-certificates sh /tmp/apt-install.sh g++ Python.h

FROM installer AS project
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY operator/rewardfl_operator/__init__.py operator/rewardfl_operator/
COPY trainer trainer
RUN /installer/bin/pip wheel -q --no-deps --no-build-isolation --wheel-dir /wheels . && sha256sum /wheels/*.whl >/project.sha256

FROM ${BASE} AS base
COPY docker/clean-root.sh /tmp/
RUN sh /tmp/clean-root.sh

# The cleaned base and the dependencies, which change seldom. pip stays: images with rewards of one's own are built upon this one.
FROM scratch AS dependencies
COPY --from=base / /
# (buildah 1.28 looks at what is copied from a stage, not at what is lent, to tell whether its cache holds; and it lends the files
# of a cached stage only where something is copied from it too. So what tells a lent stage's content is copied from it.)
COPY --from=installer /requirements/add_packages.py /requirements/cuda.txt /opt/rewardfl/requirements/
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=secret,id=pip.conf --mount=type=secret,id=ca-certificates \
    python3 -m venv --without-pip /opt/rewardfl \
    && /installer/bin/python /opt/rewardfl/requirements/add_packages.py /opt/rewardfl/requirements/cuda.txt
COPY --from=installer /requirements/torch.txt /opt/rewardfl/requirements/
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=secret,id=pip.conf --mount=type=secret,id=ca-certificates \
    /installer/bin/python /opt/rewardfl/requirements/add_packages.py /opt/rewardfl/requirements/torch.txt
COPY --from=installer /requirements/others.txt /requirements/build.txt /opt/rewardfl/requirements/
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=secret,id=pip.conf --mount=type=secret,id=ca-certificates \
    cp -r /installer/lib/python3*/site-packages/pip* /opt/rewardfl/lib/python3*/site-packages/ \
    && sed 's#/installer/#/opt/rewardfl/#' /installer/bin/pip >/opt/rewardfl/bin/pip && chmod 755 /opt/rewardfl/bin/pip \
    && /installer/bin/python /opt/rewardfl/requirements/add_packages.py /opt/rewardfl/requirements/others.txt

FROM compiler AS cpu-adam
COPY --from=dependencies /opt/rewardfl/requirements /requirements
COPY docker/cpu_adam.py /tmp/
RUN --mount=type=bind,from=dependencies,source=/opt/rewardfl,target=/opt/rewardfl \
    PYTHONPATH=$(echo /installer/lib/python3*/site-packages) PYTHONDONTWRITEBYTECODE=1 DS_ACCELERATOR=cpu \
    /opt/rewardfl/bin/python /tmp/cpu_adam.py /tmp/built \
    && strip --strip-unneeded /tmp/built/deepspeed/ops/adam/*.so \
    && target=/out$(echo /opt/rewardfl/lib/python3*/site-packages) && mkdir -p "$target" && cp -r /tmp/built/deepspeed "$target" \
    && find /out -exec touch -h -d @0 {} +

FROM dependencies
COPY --from=cpu-adam /out /
COPY --from=project /src/LICENSE /project.sha256 /opt/rewardfl/
RUN --mount=type=bind,from=installer,source=/installer,target=/installer --mount=type=bind,from=project,source=/wheels,target=/wheels \
    /installer/bin/pip --python /opt/rewardfl/bin/python install -q --no-compile --no-index --no-deps /wheels/*.whl \
    && /installer/bin/pip --python /opt/rewardfl/bin/python check \
    && rm /opt/rewardfl/bin/rewardfl-operator \
    && python3 -B -m compileall -q -f --invalidation-mode unchecked-hash /opt/rewardfl/lib/python3*/site-packages/rewardfl_* \
    && find /opt/rewardfl -newermt @0 -exec touch -h -d @0 {} +
ENV PATH=/opt/rewardfl/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LANG=C.UTF-8 HOME=/tmp
USER 65532:65532
# Version, revision and source are given as --label by `make images`.
LABEL org.opencontainers.image.title="rewardfl-trainer" \
      org.opencontainers.image.description="Trainer for Reward Feedback Learning of Wan2.2" \
      org.opencontainers.image.licenses="Apache-2.0"
