# syntax=docker/dockerfile:1
# The operator. `make images` builds it; by hand, from the repository's root: docker build -f docker/operator.Dockerfile -t rewardfl-operator .
# BASE needs Python 3.11 or newer with venv; the official slim image is the one that users get.
# Secrets, all optional and gone after their step: pip.conf, ca-certificates (what this machine needs to reach a package index).
# Why it is built this way: docs/decisions/0126-images-from-scratch.md.
ARG BASE=python:3.12-slim-bookworm

# What installs: it is lent to the steps below and is part of no image.
FROM ${BASE} AS installer
COPY requirements/build.txt requirements/operator.txt /requirements/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=ca-certificates \
    python3 -m venv /installer \
    && PIP_CONFIG_FILE=/run/secrets/pip.conf /installer/bin/pip install --no-cache-dir --require-hashes -r /requirements/build.txt

FROM installer AS project
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY operator operator
COPY trainer/rewardfl_trainer/__init__.py trainer/rewardfl_trainer/
RUN /installer/bin/pip wheel -q --no-deps --no-build-isolation --wheel-dir /wheels . && sha256sum /wheels/*.whl >/project.sha256

FROM ${BASE} AS base
COPY docker/clean-root.sh /tmp/
RUN sh /tmp/clean-root.sh

# The image: the cleaned base, then what changes seldom, then the project. kubernetes' 1,826 modules of models are imported one
# by one as they are used; their bytecode would be 48 MB.
FROM scratch
COPY --from=base / /
# (buildah 1.28 looks at what is copied from a stage, not at what is lent, to tell whether its cache holds; and it lends the files
# of a cached stage only where something is copied from it too. So each stage that is lent has a file that tells its content.)
COPY --from=installer /requirements /opt/rewardfl/requirements
RUN --mount=type=bind,from=installer,source=/installer,target=/installer \
    --mount=type=secret,id=pip.conf --mount=type=secret,id=ca-certificates \
    python3 -m venv --without-pip /opt/rewardfl \
    && PIP_CONFIG_FILE=/run/secrets/pip.conf /installer/bin/pip --python /opt/rewardfl/bin/python install \
       --no-cache-dir --no-compile --progress-bar off --require-hashes -r /opt/rewardfl/requirements/operator.txt \
    && python3 -B -m compileall -q -f -j 0 -x '/kubernetes/(aio/)?client/(models|api)/' --invalidation-mode unchecked-hash /opt/rewardfl \
    && find /opt/rewardfl -exec touch -h -d @0 {} +
COPY --from=project /src/LICENSE /project.sha256 /opt/rewardfl/
RUN --mount=type=bind,from=installer,source=/installer,target=/installer --mount=type=bind,from=project,source=/wheels,target=/wheels \
    /installer/bin/pip --python /opt/rewardfl/bin/python install -q --no-compile --no-index --no-deps /wheels/*.whl \
    && /installer/bin/pip --python /opt/rewardfl/bin/python check \
    && python3 -B -m compileall -q -f --invalidation-mode unchecked-hash /opt/rewardfl/lib/python3*/site-packages/rewardfl_* \
    && find /opt/rewardfl -newermt @0 -exec touch -h -d @0 {} +
ENV PATH=/opt/rewardfl/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 LANG=C.UTF-8 HOME=/tmp
USER 65532:65532
ENTRYPOINT ["rewardfl-operator"]
# Version, revision and source are given as --label by `make images`.
LABEL org.opencontainers.image.title="rewardfl-operator" \
      org.opencontainers.image.description="Kubernetes operator for Reward Feedback Learning of Wan2.2" \
      org.opencontainers.image.licenses="Apache-2.0"
