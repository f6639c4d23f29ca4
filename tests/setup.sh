# shellcheck shell=bash
# Installs the scripts' dependencies: system packages and Python libraries. Sourced by scripts that
# define `say WHAT`, which writes a line, and `fail WHAT`, which ends the script.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# pinned_toolchain: has cargo use the compiler of rust-toolchain.toml. Where it is installed under
# another name (`stable` of the same version) and can't be downloaded, that one.
pinned_toolchain() {
  # Where rustup puts it, which a shell from before does not have in its path.
  command -v cargo > /dev/null || PATH=$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin
  command -v cargo > /dev/null || fail "there is no cargo: install Rust 1.95 from https://rustup.rs"
  ! (cd "$repository" && cargo --version > /dev/null 2>&1) || return 0
  local pinned name
  pinned=$(sed -n 's/^channel = "\(.*\)"$/\1/p' "$repository/rust-toolchain.toml")
  while read -r name _; do
    if [[ $(rustc "+$name" --version 2> /dev/null) == "rustc $pinned "* ]]; then
      export RUSTUP_TOOLCHAIN=$name
      return 0
    fi
  done < <(rustup toolchain list)
  fail "there is no Rust $pinned: rustup toolchain install $pinned"
}

# want PROGRAM PACKAGE…: records the packages if the program is missing.
packages=()
want() {
  local program=$1
  shift
  command -v "$program" > /dev/null || [[ -x /usr/sbin/$program ]] || packages+=("$@")
}

# want_compiler: notes what builds the cryptography and the allocator, which are in C.
want_compiler() {
  want cc gcc libc6-dev
  want make make
}

# want_python: notes what virtual_environment takes.
want_python() {
  want python3 python3
  python3 -c 'import ensurepip' 2> /dev/null || packages+=(python3-venv)
}

# install_wanted: installs the recorded packages.
install_wanted() {
  ((${#packages[@]} > 0)) || return 0
  command -v apt-get > /dev/null || fail "install what this machine calls: ${packages[*]}"
  [[ $EUID == 0 ]] || fail "as root: apt-get install ${packages[*]}"
  say "installing ${packages[*]}"
  apt-get update -q > /dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}" > /dev/null
  packages=()
}

# virtual_environment FOLDER REQUIREMENTS [OPTION…]: a Python with the libraries that the file
# lists, recreated when the file changes. OPTIONs are pip's.
virtual_environment() {
  local folder=$1 requirements=$2
  shift 2
  ! cmp -s "$requirements" "$folder/installed" || return 0
  say "installing the Python libraries of $requirements"
  rm -rf "$folder"
  python3 -m venv "$folder" || fail "python3 -m venv: install python3-venv"
  "$folder/bin/pip" install -q --disable-pip-version-check "$@" -r "$requirements"
  cp "$requirements" "$folder/installed"
}
