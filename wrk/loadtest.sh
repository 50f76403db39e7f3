#!/usr/bin/env bash
# Puts a running server under load, then checks what its ledger has.
#
#   wrk/loadtest.sh                                     what docker-compose started
#   DATA_DIR=./data wrk/loadtest.sh                     an embedded server and its folder
#   HOST=http://shop:8080 POSTGRES_DSN=… wrk/loadtest.sh   any other
#
# Random checkouts, then purchases of up to 10,000 codes that the ledger has as unused. THREADS (2), CONNECTIONS (200)
# and SECONDS (10, for each half) can be set, and SHARED=1 where others shop at the same time. The codes go to codes.txt
# beside this file, or to the file that CODES names. Ends with 0 if the verdict is good, 1 if it is not, 2 if the test
# could not be made.
set -euo pipefail

# Bash changes this variable by itself: the value that was given is in the environment alone.
duration=$(printenv SECONDS || echo 10)
here=$(cd "$(dirname "$0")" && pwd)
host=${HOST:-http://127.0.0.1:8080}
threads=${THREADS:-2}
connections=${CONNECTIONS:-200}
export CODES=${CODES:-$here/codes.txt}
dsn=${POSTGRES_DSN:-postgres://postgres:postgres@127.0.0.1:5432/flashsale?sslmode=disable}
# How long the ledger may take for what was answered, in seconds: longer than reconciliation does.
patience=${PATIENCE:-30}

fail() {
    echo "loadtest: $*" >&2
    exit 2
}

check_arguments() {
    case ${1-} in
        '') ;;
        -h | --help) sed -n '2,/^set/{/^#/!d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
        *) fail "unknown argument $1: settings are environment variables, see --help" ;;
    esac
}

check_settings() {
    local name
    for name in duration threads connections patience; do
        [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "${name/duration/seconds} must be a whole number above 0, not '${!name}'"
    done
    ((connections >= threads)) || fail "there must be at least as many connections ($connections) as threads ($threads)"
    [[ -z ${DATA_DIR:-} || -z ${POSTGRES_DSN:-} ]] || fail "set DATA_DIR (embedded) or POSTGRES_DSN, not both"
    [[ -z ${DATA_DIR:-} || -r $DATA_DIR/ledger.db ]] || fail "there is no ledger to read in DATA_DIR: $DATA_DIR/ledger.db"
}

check_programs() {
    local program missing=()
    local -A package=([wrk]=wrk [jq]=jq [psql]=postgresql-client [sqlite3]=sqlite3)
    for program in wrk jq "$([[ -n ${DATA_DIR:-} ]] && echo sqlite3 || echo psql)"; do
        command -v "$program" >/dev/null || missing+=("${package[$program]}")
    done
    [ ${#missing[@]} = 0 ] || fail "missing programs; on Debian: apt-get install ${missing[*]}"
}

# One query to the ledger; columns are separated by |.
ask() {
    if [[ -n ${DATA_DIR:-} ]]; then
        sqlite3 -batch -readonly -cmd '.timeout 5000' "$DATA_DIR/ledger.db" "$1"
    else
        psql -XAtq -v ON_ERROR_STOP=1 -d "$dsn" -c "$1"
    fi
}

# Seconds with three decimals.
seconds() {
    printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000))
}

# The running sale: its id, items, limit, hold time in ms, seconds that it lasts, seconds left. Its clock is the
# ledger's.
running_sale() {
    if [[ -n ${DATA_DIR:-} ]]; then
        ask "WITH clock AS (SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS ms)
             SELECT sale_id, items, user_limit, hold_ms, (ends_at - starts_at) / 1000, (ends_at - ms) / 1000
             FROM sales, clock WHERE starts_at <= ms AND ms < ends_at"
    else
        ask "SELECT sale_id, items, user_limit, hold_ms, floor(extract(epoch FROM ends_at - starts_at))::bigint,
                    floor(extract(epoch FROM ends_at - now()))::bigint
             FROM sales WHERE starts_at <= now() AND now() < ends_at"
    fi
}

# Chooses the sale to load: the running one, or the next if too little is left of it.
choose_sale() {
    local length left needed=$((duration * 2 + 10)) row
    row=$(running_sale) || fail "the ledger cannot be asked"
    [ -n "$row" ] || fail "the ledger has no sale that is on: does the server run on this ledger?"
    IFS='|' read -r sale items limit hold_ms length left <<<"$row"
    ((left < needed)) || return 0
    ((length >= needed)) || fail "sales of $length s are too short for twice $duration s: set SECONDS"
    echo "sale $sale ends in $left s: waiting for the next one"
    sleep $((left + 1)) &
    child=$!
    wait "$child"
    child=
    choose_sale
}

# True in SQL for a hold whose time is not over, with a second to spare for the clocks.
alive() {
    if [[ -n ${DATA_DIR:-} ]]; then
        echo "created_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-$(seconds "$hold_ms") seconds', '+1 seconds')"
    else
        echo "created_at > now() - interval '$(seconds "$hold_ms") seconds' + interval '1 second'"
    fi
}

# How many checkouts and purchases the ledger has of the sale, separated by |.
rows() {
    ask "SELECT (SELECT count(*) FROM checkout_attempts WHERE sale_id = $sale),
                (SELECT count(*) FROM purchases WHERE sale_id = $sale)"
}

# Runs wrk with a script, shows how far it is, and leaves its report in the file $2.
run_wrk() {
    local script=$1 passed
    REPORT=$2 wrk -t"$threads" -c"$connections" -d"${duration}s" --timeout 5s -s "$here/$script" "$host" \
        >"$scratch/wrk.log" 2>&1 &
    child=$!
    for ((passed = 0; passed < duration; passed++)); do
        [ ! -t 2 ] || printf '\r%s: %d of %d s ' "$script" "$passed" "$duration" >&2
        sleep 1
        kill -0 "$child" 2>/dev/null || break
    done
    [ ! -t 2 ] || printf '\r\033[K' >&2
    local status=0
    wait "$child" || status=$?
    child=
    # wrk ends with 0 when its script fails, but then there is no report.
    [ "$status" = 0 ] && [ -s "$2" ] || fail "wrk failed on $host: $(grep -v '^Running' "$scratch/wrk.log" | head -n 3)"
}

# Waits until the ledger has at least $2 new rows in column $1 of `rows` and no more arrive. Sets `grown`.
wait_for_ledger() {
    local column=$1 wanted=$2 before=$3 now last=-1 until=$((SECONDS + patience))
    while true; do
        now=$(rows | cut -d'|' -f"$column") || fail "the ledger cannot be asked"
        grown=$((now - before))
        ((grown < wanted || now != last)) || return 0
        ((SECONDS < until)) || return 0
        last=$now
        sleep 0.5
    done
}

answered() {
    jq -r --arg status "$2" '.answers[$status] // 0' "$1"
}

# The reports of both halves side by side.
table() {
    jq -rn --slurpfile c "$scratch/checkouts" --slurpfile p "$scratch/purchases" '
        def ms: if . then . / 10 | round / 100 | "\(.) ms" else "-" end;
        def both(f): [($c[0] | f), ($p[0] | if .requests > 0 then f else "-" end)] | map(tostring);
        (["", "checkouts", "purchases"]),
        (["requests a second"] + both(.requests * 1000000 / ([.duration_us, 1] | max) | round)),
        (("50", "90", "99", "99.9") as $q | ["latency, \($q) %"] + both(.latency_us[$q] | ms)),
        (([$c[0].answers, $p[0].answers] | add | keys[]) as $s | ["answers \($s)"] + both(.answers[$s] // 0)),
        (["no answer (errors)"] + both(.errors | add // 0)) | @tsv' |
        while IFS= read -r line; do
            # Not read with IFS=tab: an empty first cell would be lost.
            printf '  %-26s%14s%14s\n' "${line%%$'\t'*}" "$(cut -f2 <<<"$line")" "$(cut -f3 <<<"$line")"
        done
    printf '  %-26s%14s%14s\n' "new rows in the ledger" "$new_checkouts" "$new_purchases"
    echo "  A row without a 200 is no loss: at its end wrk leaves up to $connections requests unanswered."
}

# A line of the verdict: $1 is an arithmetic condition.
check() {
    if (($1)); then
        echo "  ok     $2"
    else
        echo "  WRONG  $2"
        wrong=1
    fi
}

verdict() {
    local sold taken most ok_checkouts ok_purchases answers lost wrong=0 live
    live=$(alive)
    ok_checkouts=$(answered "$scratch/checkouts" 200)
    ok_purchases=$(answered "$scratch/purchases" 200)
    answers=$(jq '[.answers[]] | add // 0' "$scratch/checkouts") || fail "the reports cannot be read"
    # What no shopper should see: 503, errors of the connection, refusals that make no sense here.
    lost=$(jq -s '[.[0].answers | del(."200", ."409", ."429") | .[]] + [.[1].answers | del(."200", ."400", ."409") | .[]]
                  + [.[].errors | .[]] | add // 0' "$scratch/checkouts" "$scratch/purchases") ||
        fail "the reports cannot be read"
    sold=$(rows | cut -d'|' -f2) || fail "the ledger cannot be asked"
    taken=$(ask "SELECT count(*) FROM checkout_attempts WHERE sale_id = $sale AND (used OR $live)") ||
        fail "the ledger cannot be asked"
    most=$(ask "SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM checkout_attempts
                WHERE sale_id = $sale AND (used OR $live) GROUP BY user_id) AS users") ||
        fail "the ledger cannot be asked"
    check "sold <= items" "sold: $sold rows of purchases, of $items items"
    check "taken <= items" "taken: $taken items purchased or held, of $items"
    check "most <= limit" "no user is over the limit of $limit: the most is $most"
    check "ok_checkouts <= new_checkouts" "each checkout that was granted ($ok_checkouts) has its row ($new_checkouts new)"
    check "ok_purchases <= new_purchases" "each purchase that was granted ($ok_purchases) has its row ($new_purchases new)"
    if [ "${SHARED:-0}" = 0 ]; then
        check "new_checkouts <= ok_checkouts + connections && new_purchases <= ok_purchases + connections" \
            "no row is new but what was granted, or left unanswered at wrk's end (SHARED=1 if others shop here too)"
    fi
    check "answers > 0 && lost == 0" "the server answers, and with nothing else than it should ($lost other answers or errors)"
    return $wrong
}

clean_up() {
    [ -z "$child" ] || kill "$child" 2>/dev/null || true
    rm -rf "$scratch"
}

main() {
    local before codes new_checkouts new_purchases grown
    check_arguments "$@"
    check_settings
    check_programs
    scratch=$(mktemp -d)
    child=
    trap clean_up EXIT
    trap 'echo >&2; echo "loadtest: stopped" >&2; exit 130' INT TERM
    choose_sale
    before=$(rows) || fail "the ledger cannot be asked"
    echo "sale $sale: $items items, at most $limit to a user; $threads threads, $connections connections"
    echo "1/2  random checkouts for $duration s against $host"
    run_wrk random_checkout.lua "$scratch/checkouts"
    wait_for_ledger 1 "$(answered "$scratch/checkouts" 200)" "${before%|*}"
    new_checkouts=$grown
    : >"$CODES" || fail "the unused codes cannot be written to $CODES"
    ask "SELECT code FROM checkout_attempts WHERE sale_id = $sale AND NOT used AND $(alive)
         ORDER BY created_at DESC LIMIT 10000" >"$CODES" || fail "the ledger cannot be asked"
    codes=$(wc -l <"$CODES")
    if ((codes > 0)); then
        echo "2/2  purchases with $codes codes for $duration s"
        run_wrk purchase_test.lua "$scratch/purchases"
    else
        echo "2/2  no purchases: the ledger has no unused code of this sale (all is sold, or holds have expired)"
        echo "     To start over, wait for the next sale or see 'Try a load' in README.md"
        echo '{"requests":0,"duration_us":0,"latency_us":{},"answers":{},"errors":{}}' >"$scratch/purchases"
    fi
    wait_for_ledger 2 "$(answered "$scratch/purchases" 200)" "${before#*|}"
    new_purchases=$grown
    echo
    table
    echo
    if verdict; then
        echo "verdict: good"
    else
        echo "verdict: WRONG" >&2
        exit 1
    fi
}

main "$@"
