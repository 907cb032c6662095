#!/bin/sh
# Builds the WebAssembly programs of the examples into OUT (default: where the testnet looks for them).
# Debian: apt-get install clang lld wasi-libc libclang-rt-dev-wasm32
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../testnet/ioc_testnet/programs}
mkdir -p "$out"
for name in terrain/hillshade terrain/mosaic noop/noop sleeper/sleeper hello/hello; do
    # A wasm file needs no executable bit.
    "${CLANG:-clang}" --target=wasm32-wasi --sysroot="${WASI_SYSROOT:-/usr}" \
        -std=gnu11 -O2 -ffp-contract=off -Wall -Wextra -Werror -Wl,--strip-all -Wl,-z,stack-size=262144 \
        -o "$out/$(basename "$name").wasm" "$here/$name.c" -lm
    chmod 0644 "$out/$(basename "$name").wasm"
done
