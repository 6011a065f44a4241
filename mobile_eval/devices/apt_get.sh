# Sourced by the set-up scripts, which start each step by a line "== NAME": setup.py names the one that failed.
step() { echo "== $*"; }

install_packages() { # "DEBIAN-PACKAGE ...", none if empty
  if [ -n "$1" ]; then
    step "apt-get install $1"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qy update
    apt-get -qy install --no-install-recommends $1
  fi
}
