# The parent of one engine: knows how the engine ended, even if no agent runs at that moment.
#
#     sh shim.sh DIRECTORY [CGROUP-ENTRANCE ...] -- ENGINE [ARGUMENT ...]
#
# Everything that can be done beforehand is done at once; the engine is executed when a line comes on stdin. An end of
# file there means that the agent died or thought better of it: then nothing was started, and nothing says so.
#
# Leaves in DIRECTORY: engine.pid, and at the end `exit` with one number as sh knows it: the exit status, or
# 128 + n for signal n. 125 means that the engine was never tried (the log says why); 126 and 127 that exec failed.
# Everything stands in a function, so that the whole text is read before the engine starts: an upgrade may
# replace this file meanwhile. Nothing after the engine's end forks.

finish() {
    echo "$1" >exit
    exit "$1"
}

main() {
    # A handler, not '': ignored signals would stay ignored in the engine. A signal to the group does not end us;
    # sh waits on for the engine, which runs in the foreground because background jobs get SIGINT ignored.
    trap : HUP INT QUIT TERM
    directory=$1
    shift
    cd "$directory" || exit 125
    while [ "$1" != -- ]; do
        echo 0 >"$1" || { echo "cannot join the cgroup by $1"; finish 125; }
        shift
    done
    shift
    exec 2>/dev/null # sh reports "Killed" and the like there, which is not the engine's output
    (
        # The pid of a subshell ($$ is its parent's). `read </proc/self/stat` takes a system call for each byte.
        cd -P /proc/self
        pid=${PWD##*/}
        cd "$directory" || exit 125
        # The agent may be protected from the OOM killer, and so may this shell; the engine is not.
        read -r adjustment </proc/self/oom_score_adj
        [ "$adjustment" -ge 0 ] || echo 0 >/proc/self/oom_score_adj
        read -r _ || exit 125
        echo "$pid" >engine.pid
        exec "$@" 2>&1 </dev/null
    )
    status=$?
    [ -f engine.pid ] || exit 125
    finish $status
}

main "$@"
