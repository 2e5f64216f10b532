# The training image: simulates or reads data, trains, exports bundles. Not for serving. Build from the project's root:
#   docker build -f deploy/trainer.Dockerfile -t daian-trainer .
# Everything is installed by hash, torch too, in PyPI's build (CUDA on x86-64). Another build is yours to choose, and torch then has
# no hash: --build-arg TORCH=torch==2.14.1, and --build-arg PIP_EXTRA_INDEX_URL=... for a CPU wheel.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}
ARG TORCH=
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/daian
# Dependencies first: a change of our code does not install them again. `make lock` renews the lists.
COPY deploy/trainer.lock deploy/build.lock ./
# With a torch of your own: its pin, and those of the libraries that PyPI's build brings, are cut out.
RUN if [ -n "$TORCH" ]; then sed -E -i '/^(torch|triton|nvidia-|cuda-)/,/[^\\]$/d' trainer.lock; fi \
 && /opt/daian/bin/pip install --quiet --require-hashes --only-binary :all: --requirement trainer.lock --requirement build.lock
RUN if [ -n "$TORCH" ]; then /opt/daian/bin/pip install --quiet "$TORCH"; fi
COPY pyproject.toml README.md LICENSE ./
COPY service ./service
COPY training ./training
COPY models_export ./models_export
RUN /opt/daian/bin/pip install --quiet --no-deps --no-build-isolation .
RUN groupadd --gid 10001 daian \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin daian \
 && mkdir /bundles /work && chown 10001:10001 /bundles /work
ENV PATH=/opt/daian/bin:$PATH PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["daian"]
