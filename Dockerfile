# presignd in a container: one image for the daemon and the broker (docs/containers.md).
#
#   docker build -t presignd .
#   docker run -v ./drop:/drop -v presignd-state:/var/lib/presignd -e PRESIGND_WATCH__DROP__PATH=/drop … presignd
#   docker run … presignd broker run

ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv
COPY pyproject.toml README.md LICENSE /src/
COPY presignd /src/presignd
COPY systemd /src/systemd
COPY desktop /src/desktop
# Byte code that is never compared with its source: the root may be read-only, and copies have other times.
RUN python3 -m venv /opt/presignd \
 && /opt/presignd/bin/pip install --quiet --no-cache-dir --no-compile '/src[postgres]' \
 && /opt/presignd/bin/pip uninstall --quiet --yes pip setuptools \
 && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/presignd/lib \
 && rm -rf /opt/presignd/bin/activate* /opt/presignd/bin/Activate* /opt/presignd/include

FROM ${BASE}
LABEL org.opencontainers.image.title="presignd" \
      org.opencontainers.image.description="Drop a file in a folder, get a link." \
      org.opencontainers.image.licenses="MIT"
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*.log /usr/share/doc/* \
 && useradd --system --uid 10001 --no-create-home --home-dir /var/lib/presignd presignd \
 && install -d -o presignd -g presignd -m 0700 /var/lib/presignd /var/lib/presignd-broker
COPY --from=build /opt/presignd /opt/presignd

# The ledger, the links and the control socket are in /var/lib/presignd; a broker's state is in /var/lib/presignd-broker.
ENV PATH=/opt/presignd/bin:/usr/local/bin:/usr/bin:/bin XDG_STATE_HOME=/var/lib LANG=C.UTF-8
VOLUME ["/var/lib/presignd", "/var/lib/presignd-broker"]
USER presignd
# presignd drains on SIGTERM, and ends what others left behind: it needs no init before it.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
  CMD presignd health 2>/dev/null || presignd broker health
ENTRYPOINT ["presignd"]
CMD ["run"]
