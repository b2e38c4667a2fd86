#!/usr/bin/env bash
# A real Slurm on this one machine, for tests: up.sh up|down|status|env
#   eval "$(tests/slurm/up.sh env)"   then sbatch, squeue and the rest talk to it
# Debian: slurm-wlm munge slurmdbd mariadb-server (make slurm). All its state lies under $VLSAFE_SLURM, a path without
# spaces; it binds to loopback (slurmdbd can't be told to, so stop it after use), leaves /etc and /run alone, and ends what it
# started, by the pid files it wrote. VLSAFE_SLURM_ACCOUNTING=0: a Slurm without sacct, as some sites have.
set -euo pipefail
export VLSAFE_SLURM=${VLSAFE_SLURM:-/tmp/vlsafe-slurm-$(id -u)}
S=$VLSAFE_SLURM
export SLURM_CONF=$S/slurm.conf PATH=$PATH:/usr/sbin:/sbin
HOST=$(hostname -s) USER_NAME=$(id -un)
ACCOUNTING=${VLSAFE_SLURM_ACCOUNTING:-1}
SECOND=${HOST}x   # the name of a second node, on this same machine: its slurmd listens on another port
DAEMONS="slurmd.second slurmd slurmctld slurmdbd mariadbd munged"   # in the order in which they stop; a program is named up to the dot
unset SLURM_JOB_ID SLURM_JOBID SLURM_CLUSTERS SBATCH_PARTITION  # up.sh may be called from within another Slurm's job

# The process that this script started under that name: a pid file alone could name another's process by now.
alive() {
  local pid; pid=$(cat "$S/pids/$1" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "${1%%.*}" ] &&
    tr '\0' '\n' 2>/dev/null < "/proc/$pid/environ" | grep -qxF "VLSAFE_SLURM=$S"
}

start() { # NAME ARGUMENTS...: in the foreground of a session of its own, so that its pid is known before it has done anything
  local name=$1; shift
  alive "$name" && return
  setsid "${name%%.*}" "$@" > "$S/$name.out" 2>&1 < /dev/null 9>&- &
  echo $! > "$S/pids/$name"
}

await() { # SECONDS DAEMON COMMAND...: until the command succeeds, the daemon ends or the time is over
  local tenths=$(($1 * 5)) name=$2; shift 2
  for _ in $(seq "$tenths"); do
    "$@" > /dev/null 2>&1 && return
    alive "$name" || { sleep 0.3; alive "$name" || break; }
    sleep 0.2
  done
  echo "up.sh: $name is not ready; the end of its output ($S/$name.out, $S/$name.log):" >&2
  tail -n 8 "$S/$name.out" "$S/${name%%.*}"*.log >&2 2>/dev/null || true
  return 1
}

free_ports() { # COUNT, below the range from which outgoing connections take theirs
  python3 - "$1" <<'PY'
import random, socket, sys
ports, held = [], []
for port in random.sample(range(20000, 32000), 4000):
    held.append(socket.socket())
    try:
        held[-1].bind(("", port))
    except OSError:
        continue
    ports.append(port)
    if len(ports) == int(sys.argv[1]):
        break
print(*ports)
PY
}

configure() {
  local ctld slurmd second dbd db cpus memory accounting node
  read -r ctld slurmd second dbd db <<< "$(free_ports 5)"
  # At least four CPUs to schedule on, also where there are two cores: what is tested is the order of jobs, not their speed.
  cpus=$(nproc); [ "$cpus" -ge 4 ] || cpus=4
  memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
  node="NodeAddr=127.0.0.1 CPUs=$cpus Boards=1 SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory State=UNKNOWN"
  accounting="JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none"
  [ "$ACCOUNTING" = 0 ] || accounting="JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbd
AccountingStoragePass=$S/munge/socket"
  cat > "$SLURM_CONF" <<CONF
ClusterName=onebox
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=$USER_NAME
SlurmdUser=$USER_NAME
AuthType=auth/munge
# a short life of credentials: a requeued job waits for twice that
AuthInfo=socket=$S/munge/socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
# no cgroups in a container
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
$accounting
JobCompType=jobcomp/filetxt
JobCompLoc=$S/jobs.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
MaxArraySize=1001
KillWait=5
MinJobAge=3600
SlurmctldPort=$ctld
SlurmdPort=$slurmd
SlurmctldPidFile=$S/slurmctld.pid
SlurmdPidFile=$S/slurmd.%n.pid
StateSaveLocation=$S/state
SlurmdSpoolDir=$S/spool/%n
SlurmctldLogFile=$S/slurmctld.log
SlurmdLogFile=$S/slurmd.%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
NodeName=$HOST Port=$slurmd $node
NodeName=$SECOND NodeHostname=$HOST Port=$second $node
PartitionName=main Nodes=$HOST Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=$HOST MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=two Nodes=$HOST,$SECOND MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
CONF
  cat > "$S/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$S/munge/socket
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$dbd
SlurmUser=$USER_NAME
LogFile=$S/slurmdbd.log
PidFile=$S/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$db
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CONF
  chmod 600 "$S/slurmdbd.conf"
}

database() {
  local port socket=$S/db.sock
  port=$(sed -n 's/^StoragePort=//p' "$S/slurmdbd.conf")
  [ -d "$S/db/mysql" ] || mariadb-install-db --no-defaults --user="$USER_NAME" --datadir="$S/db" \
    --auth-root-authentication-method=normal --skip-test-db > "$S/db_install.log" 2>&1
  start mariadbd --no-defaults --user="$USER_NAME" --datadir="$S/db" --socket="$socket" --bind-address=127.0.0.1 --port="$port" \
    --innodb-buffer-pool-size=64M --innodb-log-file-size=16M
  await 30 mariadbd mariadb-admin --no-defaults -u root -S "$socket" ping
  for host in 127.0.0.1 localhost; do
    mariadb --no-defaults -u root -S "$socket" -e "create database if not exists slurm_acct_db;
      create user if not exists 'slurm'@'$host' identified by 'slurm'; grant all on slurm_acct_db.* to 'slurm'@'$host'"
  done
}

usable() { sinfo -h -o %T -N -n "$1" | grep -qE '^(idle|mixed|allocated|completing)$'; }

up() {
  local missing="" name running=""
  [[ $S != *[[:space:]]* ]] || { echo "up.sh: VLSAFE_SLURM=$S has a space, which Slurm's own settings can't have" >&2; return 2; }
  for name in munged slurmctld slurmd sbatch $([ "$ACCOUNTING" = 0 ] || echo slurmdbd mariadbd); do
    command -v "$name" > /dev/null || missing="$missing $name"
  done
  [ -z "$missing" ] || { echo "up.sh: not installed:$missing; run make slurm" >&2; return 2; }
  for name in $DAEMONS; do ! alive "$name" || running="$running $name"; done
  if [ -z "$running" ]; then  # from nothing: no jobs of an earlier time
    rm -rf "$S"; mkdir -p "$S"/{state,munge,pids,db} "$S/spool/"{"$HOST","$SECOND"}; chmod 755 "$S" "$S/munge"
    configure
    dd if=/dev/urandom of="$S/munge.key" bs=128 count=1 status=none; chmod 400 "$S/munge.key"
  fi
  grep -q '=accounting_storage/slurmdbd' "$SLURM_CONF" || ACCOUNTING=0
  alive munged || rm -f "$S/munge/socket" "$S/munge/socket.lock"
  start munged -F --force --key-file "$S/munge.key" --socket "$S/munge/socket" --pid-file "$S/munge/pid" \
    --log-file "$S/munged.log" --seed-file "$S/munge/seed"
  await 10 munged munge -n --socket "$S/munge/socket"
  if [ "$ACCOUNTING" != 0 ]; then
    database
    start slurmdbd -D
    await 30 slurmdbd sacctmgr -n list cluster
    sacctmgr -n list cluster format=cluster | grep -q onebox || sacctmgr -i add cluster onebox > /dev/null
  fi
  start slurmctld -D -f "$SLURM_CONF"
  await 30 slurmctld scontrol ping
  start slurmd -D -f "$SLURM_CONF" -N "$HOST"
  await 30 slurmd usable "$HOST"
  start slurmd.second -D -f "$SLURM_CONF" -N "$SECOND"
  await 30 slurmd.second usable "$SECOND"
  status
}

steps() { # the pids of job steps that this Slurm's slurmd has started
  local folder
  for folder in /proc/[0-9]*; do
    [ "$(cat "$folder/comm" 2>/dev/null)" = slurmstepd ] &&
      tr '\0' '\n' 2>/dev/null < "$folder/environ" | grep -qxF "VLSAFE_SLURM=$S" && basename "$folder"
  done || true
}

down() {
  local name pid step child
  if alive slurmctld && alive slurmd; then  # jobs outlive their slurmd: end them first
    timeout 10 scancel --full --signal=KILL --user="$USER_NAME" > /dev/null 2>&1 || true
    timeout 10 scancel --user="$USER_NAME" > /dev/null 2>&1 || true
    for _ in $(seq 60); do [ -n "$(steps)" ] || break; sleep 0.25; done
  fi
  for step in $(steps); do
    for child in $(cat "/proc/$step/task/"*/children 2>/dev/null); do kill -KILL -- "-$child" "$child" 2>/dev/null || true; done
    kill -KILL "$step" 2>/dev/null || true
  done
  for name in $DAEMONS; do
    if alive "$name"; then
      pid=$(cat "$S/pids/$name")
      kill "$pid" 2>/dev/null || true
      for _ in $(seq 60); do alive "$name" || break; sleep 0.25; done
      ! alive "$name" || kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$S/pids/$name"
  done
}

status() {
  local name wrong=0
  for name in munged mariadbd slurmdbd slurmctld slurmd slurmd.second; do
    if alive "$name"; then echo "$name: up ($(cat "$S/pids/$name"))"
    elif grep -qs '=accounting_storage/none' "$SLURM_CONF" && [[ $name =~ ^(mariadbd|slurmdbd)$ ]]; then echo "$name: not wanted"
    else echo "$name: down"; wrong=3; fi
  done
  [ "$wrong" != 0 ] || { sinfo; squeue; }
  echo "SLURM_CONF=$SLURM_CONF"
  return "$wrong"
}

case "${1:-}" in
  up | down) # one at a time
    exec 9> "$S.lock"; flock -w 120 9 || { echo "up.sh: another up.sh holds $S.lock" >&2; exit 1; }
    "$1" ;;
  status) status ;;
  env) echo "export SLURM_CONF='$SLURM_CONF'" ;;
  *) echo "usage: $0 up|down|status|env" >&2; exit 2 ;;
esac
