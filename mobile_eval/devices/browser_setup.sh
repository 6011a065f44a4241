#!/bin/bash
# Install what the browser device needs and lacks: Chromium and npm, Playwright, and the engines from npm.
#
#   browser_setup.sh FOLDER PYTHON "DEBIAN-PACKAGE ..." "PIP-REQUIREMENT ..." "NPM-PACKAGE@VERSION ..."
#
# An empty list is left out.
set -euo pipefail
folder=$1 python=$2 packages=$3 requirements=$4 engines=$5
. "$(dirname "$0")/apt_get.sh"

install_packages "$packages"
if [ -n "$requirements" ]; then
  step "pip install $requirements"
  "$python" -m pip install -q $requirements
fi
if [ -n "$engines" ]; then
  step "npm install $engines"
  mkdir -p "$folder"
  cd "$folder"
  echo '{"name": "twinhash-browser", "private": true}' >package.json
  npm install --save-exact --ignore-scripts --no-audit --no-fund --prefer-offline --fetch-retries=1 $engines
fi
