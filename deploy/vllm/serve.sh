#!/bin/sh
# Serve a registry version under vLLM: serve.sh NAME@VERSION BASE_MODEL [vllm options…]
set -eu
if [ $# -lt 2 ]; then
  echo "usage: serve.sh NAME@VERSION BASE_MODEL [vllm options…]" >&2
  exit 2
fi
reference=$1 base=$2
shift 2
shown=$(rag-fti models show "$reference" --json) || { printf '%s\n' "$shown" >&2; exit 1; }
# vLLM takes some ranks only: the next one at or above the adapter's is asked for. It reads no
# adapter with DoRA or with whole trained modules.
settings=$(printf '%s' "$shown" | python3 -c '
import json, pathlib, sys

version = json.load(sys.stdin)
if "://" in version["path"]:
    sys.exit("vLLM reads directories, and this version is in an object store: "
             "rag-fti models export brings it here.")
adapter = json.loads((pathlib.Path(version["path"]) / "adapter_config.json").read_text())
if adapter.get("use_dora") or adapter.get("modules_to_save"):
    sys.exit("vLLM cannot load this adapter (DoRA or modules_to_save): "
             "serve its merged weights, see rag-fti models merge.")
rank = next(r for r in (8, 16, 32, 64, 128, 256, 320, 512) if r >= adapter["r"])
print(version["ref"], rank, version["path"], sep="\n")
')
name=$(printf '%s\n' "$settings" | sed -n 1p)
rank=$(printf '%s\n' "$settings" | sed -n 2p)
path=$(printf '%s\n' "$settings" | sed -n 3p)
exec vllm serve "$base" --enable-lora --max-lora-rank "$rank" --lora-modules "$name=$path" \
  --chat-template "$path/chat_template.jinja" --host 127.0.0.1 --port 8000 "$@"
