"""Two nodes on one machine: each has its own network, name, processes, /tmp, /dev/shm, /etc and sshd; they share
all other files, as on a cluster. And Slurm on them.

    with two_nodes(folder) as nodes:
        nodes.run(1, "deepspeed", "--hostfile", hosts, ...)     as after a login on node1, with a clean environment
        nodes.start_slurm()
        nodes.crash(2)                                          a power cut

Needs root and Debian's packages of PACKAGES; missing() says what is not there. Nothing stays: the death of a node's
first process takes all others with it, and its network.
"""

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data_prep.cli import ROOT
from tests.launched import wait_for

# Program -> the package that has it.
PACKAGES = {
    **dict(ip="iproute2", sshd="openssh-server", ssh="openssh-client", pdsh="pdsh", mpirun="openmpi-bin"),
    **dict(slurmctld="slurmctld", slurmd="slurmd", srun="slurm-client", munged="munge", unshare="util-linux"),
}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NETWORK = "10.77.0"
_SSHD = """
ListenAddress {address}
HostKey {base}/host_key
AuthorizedKeysFile {base}/home/.ssh/authorized_keys
PidFile none
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
StrictModes no
"""
# The first process of a node. A whole copy of /etc: binds over single files are lost when the host replaces one.
_INIT = """
set -e
mount --make-rprivate /
hostname {name}
mount --bind {base} /mnt
for folder in /tmp /dev/shm /run; do mount -t tmpfs tmpfs $folder; done
mkdir -p {base} /run/sshd
mount --bind /mnt {base}
umount /mnt
cp -a /etc {home}/etc
cp {base}/hosts {base}/passwd {home}/etc
echo {name} > {home}/etc/hostname
mount --bind {home}/etc /etc
ip link set lo up
touch {home}/stands
until [ -e {home}/joined ]; do sleep 0.05; done
/usr/sbin/sshd -f {home}/sshd_config -E {home}/sshd.log
touch {home}/up
while :; do sleep 3600 & wait $!; done
"""
_SLURM = """
ClusterName=test
SlurmctldHost=node1({network}.1)
SlurmctldPort=26817
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation={base}/slurm/state
SlurmdSpoolDir={base}/slurm/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={base}/slurm/slurmctld.log
SlurmdLogFile={base}/slurm/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdTimeout=15
SchedulerParameters=bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
NodeName=node1 NodeHostname=node1 NodeAddr={network}.1 Port=27001 CPUs=2
NodeName=node2 NodeHostname=node2 NodeAddr={network}.2 Port=27001 CPUs=2
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE
"""
_MUNGE = """
set -e
mkdir -p /run/munge /etc/munge /etc/slurm
cp {base}/munge.key /etc/munge/munge.key
chown -R root /run/munge /etc/munge
chmod 755 /run/munge
chmod 400 /etc/munge/munge.key
munged --force --key-file /etc/munge/munge.key \\
    --log-file /run/munge.log --pid-file /run/munge.pid --seed-file /run/munge.seed
cp {base}/slurm.conf /etc/slurm/slurm.conf
"""


def missing() -> str:
    """Return why there can be no nodes here; empty: there can."""
    if os.geteuid() != 0:
        return "needs root"
    packages = {package for program, package in PACKAGES.items() if not shutil.which(program, path=SYSTEM_PATH)}
    if packages:
        return f"needs apt-get install {' '.join(sorted(packages))}"
    able = subprocess.run(["unshare", "--net", "--uts", "--pid", "--mount", "--ipc", "--fork", "true"], check=False)
    return "" if able.returncode == 0 else "needs a machine, or a container, that may make namespaces (unshare)"


@contextmanager
def two_nodes(folder: Path) -> Iterator["Nodes"]:
    """Yield node1 and node2, which are gone in the end."""
    nodes = Nodes(folder)
    try:
        nodes.start()
        yield nodes
    finally:
        for number in (1, 2):
            nodes.crash(number)


class Nodes:
    """node1 and node2, numbered 1 and 2."""

    def __init__(self, base: Path):
        self.base = base
        self._inits: dict[int, int] = {}  # of each node, the number of its first process out here

    def start(self) -> None:
        """Start both, join them by a cable, and let each know the other's key."""
        home = self.base / "home/.ssh"
        home.mkdir(parents=True, mode=0o700)
        for key in (self.base / "host_key", home / "id_ed25519"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(home / "id_ed25519.pub", home / "authorized_keys")
        host_key = " ".join((self.base / "host_key.pub").read_text().split()[:2])
        (home / "known_hosts").write_text("".join(f"node{n},{NETWORK}.{n} {host_key}\n" for n in (1, 2)))
        names = "".join(f"{NETWORK}.{number} node{number}\n" for number in (1, 2))
        (self.base / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        root = f"root:x:0:0:root:{self.base}/home:/bin/bash\n"
        others = "".join(":".join(map(str, each)) + "\n" for each in pwd.getpwall() if each.pw_uid)
        (self.base / "passwd").write_text(root + others)
        for number in (1, 2):
            self._start_node(number)
        self._host("ip", "link", "add", "zerobert-1", "type", "veth", "peer", "name", "zerobert-2")
        for number in (1, 2):
            self._host("ip", "link", "set", f"zerobert-{number}", "netns", self._inits[number], "name", "eth0")
            self.run(number, "ip", "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            self.set_link(number, "up")
            (self._home(number) / "joined").touch()
        for number in (1, 2):
            wait_for((self._home(number) / "up").exists)

    def _start_node(self, number: int) -> None:
        home = self._home(number)
        home.mkdir()
        words = dict(name=f"node{number}", base=self.base, home=home, address=f"{NETWORK}.{number}")
        (home / "sshd_config").write_text(_SSHD.format_map(words))
        (home / "init").write_text(_INIT.format_map(words))
        with open(home / "init.log", "wb") as log:
            unshare = subprocess.Popen(
                [
                    "unshare",
                    *"--net --uts --pid --mount --ipc --fork --mount-proc --kill-child".split(),
                    "bash",
                    home / "init",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
        self._inits[number] = int(wait_for(children.read_text))

        def stands() -> bool:
            assert unshare.poll() is None, (home / "init.log").read_text()
            return (home / "stands").exists()

        wait_for(stands)

    def start_slurm(self) -> None:
        """Start Slurm, with munge, and wait until both nodes are idle."""
        (self.base / "munge.key").write_bytes(os.urandom(128))
        (self.base / "munge.key").chmod(0o400)
        words = dict(base=self.base, network=NETWORK)
        (self.base / "slurm.conf").write_text(_SLURM.format_map(words))
        for folder in ("state", "node1", "node2"):
            (self.base / "slurm" / folder).mkdir(parents=True)
        for number in (1, 2):
            self.run(number, "bash", "-c", _MUNGE.format_map(words))
        self.run(1, "slurmctld")
        for number in (1, 2):
            self.run(number, "slurmd", "-N", f"node{number}")
        idle = ("timeout", "20", "sinfo", "-h", "-N", "-t", "idle")
        wait_for(lambda: self.run(1, *idle, check=False).stdout.count("\n") == 2)

    def run(
        self, number: int, *command: object, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a node to its end; its output is one text."""
        process = self.popen(number, *command, **variables)
        said, _ = process.communicate()
        assert not check or process.returncode == 0, said
        return subprocess.CompletedProcess(process.args, process.returncode, said)

    def popen(self, number: int, *command: object, **variables: str) -> subprocess.Popen[str]:
        """Start a command on a node, in the checkout, with the environment of a login and `variables`; it speaks into
        a pipe."""
        return self.popen_into(subprocess.PIPE, number, *command, **variables)

    def popen_into(
        self, log: IO[bytes] | int, number: int, *command: object, **variables: str
    ) -> subprocess.Popen[str]:
        """The same, of a command that speaks into a file."""
        login = dict(
            HOME=f"{self.base}/home", USER="root", SHELL="/bin/bash", LANG="C.UTF-8", TERM="dumb", PATH=SYSTEM_PATH
        )
        words = [f"{name}={value}" for name, value in (login | variables).items()]
        enter = [
            "nsenter",
            "-t",
            str(self._inits[number]),
            "-n",
            "-u",
            "-p",
            "-m",
            "-i",
            "--",
            "env",
            "-i",
            "-C",
            str(ROOT),
        ]
        return subprocess.Popen(
            [*enter, *words, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def crash(self, number: int) -> None:
        """Cut a node's power: its first process is killed, and with it all others."""
        if number in self._inits:
            self._host("kill", "-9", self._inits.pop(number), check=False)

    def set_link(self, number: int, state: str) -> None:
        """Set the cable of a node "up" or "down"."""
        self.run(number, "ip", "link", "set", "eth0", state)

    def _home(self, number: int) -> Path:
        return self.base / f"node{number}"

    @staticmethod
    def _host(*command: object, check: bool = True) -> None:
        subprocess.run([str(word) for word in command], check=check)


def watched(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    """Wait for a condition while a process runs; fail with what it said where it has ended before."""
    while not until():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
