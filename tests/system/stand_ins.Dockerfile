# Stand-ins for third-party images where no registry can be reached: the same programs from Debian,
# under the names and with the entry points that deploy/compose/compose.yaml expects.
FROM debian:bookworm-slim AS base
RUN apt-get update

FROM base AS redis
RUN apt-get install -y --no-install-recommends redis-server redis-tools \
    && install -d -o 999 -g 999 /data
WORKDIR /data

FROM base AS prometheus
RUN apt-get install -y --no-install-recommends prometheus \
    && install -d -o 65534 -g 65534 /prometheus
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus"]

FROM base AS redis-exporter
RUN apt-get install -y --no-install-recommends prometheus-redis-exporter
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus-redis-exporter"]

FROM base AS node-exporter
RUN apt-get install -y --no-install-recommends prometheus-node-exporter
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus-node-exporter"]
