# syntax=docker/dockerfile:1
# The job image: `stage` and `train`. Build from the repository's root: docker build -f docker/trainer.Dockerfile -t rewardfl-trainer .
# CUDA's runtime libraries come with torch's wheels; the node needs a driver that supports their CUDA version.
# BASE needs Python 3.11 or newer with venv and pip; the official slim image is the one that users get.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/rewardfl
COPY requirements/trainer.txt requirements/
RUN /opt/rewardfl/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/trainer.txt
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY operator/rewardfl_operator/__init__.py operator/rewardfl_operator/
COPY trainer trainer
RUN /opt/rewardfl/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM ${BASE}
LABEL org.opencontainers.image.title="rewardfl-trainer" \
      org.opencontainers.image.description="Trainer for Reward Feedback Learning of Wan2.2" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/rewardfl /opt/rewardfl
ENV PATH=/opt/rewardfl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
