#!/bin/bash
# configs/README.md lists exactly the keys that the program has, with their defaults and ranges.
set -euo pipefail

binary=$1
readme=$SOURCE_DIR/configs/README.md
if ! diff <("$binary" --config-keys) <(grep '^| `' "$readme"); then
    echo "configs/README.md differs from the program (<); put the output of 'grouter-train --config-keys' there"
    exit 1
fi
echo "configs/README.md lists every key"
