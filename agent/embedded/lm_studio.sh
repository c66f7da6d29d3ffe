# Serves one GGUF file with LM Studio's daemon (llmster), and has it loaded before anybody asks.
#
#     sh lm_studio.sh FILE ACCELERATOR ADDRESS PORT LLMSTER LMS [OPTION OF LMS LOAD ...]
#
# `lms daemon up` would take whatever LM Studio runs on this host, and leave behind a daemon that is nobody's child. Here
# llmster runs in the foreground, with a home in the instance's own folder: its models, settings, keys and log are not those
# of an operator's LM Studio, and end with the instance.
#
# Beside it a loader does what only `lms` can, and ends. It loads nothing before `lms` has proved that it talks to this daemon
# and to no other. Where it fails the daemon is ended, which would live on and serve nothing.

set -eu

# Whether llmster, which has the pid of this script, is still there: only then it is the loader's parent.
there() {
    read -r _ _ _ parent _ </proc/self/stat
    [ "$parent" = $$ ]
}

fail() {
    echo "lm_studio.sh: $1"
    there && kill $$ && sleep 5
    there && kill -9 $$
    exit 1
}

# Ask `lms` until its answer holds WORDS: the daemon needs a moment.
until_it_says() {
    words=$1 tries=60
    shift
    while there; do
        answer=$("$lms" "$@" 2>&1) || :
        case $answer in *"$words"*) return ;; esac
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "\`lms $*\` does not say $words: $answer"
        sleep 0.2
    done
    exit
}

# That `lms` reaches this daemon and can reach no other: told of none, it must find none.
prove() {
    until [ -s "$LMS_API_SERVER_INFO_PATH" ] && [ -s "$home/.internal/lms-key-2" ]; do
        there || exit
        sleep 0.2
    done
    answer=$(LMS_API_SERVER_INFO_PATH=/dev/null "$lms" daemon status --json 2>&1) || :
    case $answer in
    *'"status":"not-running"'*) ;;
    *) fail "lms looks for any LM Studio on this host: $answer" ;;
    esac
    until_it_says '"status":"running"' daemon status --json
    case $answer in
    *"\"pid\":$$,"*) ;;
    *) fail "lms reached another LM Studio: $answer" ;;
    esac
}

# The engine that is selected, else the first (of a name, the newest), of those that compute on ACCELERATOR.
engine() {
    "$lms" runtime ls | {
        found=
        while read -r name marks; do
            case $name in
            llama.cpp*-"$accelerator"*) ;;
            llama.cpp*cuda* | llama.cpp*rocm* | llama.cpp*vulkan* | llama.cpp*metal*) continue ;;
            llama.cpp*) [ "$accelerator" = cpu ] || continue ;;
            *) continue ;;
            esac
            case $marks in ✓*) found=$name && break ;; esac
            found=${found:-$name}
        done
        echo "$found"
    }
}

# As it writes them itself. With just-in-time loading any request could load any model a second time.
configure_server() {
    echo '{"autoStartOnLaunch": false, "port": '"$port"', "networkInterface": "'"$address"'", "cors": false,
        "justInTimeModelLoading": false, "verbose": false, "logSensitiveData": false, "logIncomingTokens": false,
        "logLinesLimit": 500, "fileLoggingMode": "succinct"}' >"$server_settings"
}

start_server() {
    for _ in 1 2; do
        "$lms" server start --port "$port" --bind "$address" || fail "the HTTP server did not start"
        grep -q '"justInTimeModelLoading": *true' "$server_settings" || return 0
        # At its first start it may put its own settings in place of these.
        { "$lms" server stop && configure_server; } || fail "the HTTP server did not stop"
    done
    fail "the HTTP server keeps loading models just in time"
}

load() {
    prove
    engine=$(engine)
    "$lms" runtime select "${engine:-none}" || fail "LM Studio has no engine for $accelerator"
    start_server # nobody takes it for ready before the model is there
    until_it_says "\"$model\"" ls --json
    # Its spinner goes to stdout, whether that is a terminal or not.
    "$lms" load "$model" --exact --local --yes "$@" >/dev/null 2>"$HOME/load.log" || {
        tail -n 40 "$HOME/load.log"
        fail "the model was not loaded"
    }
}

main() {
    file=$1 accelerator=$2 address=$3 port=$4 llmster=$5 lms=$6
    shift 6
    export HOME="${TMPDIR:?}/lms" LMS_DAEMON_DISABLE_UPDATES=1 NO_COLOR=1
    home=$HOME/.lmstudio theirs=${lms%/bin/*} model=agent/model/model.gguf
    export LMS_API_SERVER_INFO_PATH="$home/.internal/http-server.json"
    server_settings=$home/.internal/http-server-config.json
    rm -rf "$HOME"
    mkdir -p "$home/.internal/utils" "$home/extensions/backends" "$home/models/${model%/*}"

    # At its first start in a home, llmster moves what it brought along into it: that must not be the operator's. A copy is
    # made of hard links where the file system allows it. Engines are only read.
    cp -al "${llmster%/*}" "$HOME/llmster" 2>/dev/null || {
        rm -rf "$HOME/llmster"
        cp -a "${llmster%/*}" "$HOME/llmster"
    }
    [ ! -d "$theirs/.internal/utils" ] || cp -a "$theirs/.internal/utils/." "$home/.internal/utils"
    [ ! -d "$theirs/extensions/backends" ] || cp -as "$theirs/extensions/backends/." "$home/extensions/backends"
    selected=.internal/backend-preferences-v1.json
    [ ! -f "$theirs/$selected" ] || cp "$theirs/$selected" "$home/$selected"
    ln -s "$file" "$home/models/$model"
    configure_server
    # The plan has counted the memory. Groups of settings are given whole: it takes all or nothing of this file.
    echo '{"autoLoadBundledLLM": false, "enableLocalService": false,
        "modelLoadingGuardrails": {"mode": "off", "customThresholdBytes": 4294967296, "alwaysAllowLoadAnyway": false},
        "developer": {"autoUpdateExtensionPacks": false, "autoDeleteExtensionPacks": false, "allowDevelopmentPlugins": false,
        "attemptedInstallLmsCliOnStartup": true, "unloadPreviousJITModelOnLoad": true,
        "jitModelTTL": {"enabled": true, "ttlSeconds": 3600}}}' >"$home/settings.json"

    load "$@" &
    cd "$HOME/llmster"
    exec "./${llmster##*/}"
}

main "$@"
