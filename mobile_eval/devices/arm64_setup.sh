#!/bin/bash
# Build an AArch64 userland: Debian's packages and the real aarch64 wheels, to run under qemu-user.
#
#   arm64_setup.sh FOLDER PYTHON "DEBIAN-PACKAGE ..." "WHEEL==VERSION ..."
#
# FOLDER/base         the userland, with the wheels in opt/site
# FOLDER/cortex-a53   the same by links, with the /proc/cpuinfo of that processor: ONNX Runtime reads it and crashes on
#                     that of an x86 host, or picks instructions that the emulated core does not have
# FOLDER/armcount.so  counts instructions
set -euo pipefail
folder=$1 python=$2 packages=$3 wheels=$4
suite=bookworm version=3.11 # Debian 12: its python3 is the one that cp311 wheels want
userland=python3-minimal,libpython3-stdlib,libstdc++6,libgcc-s1,libgomp1,busybox-static
. "$(dirname "$0")/apt_get.sh"

install_packages "$packages"

step "unpack an ARM64 Debian" # executes nothing of it: needs no binfmt
mkdir -p "$folder"
mirrors=() # where this machine's apt takes the suite from; on another system mmdebstrap's own choice
if command -v apt-get >/dev/null; then
  line='$(CODENAME) deb $(SITE) $(RELEASE) $(COMPONENT)'
  mapfile -t mirrors < <(apt-get indextargets --format "$line" "Created-By: Packages" "Origin: Debian" |
    sed -n "s/^$suite[^ ]* //p" | sort -u)
fi
mmdebstrap --quiet --variant=extract --architectures=arm64 --include="$userland" "$suite" "$folder/base" "${mirrors[@]}"

step "download $wheels for ARM64"
"$python" -m pip install --target "$folder/base/opt/site" --python-version "$version" --implementation cp --no-deps \
  --platform=manylinux_2_28_aarch64 --platform=manylinux_2_27_aarch64 --platform=manylinux_2_17_aarch64 \
  --platform=manylinux2014_aarch64 --only-binary=:all: --quiet $wheels

step "compile the instruction counter"
gcc -O2 -shared -fPIC -o "$folder/armcount.so" "$(dirname "$0")/armcount.c"

sysroot() { # PROFILE FEATURES VARIANT PART: the last three as Linux prints them
  step "link the sysroot of a $1"
  mkdir -p "$folder/$1/proc"
  for number in 0 1; do
    printf '%s\t: %s\n' processor "$number" BogoMIPS 38.40 Features "$2" "CPU implementer" 0x41 "CPU architecture" 8 \
      "CPU variant" "$3" "CPU part" "$4" "CPU revision" 1
    echo
  done >"$folder/$1/proc/cpuinfo"
  for path in "$folder"/base/*; do
    [ "${path##*/}" = proc ] || ln -s "../base/${path##*/}" "$folder/$1/"
  done

  step "try it as a $1"
  env -i PATH="$PATH" PYTHONPATH="$folder/base/opt/site" qemu-aarch64 -cpu "$1" -L "$folder/$1" \
    -plugin "$folder/armcount.so,out=$folder/counts.txt" "$folder/base/usr/bin/python3" \
    -c "import os, onnxruntime, ai_edge_litert.interpreter; os.getppid()"
  if [ ! -s "$folder/counts.txt" ]; then
    echo "no counted instructions: this QEMU has another plugin interface. Use the qemu-user of Debian 12 (7.2)."
    exit 1
  fi
  rm "$folder/counts.txt"
}
a53="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
sysroot cortex-a53 "$a53" 0x0 0xd03
sysroot cortex-a76 "$a53 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp" 0x4 0xd0b
