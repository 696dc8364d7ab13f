#!/bin/sh
# Provisions a Debian 13 machine for `make verify`, as root: the guest's image and the Vagrant box while
# they are built, and a running Vagrant machine of any box. Installed packages are left unchanged.
#
#   provision.sh packages service|checkout   print the Debian packages that each needs
#   provision.sh service                     prepare a host for the server and the jobs of the checks
#   provision.sh checkout DIRECTORY          prepare a host and a checkout for `make verify`
set -eu

service="openssl procps python3 util-linux"
checkout="$service ca-certificates git make openssh-client python3-venv rsync"
# With this file, `make verify` runs every check on the machine itself, fork bombs included.
marker=/etc/jobworker-machine
# The locked packages, installed in the project's own box.
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

as_owner() { # Runs a command as the checkout's owner.
    runuser -u "$(stat -c %U .)" -- "$@"
}

lock() {
    openssl dgst -sha256 -r <"$1" | cut -d' ' -f1
}

use_box_packages() { # Uses the box's packages if they match the lock file and the checkout has no .venv.
    [ ! -e .venv ] && [ "$(cat $ready/made-from-lock 2>/dev/null)" = "$(lock requirements.lock)" ] ||
        return 0
    echo "using the locked Python packages of the box"
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
    echo "provisioned by jobworker for running checks" >$marker
    ;;
checkout)
    cd "${2:?provision.sh checkout: name the directory}"
    install_missing "$checkout"
    use_box_packages
    as_owner .ci/setup
    echo "provisioned by jobworker for running checks" >$marker
    ;;
*)
    echo "provision.sh '${1:-}': it must be packages, service or checkout" >&2
    exit 2
    ;;
esac
