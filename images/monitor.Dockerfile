# syntax=docker/dockerfile:1
# The monitor: console, ticks by evidently in a process of their own.
ARG PYTHON=python:3.11.14-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE graduate.py graduate_doctor.py graduate_up.py ./
COPY router/ router/
COPY serving/ serving/
COPY monitoring/ monitoring/
COPY training/ training/
RUN python -m venv /opt/graduate
RUN mkdir -p /opt/graduate/share \
    && /opt/graduate/bin/pip install --constraint constraints.txt '.[monitoring]' \
    && /opt/graduate/bin/pip inspect > /opt/graduate/share/packages.json
RUN /opt/graduate/bin/python -I -c "import importlib.util as u, monitoring.app, monitoring.tick, monitoring.kube; \
    assert not u.find_spec('torch'), 'too much is installed'"

FROM ${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="graduate/monitor" \
      org.opencontainers.image.description="Disagreement, drift, flags, reviews, rollouts" \
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
EXPOSE 8083
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8083/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["graduate"]
CMD ["monitor", "serve", "--policy", "/etc/graduate/policy/policy.yaml", "--home", "/var/lib/graduate", "--host", "0.0.0.0"]
