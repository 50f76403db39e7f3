# The service in a small image: `docker build -t flashsale .`
#
# Without REDIS_ADDR and POSTGRES_DSN it runs embedded and keeps its ledger in the volume /data.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
# The dependencies first, under a program that does nothing: a change of the sources does not build them anew.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo build --release --locked && rm -r src
COPY lua lua
COPY sql sql
COPY src src
# Cargo compares times, and these files are older than the program that did nothing.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM debian:bookworm-slim
# Certificates for sslrootcert=system. From the first stage: this one then needs no package that could not be pinned.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# Numbers, so that Kubernetes (runAsNonRoot) and the owners of bind mounts can name the user without the image's files.
RUN groupadd --system --gid 10001 flashsale \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin flashsale \
    && install -d -o 10001 -g 10001 /data
COPY --from=build /build/target/release/flashsale /usr/local/bin/flashsale
USER 10001:10001
ENV DATA_DIR=/data
VOLUME /data
EXPOSE 8080
# Whether the process answers on ADMIN_ADDR, not whether it can sell: while Redis is away a new container would not sell
# either, and ending this one would lose what it still carries. Reads ADMIN_ADDR from the environment, not from the flags
# of the service: set it with `-e ADMIN_ADDR=...`.
HEALTHCHECK --interval=5s --timeout=3s --start-period=15s CMD ["flashsale", "health", "--live"]
ENTRYPOINT ["flashsale"]
