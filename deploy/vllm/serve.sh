#!/bin/sh
# Serve a registry version under vLLM: serve.sh NAME@VERSION BASE_MODEL [vllm options…]
set -eu
reference=$1 base=$2
shift 2
path=$(rag-fti models show "$reference" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["path"])')
name=$(rag-fti models show "$reference" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["ref"])')
rank=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["r"])' "$path/adapter_config.json")
exec vllm serve "$base" --enable-lora --max-lora-rank "$rank" --lora-modules "$name=$path" \
  --chat-template "$path/chat_template.jinja" --host 127.0.0.1 --port 8000 "$@"
