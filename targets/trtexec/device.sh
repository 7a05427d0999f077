# What runs where TensorRT is: `sh FOLDER/device.sh VERB ...`, POSIX shell and coreutils alone. targets/trtexec/workplace.py speaks
# to it. Everything lies in FOLDER. A guard removes FOLDER, and ends what runs there, once nobody has been in touch for
# LEASE seconds: so nothing stays behind when the other end is gone for good. Every verb may be asked for again.
set -u
umask 077
folder=${0%/*}
cd "$folder" || exit 3

running() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

# The group of a process that was started with setsid.
end_group() { running "$1" && kill -s "${2:-TERM}" -- "-$(cat "$1")" 2>/dev/null; }

# begin LEASE TRTEXEC: start the guard and tell what is here.
begin() {
  : >alive
  running guard.pid || setsid sh ./device.sh guard "$1" >/dev/null 2>&1 </dev/null &
  echo "folder=$(pwd -P)"
  echo "free_kib=$(df -Pk . | awk 'NR == 2 {print $4}')"
  for needed in setsid timeout sha256sum stat; do
    command -v "$needed" >/dev/null 2>&1 || echo "missing=$needed"
  done
  found=$(command -v "${2:-trtexec}" 2>/dev/null)
  if [ -z "$found" ] && [ -z "$2" ] && [ -x /usr/src/tensorrt/bin/trtexec ]; then
    found=/usr/src/tensorrt/bin/trtexec
  fi
  [ -n "$found" ] || return 0
  echo "trtexec=$found"
  echo "banner=$(timeout -k 5 60 "$found" --help 2>&1 | grep -m 1 'TensorRT.trtexec')"
}

guard() {
  echo $$ >guard.pid
  idle=0
  before=
  # Turns are counted, not the clock: a board without a battery sets its clock while we wait.
  while sleep 1 && [ -d "$PWD" ]; do
    seen=$(stat -c '%y %s' alive ./*.part 2>/dev/null)
    idle=$((idle + 1))
    [ "$seen" = "$before" ] || idle=0
    before=$seen
    [ "$idle" -le "$1" ] || remove
  done
}

# held NAME: how much of an upload is here. Who still writes to it is ended first.
held() {
  : >alive
  if [ -e "$1" ]; then stat -c %s "$1"; return; fi
  running "$1.pid" && kill "$(cat "$1.pid")" 2>/dev/null
  if [ -e "$1.part" ]; then stat -c %s "$1.part"; else echo 0; fi
}

# take NAME OFFSET: standard input is the rest of a file.
take() {
  echo $$ >"$1.pid"
  truncate -s "$2" "$1.part" && exec cat >>"$1.part"
}

# seal NAME SHA256: an upload is whole, or it is thrown away.
seal() {
  : >alive
  if [ -e "$1.part" ]; then
    if [ "$(sha256sum "$1.part" | cut -d ' ' -f 1)" != "$2" ]; then
      rm -f "$1.part"
      echo again
      return
    fi
    mv "$1.part" "$1" && rm -f "$1.pid"
  fi
  [ -e "$1" ] && echo whole
}

# start: run the steps of ./steps, which are calls of `step`, apart from this connection.
start() {
  : >alive
  [ -e run.pid ] && return
  setsid sh ./device.sh work >/dev/null 2>&1 </dev/null &
  echo $! >run.pid
}

work() {
  mkdir -p out log
  count=0
  . ./steps
  (cd out && sha256sum -- *) >manifest.part && mv manifest.part manifest || conclude 3
  conclude 0
}

# The status is in the name: a full disk takes no content.
conclude() {
  : >"done.$1"
  exit 0
}

# step LABEL SECONDS COMMAND...
step() {
  count=$((count + 1))
  printf '%s\n' "$1" >now
  limit=$2
  shift 2
  status=0
  # In the foreground it stays in our group, which is what `end` ends.
  timeout --foreground -k 5 "$limit" "$@" >"log/$count" 2>&1 </dev/null || status=$?
  [ "$status" -eq 0 ] || conclude "$status"
}

# describe: power mode and clocks, as the device's own tools tell them; a file for each that is there.
describe() {
  note nvpmodel nvpmodel -q
  note jetson_clocks jetson_clocks --show || note jetson_clocks sudo -n jetson_clocks --show
  note nvidia-smi nvidia-smi --format=csv \
    --query-gpu=name,driver_version,pstate,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu
  : >out/described.txt
}

note() {
  name=$1
  shift
  command -v "$name" >/dev/null 2>&1 || return 0
  timeout --foreground -k 5 20 "$@" >"out/$name.txt" 2>/dev/null </dev/null && [ -s "out/$name.txt" ] && return
  rm -f "out/$name.txt"
  return 1
}

# follow: answer every line with where the work is. Only a line from the other end counts as being in touch.
follow() {
  while read -r _; do
    : >alive
    ended && exit
    if running run.pid; then
      echo "now $(cat now 2>/dev/null)"
      continue
    fi
    # It may have come to its end between the two looks.
    ended || echo gone
    exit
  done
}

ended() {
  for over in done.*; do
    [ -e "$over" ] && echo "done ${over#done.}" && return
  done
  return 1
}

# give NAME OFFSET: the rest of a file.
give() {
  : >alive
  tail -c "+$(($2 + 1))" "$1"
}

last_log() {
  : >alive
  tail -c 20000 "log/$(ls log | sort -n | tail -n 1)" 2>/dev/null
  echo
  echo "free_kib=$(df -Pk . | awk 'NR == 2 {print $4}')"
}

remove() {
  end_group run.pid TERM
  running run.pid && sleep 1 && end_group run.pid KILL
  # The guard stays until the folder is gone: who ends us in between leaves the rest to it.
  guard=$(cat guard.pid 2>/dev/null)
  # Another try where something was still being written.
  rm -rf "$PWD" 2>/dev/null || { sleep 1; rm -rf "$PWD"; }
  [ "${guard:-$$}" = $$ ] || kill -s TERM -- "-$guard" 2>/dev/null
  exit 0
}

# keep: leave the folder; only the guard goes.
keep() {
  end_group guard.pid TERM
  rm -f alive guard.pid run.pid now manifest.part
  pwd -P
}

verb=$1
shift
case $verb in
begin | guard | held | take | seal | start | work | follow | give | last_log | remove | keep) "$verb" "$@" ;;
*) exit 5 ;;
esac
