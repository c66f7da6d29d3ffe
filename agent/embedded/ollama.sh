# Serves one GGUF file with Ollama, and has it loaded before anybody asks.
#
#     sh ollama.sh NAME PROMPT LINK FILE [PATH CONTENT]... -- OLLAMA [ARGUMENT ...]
#
# Ollama opens models only out of a store. This one is made here, in the instance's own folder: LINK leads to the weights
# where they are, each PATH gets its CONTENT. Ollama's keys, which it makes at every start, lie there as well.
#
# A load ends with the request that asked for it. `ollama run` asks without a deadline, as no probe could; without a
# terminal and with nothing to say it only loads. Where that fails, the server is ended: it would answer for ever, and serve
# nothing.

set -eu

main() {
    store=${TMPDIR:-/tmp}/ollama name=$1 prompt=$2
    mkdir -p "$store/${3%/*}"
    ln -sf "$4" "$store/$3"
    shift 4
    while [ "$1" != -- ]; do
        mkdir -p "$store/${1%/*}"
        printf %s "$2" >"$store/$1"
        shift 2
    done
    shift
    # What NVIDIA's driver compiles of its kernels (minutes) is kept, unlike the store.
    [ -z "${HOME-}" ] || export CUDA_CACHE_PATH="${CUDA_CACHE_PATH:-$HOME/.nv/ComputeCache}"
    export OLLAMA_MODELS="$store" HOME="$store"
    {
        until "$@" list >/dev/null 2>&1; do
            kill -0 $$ 2>/dev/null || exit
            sleep 0.1
        done
        # What it shows to a terminal goes to stderr all the same, many times a second.
        "$@" run -- "$name" ${prompt:+"$prompt"} </dev/null >/dev/null 2>"$store/run.log" || {
            sed -n 's/.*Error: /Error: /p' "$store/run.log"
            echo "ollama.sh: the model was not loaded"
            kill $$
        }
    } &
    exec "$@" serve
}

main "$@"
