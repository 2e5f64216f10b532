# The load generator: locust and our locustfile. Build from the project's root; used by the `load` profile alone.
FROM python:3.11-slim
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml ./
RUN python -m venv /opt/load \
 && python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['load']))" > load.txt \
 && /opt/load/bin/pip install --quiet --requirement load.txt
COPY deploy/locustfile.py ./
ENV PATH=/opt/load/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["locust"]
