# syntax=docker/dockerfile:1
# The student server on CPU; also the adapter-sync sidecar, which needs fsspec and s3fs of it.
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE graduate.py graduate_doctor.py graduate_up.py ./
COPY router/ router/
COPY serving/ serving/
COPY monitoring/ monitoring/
COPY training/ training/
# Where pip finds torch beside its usual index; empty is the usual one alone.
ARG TORCH_INDEX=""
RUN python -m venv /opt/graduate
RUN mkdir -p /opt/graduate/share \
    && /opt/graduate/bin/pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} '.[serving]' s3fs==2026.9.0 \
    && /opt/graduate/bin/pip inspect > /opt/graduate/share/packages.json
RUN /opt/graduate/bin/python -I -c "import serving.launch, s3fs"

FROM ${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="graduate/serving" \
      org.opencontainers.image.description="Many LoRA adapters on one base model, on CPU" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/graduate-llm/graduate" \
      graduate.packages="/opt/graduate/share/packages.json"
RUN groupadd --gid 10001 graduate \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/graduate --shell /usr/sbin/nologin graduate \
    && install --directory --owner=10001 --group=10001 /var/lib/graduate
COPY --from=build /opt/graduate /opt/graduate
ENV PATH=/opt/graduate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001:10001
WORKDIR /var/lib/graduate
ENV HF_HOME=/var/lib/graduate/models/hub
EXPOSE 8081
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8081/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["graduate"]
CMD ["serving", "serve", "--model", "HuggingFaceTB/SmolLM2-135M-Instruct", "--home", "/var/lib/graduate", "--host", "0.0.0.0"]
