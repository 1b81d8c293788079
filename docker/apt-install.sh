#!/bin/sh
# Installs what a build stage compiles with: apt-install.sh WANTED..., where a wanted header stands for Python's own.
set -eu
packages=
for wanted in "$@"; do
  case $wanted in
    Python.h) [ -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || packages="$packages libpython3-dev" ;;
    *) packages="$packages $wanted" ;;
  esac
done
[ ! -f /run/secrets/apt.conf ] || export APT_CONFIG=/run/secrets/apt.conf
apt-get -q update
# shellcheck disable=SC2086 - a list
DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $packages
