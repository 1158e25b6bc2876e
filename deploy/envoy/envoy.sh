#!/bin/bash
# Runs Envoy with these arguments. On SIGTERM Envoy, which by itself would end all calls at once, first asks its clients
# to connect elsewhere and finishes what is under way, for ENVOY_DRAIN_S seconds at most.
#   bash /etc/envoy/envoy.sh -c /etc/envoy/envoy.yaml
# Wants bash, for /dev/tcp: Envoy's image has it, and no curl. ENVOY_ADMIN_PORT is the configuration's `admin` port.
set -u
drain_s=${ENVOY_DRAIN_S:-30}
admin_port=${ENVOY_ADMIN_PORT:-9901}

# Asks the admin interface: METHOD PATH.
ask() {
    exec 3<>"/dev/tcp/127.0.0.1/$admin_port" || return
    printf '%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
    cat <&3
    exec 3>&-
}

drain() {
    trap '' TERM
    is_stopping=true
    echo "envoy.sh: finishing the calls under way, for $drain_s s at most" >&2
    if ask POST '/drain_listeners?graceful' >/dev/null; then
        # For 2 s (--drain-time-s) new calls are still taken, while clients learn of it; then Envoy no longer listens.
        local ends_at=$((SECONDS + drain_s)) listens_until=$((SECONDS + 3))
        while ((SECONDS < ends_at)); do
            sleep 0.2
            ((SECONDS < listens_until)) && continue
            ask GET '/stats?filter=^http\.trivec\.downstream_rq_active$' | grep -q 'downstream_rq_active: 0' && break
        done
    else
        echo "envoy.sh: nothing answers on the admin port $admin_port: calls under way are lost" >&2
    fi
    kill -TERM "$envoy"
}

envoy --drain-time-s 2 --drain-strategy immediate "$@" &
envoy=$!
is_stopping=false
trap drain TERM
wait "$envoy"
status=$?
# A signal ended that wait; this one ends with Envoy.
if $is_stopping; then
    wait "$envoy"
    status=$?
fi
exit "$status"
