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
# Cargo goes by times, and these files are older than the program that did nothing.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM debian:bookworm-slim
# For sslrootcert=system.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin flashsale \
    && install -d -o flashsale -g flashsale /data
COPY --from=build /build/target/release/flashsale /usr/local/bin/flashsale
USER flashsale
ENV DATA_DIR=/data
VOLUME /data
EXPOSE 8080
# A picture needs neither Redis nor Postgres: this asks whether the process is alive, not whether it can sell. Bash
# speaks TCP by itself, so the image needs no client.
HEALTHCHECK --interval=5s --timeout=3s --start-period=15s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/${SERVER_PORT:-8080} && printf 'GET /items/1.svg HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["flashsale"]
