#!/usr/bin/env bash
# The mesh beside HAProxy and nginx (stream): the same certificates, cipher, backend and client, one run.
#
# Two network namespaces; in each runs one proxy of each kind, mutual TLS 1.3 between them, no session
# resumption. Prints a table in Markdown. CPU time and memory are those of both proxies of a kind together, with all of
# their processes. Needs root, a release build, and Debian's haproxy, nginx, libnginx-mod-stream, apache2-utils, curl,
# openssl, python3. REQUESTS, MEGABYTES, CONNECTIONS and ROUNDS change how much is done.
set -euo pipefail
cd "$(dirname "$0")/.."
mesh="${CARGO_TARGET_DIR:-$PWD/target}/release/service-mesh"
work="$(mktemp -d)"
chmod 755 "$work"
a="figures-a-$$" b="figures-b-$$"
requests="${REQUESTS:-4000}" megabytes="${MEGABYTES:-2000}" connections="${CONNECTIONS:-1000}"
trap 'for n in $a $b; do ip netns pids $n | xargs -r kill -9 || true; ip netns del $n || true; done; rm -rf "$work"' EXIT
in_a() { ip netns exec "$a" "$@"; }
in_b() { ip netns exec "$b" "$@"; }

ip netns add "$a"; ip netns add "$b"
ip -n "$a" link add eth0 type veth peer name eth0 netns "$b"
ip -n "$a" addr add 10.78.0.1/24 dev eth0; ip -n "$b" addr add 10.78.0.2/24 dev eth0
for n in "$a" "$b"; do ip -n "$n" link set lo up; ip -n "$n" link set eth0 up; done

tls="$work/tls-config"; mkdir "$tls"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout "$work/ca.key" -out "$tls/mesh-ca.pem" \
    -subj /CN=mesh -days 2 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$tls/key.pem" -out "$work/csr" -subj /CN=web 2>/dev/null
printf 'subjectAltName=DNS:web\nbasicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n' > "$work/ext"
openssl x509 -req -in "$work/csr" -CA "$tls/mesh-ca.pem" -CAkey "$work/ca.key" -CAcreateserial -days 1 -extfile "$work/ext" \
    -out "$tls/certChain.pem" 2>/dev/null
cat "$tls/mesh-ca.pem" >> "$tls/certChain.pem" # as the Coordinator hands it out
cp "$tls/mesh-ca.pem" "$tls/coordinator-root-ca.pem"
cat "$tls/certChain.pem" "$tls/key.pem" > "$work/both.pem"

cat > "$work/backend.conf" <<C
daemon off; worker_processes 1; pid $work/backend.pid; error_log stderr; worker_rlimit_nofile 20000;
events { worker_connections 9000; } http { access_log off; sendfile on; keepalive_requests 1000000; keepalive_timeout 600s;
client_body_temp_path $work/t1; proxy_temp_path $work/t2; fastcgi_temp_path $work/t3; uwsgi_temp_path $work/t4; scgi_temp_path $work/t5;
server { listen 8080 backlog=4096; location /small { return 200 "hello"; } location /large { alias $work/large; } } }
C
truncate -s "${megabytes}M" "$work/large"
haproxy_global="global
 nbthread 2
 maxconn 9000
defaults
 mode tcp
 timeout connect 10s
 timeout client 600s
 timeout server 600s"
cat > "$work/ha-a.cfg" <<C
$haproxy_global
listen a
 bind 127.0.0.1:9001
 server b 10.78.0.2:9101 ssl crt $work/both.pem ca-file $tls/mesh-ca.pem verify required ssl-min-ver TLSv1.3 ciphersuites TLS_AES_256_GCM_SHA384 no-ssl-reuse
C
cat > "$work/ha-b.cfg" <<C
$haproxy_global
listen b
 bind :9101 ssl crt $work/both.pem ca-file $tls/mesh-ca.pem verify required ssl-min-ver TLSv1.3 no-tls-tickets
 server app 127.0.0.1:8080
C
nginx_stream() {
    echo "load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; worker_processes 2; pid $work/$1.pid;
    error_log stderr; worker_rlimit_nofile 20000; events { worker_connections 9000; } stream { tcp_nodelay on; $2 }" > "$work/$1.conf"
}
nginx_stream ngx-a "server { listen 127.0.0.1:9002; proxy_timeout 600s; proxy_pass 10.78.0.2:9102; proxy_ssl on; proxy_ssl_session_reuse off;
    proxy_ssl_certificate $tls/certChain.pem; proxy_ssl_certificate_key $tls/key.pem; proxy_ssl_protocols TLSv1.3;
    proxy_ssl_trusted_certificate $tls/mesh-ca.pem; proxy_ssl_verify on; proxy_ssl_name web; }"
nginx_stream ngx-b "server { listen 9102 ssl; proxy_timeout 600s; proxy_pass 127.0.0.1:8080; ssl_certificate $tls/certChain.pem;
    ssl_certificate_key $tls/key.pem; ssl_protocols TLSv1.3; ssl_client_certificate $tls/mesh-ca.pem; ssl_verify_client on;
    ssl_session_tickets off; ssl_session_cache off; }"

in_b nginx -c "$work/backend.conf" 2>/dev/null &
in_a haproxy -q -f "$work/ha-a.cfg" & ha_a=$!
in_b haproxy -q -f "$work/ha-b.cfg" & ha_b=$!
in_a nginx -c "$work/ngx-a.conf" 2>/dev/null & ng_a=$!
in_b nginx -c "$work/ngx-b.conf" 2>/dev/null & ng_b=$!
in_a "$mesh" --log-level warn --directory "$work" --egress 'web#127.0.0.1:9000#10.78.0.2:8080' & me_a=$!
in_b "$mesh" --log-level warn --directory "$work" --ingress 'h#9101#true##n#9102#true##p#8081#true' & me_b=$!
sleep 3

# A process, its children and theirs (nginx has workers).
family() { local p; for p in "$@"; do echo "$p"; family $(pgrep -P "$p" || true); done; }
ticks() { local sum=0 p; for p in $(family "$@"); do sum=$((sum + $(awk '{ print $14 + $15 }' "/proc/$p/stat"))); done; echo "$sum"; }

# Memory of all processes, in KiB; what they share counts once.
memory() { local sum=0 p; for p in $(family "$@"); do sum=$((sum + $(awk '/^Pss:/ { print $2 }' "/proc/$p/smaps_rollup"))); done; echo "$sum"; }

# Opens connections that each have answered once, says so, and keeps them until its input ends.
cat > "$work/hold.py" <<'P'
import socket, sys
held = []
for _ in range(int(sys.argv[2])):
    held.append(socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=60))
    held[-1].sendall(b"GET /small HTTP/1.1\r\nHost: web\r\n\r\n")
    assert held[-1].recv(4096).startswith(b"HTTP/1.1 200")
print("held", flush=True)
sys.stdin.read()
P

measure() {
    local name="$1" url="$2"; shift 2
    in_a curl -sS --noproxy '*' -o /dev/null "$url/small" || { echo "| $name | does not answer |"; return; }
    local before after rate speed gbit idle
    # Before anything else: allocators keep what was freed.
    idle="$(memory "$@")"
    coproc hold { timeout 120 ip netns exec "$a" python3 "$work/hold.py" "${url##*:}" "$connections"; }
    read -r _ <&"${hold[0]}"
    local memory; memory="$(awk "BEGIN { printf \"%.1f\", ($(memory "$@") - $idle) * 1000 / $connections / 1024 }")"
    eval "exec ${hold[1]}>&-"; wait "$hold_PID" 2>/dev/null || true
    in_a timeout 120 ab -q -k -c 1 -n "$requests" -e "$work/lat.csv" "$url/small" >/dev/null 2>&1
    local p50 p99
    p50="$(awk -F, '$1 == 50 { print $2 }' "$work/lat.csv")"; p99="$(awk -F, '$1 == 99 { print $2 }' "$work/lat.csv")"
    before="$(ticks "$@")"
    rate="$(in_a timeout 240 ab -q -c 32 -n "$requests" "$url/small" 2>/dev/null | awk '/^Requests per second/ { print $4 }')"
    after="$(ticks "$@")"
    local cpu_ms; cpu_ms="$(awk "BEGIN { printf \"%.2f\", ($after - $before) * 10 / $requests }")"
    before="$(ticks "$@")"
    speed="$(in_a curl -sS --noproxy '*' --max-time 240 -o /dev/null -w '%{speed_download}' "$url/large")"
    after="$(ticks "$@")"
    gbit="$(awk "BEGIN { printf \"%.2f | %.2f\", $speed * 8 / 1e9, $megabytes * 1048576 * 8 / 1e9 / (($after - $before) / 100) }")"
    echo "| $name | $p50 | $p99 | $rate | $cpu_ms | $gbit | $memory |"
}

echo "| proxy | latency p50, ms | p99, ms | new connections/s | CPU per connection, both ends, ms | Gbit/s | Gbit per CPU second, both ends | MiB per 1000 connections, both ends |"
echo "|---|---|---|---|---|---|---|---|"
for round in $(seq "${ROUNDS:-2}"); do
    measure "service-mesh ($round)" http://127.0.0.1:9000 "$me_a" "$me_b"
    measure "HAProxy ($round)" http://127.0.0.1:9001 "$ha_a" "$ha_b"
    measure "nginx stream ($round)" http://127.0.0.1:9002 "$ng_a" "$ng_b"
done
