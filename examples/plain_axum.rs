//! What a good engineer writes in an afternoon: axum, one script call a request on a multiplexed Redis connection,
//! COPY behind a channel.
//!
//! Owns the comparison that `benches/saturation` makes with the service: the same requests, statuses and bodies where
//! a load generator looks, and a row for everything that was granted. It lacks what the service promises beyond that:
//! holds never expire, a restart of Redis loses them, codes are random, nothing is reconciled or rebuilt, nothing
//! limits a slow client, and refusals carry no `Retry-After`. Reads the service's settings from the environment:
//! `SERVER_PORT`, `BIND_ADDR`, `REDIS_ADDR`, `POSTGRES_DSN`, `SALE_ITEMS`, `USER_LIMIT`, `WORKERS`.

#![allow(missing_docs)]

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures_util::SinkExt;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisError, Script};
use serde::Deserialize;
use std::error::Error;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;

/// Takes an item: 1 held, 0 sold out, -1 the user's limit.
const CHECKOUT: &str = "
if tonumber(redis.call('GET', KEYS[1])) <= 0 then return 0 end
if redis.call('HINCRBY', KEYS[2], ARGV[1], 1) > tonumber(ARGV[4]) then
  redis.call('HINCRBY', KEYS[2], ARGV[1], -1)
  return -1
end
redis.call('DECR', KEYS[1])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[1] .. '|' .. ARGV[2])
return 1";

/// Redeems a code: the hold, marked with + (bought now) or = (bought before), or nothing.
const PURCHASE: &str = "
local hold = redis.call('HGET', KEYS[1], ARGV[1])
if not hold then return false end
if string.sub(hold, 1, 1) == '=' then return hold end
redis.call('HSET', KEYS[1], ARGV[1], '=' .. hold)
return '+' .. hold";

/// Rows of one COPY, and how long the first of them waits for more.
const BATCH: usize = 10_000;
const LINGER: Duration = Duration::from_millis(20);
/// Rows that wait for the ledger.
const QUEUE: usize = 500_000;

struct Row {
    table: &'static str,
    code: String,
    user: String,
    item: String,
    at_ms: u128,
}

struct Shop {
    redis: MultiplexedConnection,
    checkout: Script,
    purchase: Script,
    user_limit: u64,
    ledger: mpsc::Sender<Row>,
}

#[derive(Deserialize)]
struct Checkout {
    user_id: String,
    id: String,
}

#[derive(Deserialize)]
struct Purchase {
    code: String,
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn refuse(status: StatusCode, error: &str, message: &str) -> Response {
    json(status, format!("{{\"error\":\"{error}\",\"message\":\"{message}\"}}"))
}

fn unavailable() -> Response {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "try again")
}

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn new_code() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    let mut code = String::with_capacity(32);
    for byte in bytes {
        let _ = write!(code, "{byte:02x}");
    }
    Ok(code)
}

fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && !id.chars().any(char::is_control)
}

async fn checkout(State(shop): State<Arc<Shop>>, Query(asked): Query<Checkout>) -> Response {
    let Checkout { user_id: user, id: item } = asked;
    if !is_id(&user) || !is_id(&item) {
        return refuse(StatusCode::BAD_REQUEST, "invalid_request", "user_id or id is malformed");
    }
    let Ok(code) = new_code() else { return unavailable() };
    let mut call = shop.checkout.key("plain:free");
    call.key("plain:users").key("plain:holds").arg(&user).arg(&item).arg(&code).arg(shop.user_limit);
    let answer: Result<i64, RedisError> = call.invoke_async(&mut shop.redis.clone()).await;
    match answer {
        Ok(1) => {
            let body = format!("{{\"code\":\"{code}\",\"expires_at\":{}}}", now_ms() / 1000 + 300);
            let row = Row { table: "plain_holds", code, user, item, at_ms: now_ms() };
            let _ = shop.ledger.send(row).await;
            json(StatusCode::OK, body)
        }
        Ok(0) => refuse(StatusCode::CONFLICT, "sold_out", "no item is free at the moment"),
        Ok(_) => refuse(StatusCode::TOO_MANY_REQUESTS, "user_limit", "this user holds as many as he may"),
        Err(_) => unavailable(),
    }
}

async fn purchase(State(shop): State<Arc<Shop>>, Query(asked): Query<Purchase>) -> Response {
    let answer: Result<Option<String>, RedisError> =
        shop.purchase.key("plain:holds").arg(&asked.code).invoke_async(&mut shop.redis.clone()).await;
    let Ok(answer) = answer else { return unavailable() };
    let Some((mark, (user, item))) =
        answer.as_deref().and_then(|hold| Some((hold.get(..1)?, hold.get(1..)?.split_once('|')?)))
    else {
        return refuse(StatusCode::BAD_REQUEST, "invalid_code", "not a code of ours");
    };
    // Any id may stand in the query, so it is escaped like any other text.
    let name = serde_json::Value::from(item);
    let image = serde_json::Value::from(format!("/items/{item}.svg"));
    let fields = format!("\"item_id\":{name},\"item_name\":{name},\"item_image\":{image}}}");
    if mark == "=" {
        return json(StatusCode::CONFLICT, format!("{{\"error\":\"already_purchased\",{fields}"));
    }
    let (user, item) = (user.to_owned(), item.to_owned());
    let _ = shop.ledger.send(Row { table: "plain_purchases", code: asked.code, user, item, at_ms: now_ms() }).await;
    json(StatusCode::OK, format!("{{\"success\":true,{fields}"))
}

/// A value in the text form of COPY.
fn push_field(out: &mut String, value: &str) {
    for character in value.chars() {
        if character == '\\' {
            out.push('\\');
        }
        out.push(character);
    }
    out.push('\t');
}

async fn write_rows(
    client: tokio_postgres::Client,
    mut rows: mpsc::Receiver<Row>,
) -> Result<(), tokio_postgres::Error> {
    let mut batch = Vec::with_capacity(BATCH);
    while rows.recv_many(&mut batch, BATCH).await > 0 {
        if batch.len() < BATCH {
            tokio::time::sleep(LINGER).await;
            while batch.len() < BATCH {
                let Ok(row) = rows.try_recv() else { break };
                batch.push(row);
            }
        }
        for table in ["plain_holds", "plain_purchases"] {
            let mut text = String::new();
            for row in batch.iter().filter(|row| row.table == table) {
                [&row.code, &row.user, &row.item].into_iter().for_each(|value| push_field(&mut text, value));
                let _ = writeln!(text, "{}", row.at_ms);
            }
            if !text.is_empty() {
                let sink = client.copy_in::<_, Bytes>(&format!("COPY {table} FROM STDIN")).await?;
                let mut sink = std::pin::pin!(sink);
                sink.send(Bytes::from(text)).await?;
                sink.finish().await?;
            }
        }
        batch.clear();
    }
    Ok(())
}

async fn start() -> Result<(), Box<dyn Error>> {
    let needed = |name: &str| std::env::var(name).map_err(|_| format!("{name} must be set"));
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (client, connection) = tokio_postgres::connect(&needed("POSTGRES_DSN")?, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let columns = "(code text PRIMARY KEY, user_id text NOT NULL, item_id text NOT NULL, at_ms bigint NOT NULL)";
    for table in ["plain_holds", "plain_purchases"] {
        client.batch_execute(&format!("CREATE TABLE IF NOT EXISTS {table} {columns}")).await?;
    }
    let (ledger, rows) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        if let Err(error) = write_rows(client, rows).await {
            eprintln!("plain_axum: the ledger is gone: {error}");
            std::process::exit(1);
        }
    });
    let patient = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = redis::Client::open(format!("redis://{}", needed("REDIS_ADDR")?))?;
    let mut redis = client.get_multiplexed_async_connection_with_config(&patient).await?;
    let set = redis::cmd("SET").arg("plain:free").arg(number("SALE_ITEMS", 10_000)).arg("NX").to_owned();
    set.query_async::<Option<String>>(&mut redis).await?;
    let (checkout_script, purchase_script) = (Script::new(CHECKOUT), Script::new(PURCHASE));
    let user_limit = number("USER_LIMIT", 10);
    let shop = Shop { redis, checkout: checkout_script, purchase: purchase_script, user_limit, ledger };
    let routes = Router::new().route("/checkout", post(checkout)).route("/purchase", post(purchase));
    let bind = std::env::var("BIND_ADDR").unwrap_or_else(|_| "127.0.0.1".into());
    let listener = tokio::net::TcpListener::bind(format!("{bind}:{}", number("SERVER_PORT", 8080))).await?;
    axum::serve(listener, routes.with_state(Arc::new(shop))).await?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = std::env::var("WORKERS").ok().and_then(|text| text.parse().ok()) {
        runtime.worker_threads(workers);
    }
    runtime.enable_all().build()?.block_on(start())
}
