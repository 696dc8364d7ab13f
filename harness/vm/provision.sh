#!/bin/sh
# Makes a Debian 13 a machine to verify in, as root: the guest's image and the Vagrant box while they
# are built, and a Vagrant machine of any box when it is up. What is there already is left alone.
#
#   provision.sh packages service|checkout   which Debian packages each needs
#   provision.sh service                     a host for the server and for the jobs of the checks
#   provision.sh checkout DIRECTORY          and all that `make verify` takes, in this checkout
set -eu

service="openssl procps python3 util-linux"
checkout="$service ca-certificates git make openssh-client python3-venv rsync"
# What `make verify` looks for to know that a machine is there to be verified in, forks bombs and all.
marker=/etc/jobworker-machine
# Locked packages, ready to use, that the project's own box brings.
ready=/opt/jobworker/venv

install_missing() {
    missing=
    for package in $1; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "installing$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

as_owner() { # Runs the rest as the user whose checkout it is.
    runuser -u "$(stat -c %U .)" -- "$@"
}

lock() {
    openssl dgst -sha256 -r <"$1" | cut -d' ' -f1
}

take_ready() { # Uses the box's packages if they are of this lock file and the checkout has none yet.
    [ ! -e .venv ] && [ "$(cat $ready/made-from-lock 2>/dev/null)" = "$(lock requirements.lock)" ] ||
        return 0
    echo "taking the locked Python packages from the box"
    as_owner ln -s $ready .venv
    as_owner .venv/bin/python -m pip --disable-pip-version-check install -qq \
        --no-deps --no-build-isolation --no-index -e .
    cat requirements.lock pyproject.toml | openssl dgst -sha256 -r | cut -d' ' -f1 |
        as_owner tee .venv/made-from >/dev/null
}

case ${1:-} in
packages)
    case ${2:-} in
    service) echo "$service" ;;
    checkout) echo "$checkout" ;;
    *) echo "provision.sh packages '${2:-}': it must be service or checkout" >&2; exit 2 ;;
    esac
    ;;
service)
    install_missing "$service"
    echo "made by jobworker's provision.sh, to be verified in" >$marker
    ;;
checkout)
    cd "${2:?provision.sh checkout: name the directory}"
    install_missing "$checkout"
    take_ready
    as_owner .ci/setup
    echo "made by jobworker's provision.sh, to be verified in" >$marker
    ;;
*)
    echo "provision.sh '${1:-}': it must be packages, service or checkout" >&2
    exit 2
    ;;
esac
