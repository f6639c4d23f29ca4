# shellcheck shell=bash
# Keeps what is built from other projects' sources, and what is downloaded for that, outside of the
# repository: another clone on this machine finds it there. Sourced, with `set -e`.
#
# An entry is a folder whose name ends with the hash of all that it is made from. It is filled under
# another name and renamed when it is complete, with a manifest of its files' sums, which are
# compared whenever it is used.

cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/naru
keep_days=60 # that an entry is kept after its last use

# hash_of TEXT FILE…: the hash of the text and of the files' content.
hash_of() {
  local text=$1
  shift
  { printf '%s\n' "$text"; cat /dev/null "$@"; } | sha256sum | cut -c1-12
}

# sums FOLDER: the sums of its files and the targets of its links, except for the manifest.
sums() {
  (
    cd "$1"
    find . -type f ! -path ./manifest -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
    find . -type l -printf '%p -> %l\n' | LC_ALL=C sort
  )
}

# complete ENTRY: whether it is as it was built.
complete() { [[ -f $1/manifest ]] && sums "$1" | cmp -s - "$1/manifest"; }

# provide NAME ENTRY RECIPE [WHAT]: runs `RECIPE FOLDER` to make the entry, unless it is complete.
# Scripts that need the same at the same time wait for one of them.
provide() {
  local name=$1 entry=$2 recipe=$3 work=$cache/.$1.new lock start=$SECONDS
  mkdir -p "$cache"
  exec {lock}> "$cache/.$name.lock"
  flock "$lock"
  if complete "$entry"; then
    touch "$entry" # its last use
    exec {lock}>&-
    return
  fi
  [[ ! -e $entry ]] || printf '%s is damaged and is built again\n' "$entry"
  printf 'building %s: %s\n' "$name" "${4:-}"
  rm -rf "$work"
  mkdir "$work"
  # Not in a condition, which would disable `set -e` inside. The recipe does not get the lock, which
  # a process that it leaves behind would hold.
  (set -e; "$recipe" "$work") {lock}>&-
  sums "$work" > "$work.manifest"
  mv "$work.manifest" "$work/manifest"
  rm -rf "$entry"
  mv "$work" "$entry"
  find "$cache" -maxdepth 1 -name "$name-*" -mtime +"$keep_days" -exec rm -rf {} +
  exec {lock}>&-
  printf 'built %s in %d s\n' "$name" $((SECONDS - start))
}
