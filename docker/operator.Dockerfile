# syntax=docker/dockerfile:1
# The operator. Build from the repository's root: docker build -f docker/operator.Dockerfile -t rewardfl-operator .
# BASE needs Python 3.11 or newer with venv and pip; the official slim image is the one that users get.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/rewardfl
COPY requirements/operator.txt requirements/
RUN /opt/rewardfl/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/operator.txt
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY operator operator
COPY trainer/rewardfl_trainer/__init__.py trainer/rewardfl_trainer/
RUN /opt/rewardfl/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps . \
    && /opt/rewardfl/bin/pip uninstall --yes --quiet pip

FROM ${BASE}
LABEL org.opencontainers.image.title="rewardfl-operator" \
      org.opencontainers.image.description="Kubernetes operator for Reward Feedback Learning of Wan2.2" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/rewardfl /opt/rewardfl
ENV PATH=/opt/rewardfl/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["rewardfl-operator"]
