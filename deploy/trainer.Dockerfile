# The training image: simulates or reads data, trains, exports bundles. Not for serving. Build from the project's root:
#   docker build -f deploy/trainer.Dockerfile -t daian-trainer .
# torch's build is yours to choose: --build-arg TORCH=torch==2.14.1, and --build-arg PIP_EXTRA_INDEX_URL=... for a CPU wheel.
FROM python:3.11-slim
ARG TORCH=torch==2.13.0
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/daian
COPY pyproject.toml ./
# Dependencies first: a change of our code does not install them again.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; e = p['optional-dependencies']; print('\n'.join(p['dependencies'] + e['training'] + [d for d in e['export'] if not d.startswith('daian')]))" > export.txt \
 && /opt/daian/bin/pip install --quiet "$TORCH" --requirement export.txt
COPY README.md LICENSE ./
COPY service ./service
COPY training ./training
COPY models_export ./models_export
RUN /opt/daian/bin/pip install --quiet --no-deps .
RUN groupadd --gid 10001 daian \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin daian \
 && mkdir /bundles /work && chown 10001:10001 /bundles /work
ENV PATH=/opt/daian/bin:$PATH PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["daian"]
