# What the checks share. Sourced by them, in the repository's folder.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
VERSION=${VERSION:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)}
BINARY=$PWD/target/dist/bluehook-$VERSION-linux-amd64
deb_of() { ls "$PWD"/target/dist/bluehook_*_"$1".deb | head -n 1; }
PATH_OF_EVENTS=/webhooks/bluereplies
SECRET=whsec_packaging
WORK=$(mktemp -d)
fails=0
children=()

# ok WHAT COMMAND…: says how it went; the output only where it failed.
ok() {
    local what=$1; shift
    if "$@" > "$WORK/last" 2>&1; then
        echo "ok   $what"
    else
        fails=$((fails + 1))
        echo "FAIL $what"
        tail -n 20 "$WORK/last" | sed 's/^/     /'
    fi
}

finish() { [ "$fails" = 0 ]; }

# A process of the check, ended with it.
start() { "$@" & children+=($!); }
end_all() {
    local child
    for child in "${children[@]}"; do kill "$child" 2>/dev/null; done
    for child in "${children[@]}"; do wait "$child" 2>/dev/null; done
    rm -rf "$WORK"
}
trap end_all EXIT

# until_true SECONDS COMMAND…
until_true() {
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { "$@"; return 1; }
        sleep 0.1
    done
}

sign() { printf %s "$1" | openssl dgst -sha256 -hmac "$SECRET" | sed 's/.* //'; }

event() { printf '{"eventId":"%s","type":"message.received","data":{"messageId":"m_%s","from":"+15550001","body":"hi"}}' "$1" "$1"; }

# post URL EVENTID [CURL-OPTIONS…]: prints the status.
post() {
    local body; body=$(event "$2")
    curl -sS -m 10 -o /dev/null -w '%{http_code}' "${@:3}" -H "x-bluereplies-signature: $(sign "$body")" --data-binary "$body" "$1"
}

# certificate NAME SUBJECTALTNAME FOLDER: NAME.pem and NAME.key, to be trusted as they are.
certificate() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" -addext "subjectAltName=$2" \
        -addext basicConstraints=critical,CA:FALSE -keyout "$3/$1.key" -out "$3/$1.pem" 2>/dev/null
}

is() { local got; got=$("${@:2}") && [ "$got" = "$1" ] || { echo "not $1 but: $got"; return 1; }; }
