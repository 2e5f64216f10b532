# The load generator: locust and our locustfile. Build from the project's root; used by the `load` profile alone.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Exact versions, each file by its hash; `make lock` renews the list.
COPY deploy/load.lock ./
RUN python -m venv /opt/load \
 && /opt/load/bin/pip install --quiet --require-hashes --only-binary :all: --requirement load.lock
COPY deploy/locustfile.py ./
ENV PATH=/opt/load/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["locust"]
