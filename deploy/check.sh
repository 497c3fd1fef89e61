#!/usr/bin/env bash
# Checks what is deployed without deploying it: the Kubernetes manifests against the API's schemas,
# strictly (an unknown or misspelt key is an error), and docker-compose.yml with every Compose that
# is installed. Needs python3 with venv; the validator is kept in FLEXCORE_CACHE.
set -euo pipefail
cd "$(dirname "$0")/.."

# Brings the schemas of Kubernetes 1.37 with it, so nothing else is fetched.
validator=1.37.0
cache=${FLEXCORE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/flexcore}
place="$cache/kubernetes-validate-$validator"

if [ ! -x "$place/bin/kubernetes-validate" ]; then
    mkdir -p "$cache"
    rm -rf "$place.unfinished"
    python3 -m venv "$place.unfinished"
    "$place.unfinished/bin/python" -m pip install --quiet --disable-pip-version-check \
        "kubernetes-validate==$validator"
    # Scripts name their folder: run by the interpreter, they may be moved.
    mv "$place.unfinished" "$place"
fi

# What kubectl takes; kustomize's own file has no such schema.
manifests=()
for file in deploy/kubernetes/*.yaml; do
    [ "${file##*/}" = kustomization.yaml ] || manifests+=("$file")
done
"$place/bin/python" "$place/bin/kubernetes-validate" --strict "${manifests[@]}" || {
    echo "$0: a manifest is wrong" >&2
    exit 1
}

# Names of files are in a list there: each of ours has to be in it.
for file in "${manifests[@]}"; do
    grep -q "^  - ${file##*/}$" deploy/kubernetes/kustomization.yaml || {
        echo "$0: $file is not in kustomization.yaml" >&2
        exit 1
    }
done

checked=no
for compose in "docker compose" docker-compose; do
    # Words: a command and its option.
    # shellcheck disable=SC2086
    if version=$($compose version --short 2> /dev/null); then
        $compose config --quiet
        echo "docker-compose.yml passed for $compose $version"
        checked=yes
    fi
done
[ $checked = yes ] || echo "docker-compose.yml: not checked, no Compose is installed"
