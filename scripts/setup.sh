#!/usr/bin/env bash
# Installs what building (and, with `test`, testing) Weft needs beside a Rust tool chain: only what is missing, each
# said in one line. For Debian 12 and Ubuntu 24.04; elsewhere it says what is wanted.
#   scripts/setup.sh          to build and run
#   scripts/setup.sh compiler only the C compiler and linker that cargo itself calls
#   scripts/setup.sh test     also what the tests and benchmarks compare with
#   scripts/setup.sh check    also what `make check` calls
#   scripts/setup.sh fuzz     also cargo-fuzz, for which a nightly tool chain of rustup must be there
set -euo pipefail

BPF_LINKER=0.13.0
LLVM=22
# Of the key that signs apt.llvm.org.
LLVM_KEY=6084F3CF814B57C1CF12EFD515CF4D18AF4F7421
what=${1:-build}

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

case $what in build | compiler | test | check | fuzz) ;; *) die "$what: expected build, compiler, test, check or fuzz" ;; esac
[ "$(uname -s)" = Linux ] || die "Weft needs Linux"
[ -r /sys/kernel/btf/vmlinux ] || die "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF), which Weft needs"
have cargo || die "no cargo: install a Rust tool chain first (https://rustup.rs)"

# A compiler that has the source of its library (the kernel programs' `core` is built from it) and is not too old.
MSRV=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$(dirname "$0")/../Cargo.toml")
has_source() {
  [ -n "$1" ] && [ -e "$("$1" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/core/Cargo.toml" ] &&
    [ "$(printf '%s\n' "$MSRV" "$("$1" --version | cut -d' ' -f2)" | sort -V | head -n1)" = "$MSRV" ]
}
rustup_rustc() { have rustup && rustup which ${1:+--toolchain "$1"} rustc 2>/dev/null || true; }
any_source() { has_source "$(rustup_rustc nightly)" || has_source "$(rustup_rustc)" || has_source /usr/bin/rustc; }

apt=()
want() { installed "$1" || apt+=("$1"); }
# Whether apt can install it, of this version at least; asks for new lists once, before it says no. (No pipe into
# `grep -q`: with pipefail the writer's broken pipe would count.)
candidate() {
  local answer
  answer=$(apt-cache policy "$1" 2>/dev/null || true)
  [[ $answer =~ Candidate:\ ([^\(\ ][^[:space:]]*) ]] && dpkg --compare-versions "${BASH_REMATCH[1]}" ge "${2:-0}"
}
known() {
  candidate "$@" && return
  [ "$(id -u)" = 0 ] && [ -z "${updated:-}" ] || return 1
  updated=1
  apt-get update -qq >/dev/null && candidate "$@"
}

if have apt-get; then
  have cc || want gcc
  [ -e /usr/include/stdio.h ] || want libc6-dev
  if [ "$what" != compiler ] && ! have bpf-linker; then
    have g++ || want g++
    want zlib1g-dev
    want libzstd-dev
  fi
  if [ "$what" = test ]; then
    # Not beside another package's: Debian's would take its place.
    have containerd || want containerd
    have runc || want runc
    want containernetworking-plugins
    have iptables-restore || want iptables
  fi
fi

# Whether a file holds exactly one primary key, with this fingerprint.
only_key() {
  local found home
  home=$(mktemp -d)
  found=$(gpg --homedir "$home" --show-keys --with-colons "$2" 2>/dev/null |
    awk -F: '$1 == "pub" { primary = 1; next } $1 == "fpr" && primary { print $10; primary = 0 }')
  rm -rf "$home"
  [ "$found" = "$1" ]
}

need_root() { [ "$(id -u)" = 0 ] || die "$* needs root: run it with sudo"; }
apt_install() {
  have apt-get || die "no apt-get here: please install $*"
  need_root "installing $*"
  say "apt-get install $*"
  if ! DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/tmp/weft-setup.$$ 2>&1; then
    apt-get update -qq >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/tmp/weft-setup.$$ 2>&1 ||
      { cat /tmp/weft-setup.$$ >&2; rm -f /tmp/weft-setup.$$; die "apt-get failed, see above"; }
  fi
  rm -f /tmp/weft-setup.$$
}

if [ "$what" = compiler ]; then
  if [ ${#apt[@]} -gt 0 ]; then apt_install "${apt[@]}"; fi
  have cc || die "no C compiler (cc) here, which cargo links with: please install one"
  exit
fi

if ! any_source; then
  if have apt-get && known rust-web-src "$MSRV"; then
    # Debian keeps a current compiler for its browsers. An older one of them is replaced.
    apt+=(rustc-web cargo-web rust-web-src)
  elif have rustup; then
    say "rustup component add rust-src"
    rustup -q component add rust-src
  else
    die "no Rust compiler of version $MSRV with the source of its library: install rustup (https://rustup.rs), then run this again"
  fi
fi
if [ ${#apt[@]} -gt 0 ]; then apt_install "${apt[@]}"; fi
any_source || die "no Rust compiler here is of version $MSRV and has the source of its library (rustup component add rust-src)"

if ! have bpf-linker; then
  if [ ! -x /usr/lib/llvm-$LLVM/bin/llvm-config ]; then
    if ! known llvm-$LLVM-dev; then
      have apt-get || die "no LLVM $LLVM (llvm-config, libPolly), which bpf-linker is built with"
      need_root "adding apt.llvm.org for LLVM $LLVM"
      have curl || apt_install curl ca-certificates
      have gpg || apt_install gpg
      release=$(. /etc/os-release && echo "$VERSION_CODENAME")
      say "adding https://apt.llvm.org/$release to apt's sources, for LLVM $LLVM"
      # The key counts for this source alone, and only if it is the known one.
      key=$(mktemp)
      curl -fsSL --max-time 60 https://apt.llvm.org/llvm-snapshot.gpg.key -o "$key" || die "download https://apt.llvm.org/llvm-snapshot.gpg.key failed"
      only_key "$LLVM_KEY" "$key" || { rm -f "$key"; die "the key of apt.llvm.org is not the expected $LLVM_KEY: nothing was installed from there"; }
      install -D -m 644 "$key" /etc/apt/keyrings/apt.llvm.org.asc
      rm -f "$key"
      echo "deb [signed-by=/etc/apt/keyrings/apt.llvm.org.asc] https://apt.llvm.org/$release/ llvm-toolchain-$release-$LLVM main" >/etc/apt/sources.list.d/llvm-$LLVM.list
      apt-get update -qq >/dev/null
    fi
    apt_install llvm-$LLVM-dev libpolly-$LLVM-dev
  fi
  say "cargo install bpf-linker $BPF_LINKER"
  # All its work is done in LLVM: to optimise the rest would only take time.
  LLVM_PREFIX=/usr/lib/llvm-$LLVM CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --quiet --locked bpf-linker --version $BPF_LINKER \
    --no-default-features --features llvm-$LLVM
  have bpf-linker || die "bpf-linker was installed into cargo's bin directory, which is not in PATH: add ~/.cargo/bin"
fi

if ! have kubectl; then
  case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) arch= ;; esac
  url=https://dl.k8s.io/release/v1.32.4/bin/linux/$arch/kubectl
  file=$(mktemp)
  if [ "$(id -u)" = 0 ] && [ -n "$arch" ] && have curl && curl -fsSL --max-time 120 "$url" -o "$file" 2>/dev/null &&
    echo "$(curl -fsSL --max-time 30 "$url.sha256" 2>/dev/null)  $file" | sha256sum --check --status 2>/dev/null; then
    say "kubectl 1.32.4 from dl.k8s.io to /usr/local/bin"
    install -m 755 "$file" /usr/local/bin/kubectl
  elif have apt-get; then
    apt_install kubernetes-client
  else
    say "no kubectl here: Weft works without, but you will want it"
  fi
  rm -f "$file"
fi

if [ "$what" = check ] && ! have cargo-deny; then
  say "cargo install cargo-deny (some minutes)"
  cargo install --quiet --locked cargo-deny --version 0.20.2
fi

if [ "$what" = fuzz ]; then
  cargo +nightly --version >/dev/null 2>&1 || die "fuzzing needs a nightly tool chain: rustup toolchain install nightly"
  if ! have cargo-fuzz; then
    say "cargo install cargo-fuzz"
    cargo install --quiet --locked cargo-fuzz --version 0.13.2
  fi
fi
