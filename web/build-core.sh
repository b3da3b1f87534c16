#!/usr/bin/env bash
# Compiles the core for the browser and makes its JavaScript, in www/core.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --config web/core.toml --release --target wasm32-unknown-unknown -p modegpt-web
CARGO_TARGET_DIR=$target/bindgen cargo run -q --release --manifest-path web/bindgen/Cargo.toml -- \
  "$target/wasm32-unknown-unknown/release/modegpt_web.wasm" web/www/core
