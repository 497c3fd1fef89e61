# Runs "$@" and ends it when flexcore is gone, however it went: flexcore holds the other end of this
# script's standard input, and the kernel closes that even after SIGKILL.
#
#   sh -c "$(cat guard.sh)" guard LAST_SIGNAL REMOVE PROGRAM [ARGUMENT]…
#
# Prints the program's process id. Each line read is the name of a signal to pass on. At the end of
# input it sends LAST_SIGNAL, SIGKILL five seconds later, and then removes the folder REMOVE (if not
# empty). Its own exit status is the program's.
last=$1 remove=$2
shift 2
gone=
trap 'gone=1' USR1
# systemd and terminals signal every process of a group: this one stays until its program has ended.
trap : TERM INT HUP
exec 3<&0
"$@" 3<&- >&2 &
pid=$!
(
  trap '' TERM INT HUP
  while read -r signal <&3; do kill -s "$signal" "$pid"; done
  kill -s USR1 $$
  kill -s "$last" "$pid"
  tries=50
  while kill -s 0 "$pid" && [ "$tries" -gt 0 ]; do sleep 0.1; tries=$((tries - 1)); done
  kill -s KILL "$pid"
) >/dev/null 2>&1 &
reader=$!
exec 3<&-
echo "$pid"
exec >/dev/null
# A trapped signal ends `wait` early, so it is asked again while the program lives.
status=0
wait "$pid" || status=$?
while kill -s 0 "$pid" 2>/dev/null; do wait "$pid" || status=$?; done
if [ -n "$gone" ] && [ -n "$remove" ]; then
  # Another server may still be writing below the folder.
  tries=40
  while rm -rf -- "$remove" 2>/dev/null; [ -e "$remove" ] && [ "$tries" -gt 0 ]; do
    sleep 0.25
    tries=$((tries - 1))
  done
fi
kill -s KILL "$reader" 2>/dev/null
exit "$status"
