"""The agent: starts and ends the ranks of one host for `hora run`.

It runs as a process of its own, on this machine or at the far end of ssh, where it is sent as text;
so it needs the standard library only (Python 3.7). It reads from standard input: a line with the
length of a JSON text, the text (see ``Agent``), and then lines ``signal N``, or ``signal N R`` for one
rank only. It writes JSON lines:

    {"info": TEXT} {"started": true} {"rank": R, "stream": "stdout", "data": TEXT}
    {"rank": R, "result": BASE64} {"rank": R, "exit": CODE} (negative: a signal)
    {"rank": R, "error": TEXT} {"end": true}

When standard input closes, the launcher is gone: the agent kills every rank and its descendants.
When the agent itself is killed, the kernel kills the ranks. Single thread.
"""

import base64
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
DRAIN_SECONDS = 0.5  # for output that a rank's descendants still hold open after its end


def prctl(option, value):
    try:
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
    except (OSError, AttributeError):
        pass


class Rank:
    def __init__(self, number, process):
        self.number = number
        self.process = process
        self.open_pipes = 0
        self.code = None  # exit code once it has ended
        self.reported = False
        self.ended_at = 0.0

    def signal_group(self, number):
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            pass


class Agent:
    """config: command (list), cwd, env (added to this process's), ranks ([{rank, env}]), capture
    (send the output), fds ([out, err] to inherit instead), threads (set OMP_NUM_THREADS), slots (how
    many ranks the host will have, where that is not the number of these), input
    (null, or base64 of what each rank finds on its standard input; then a descriptor for its result
    is the last argument of its command)."""

    def __init__(self, config):
        self.config = config
        self.ranks = []
        self.lost = False  # the launcher is gone
        self.input = b""  # orders that are not complete yet
        self.task = base64.b64decode(config["input"]) if config.get("input") else None
        self.selector = selectors.DefaultSelector()
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)

    # ---- Talking to the launcher --------------------------------------------------------------

    def tell(self, **event):
        data = (json.dumps(event) + "\n").encode()
        try:
            while data and not self.lost:
                data = data[os.write(1, data) :]
        except OSError:
            self.lost = True

    def read_orders(self):
        data = os.read(0, 4096)
        if not data:
            self.lost = True
        self.obey(data)

    def obey(self, data):
        self.input += data
        *lines, self.input = self.input.split(b"\n")
        for line in lines:
            word, *numbers = line.split()
            if word == b"signal":
                self.signal(*map(int, numbers))

    def signal(self, number, only=None):
        for rank in self.ranks:
            if rank.code is None and only in (None, rank.number):
                rank.signal_group(number)

    # ---- Starting -----------------------------------------------------------------------------

    def base_environment(self):
        # A worker of an elastic job may start a job of its own, whose ranks are not workers of the
        # other; what they are they hear for each rank.
        other = ("HORA_ELASTIC", "HOROVOD_ELASTIC")
        env = {name: value for name, value in os.environ.items() if not name.startswith(other)}
        env.update(self.config["env"])
        ranks = self.config.get("slots") or len(self.config["ranks"])
        if self.config["threads"] and "OMP_NUM_THREADS" not in env:
            cores = len(os.sched_getaffinity(0))
            env["OMP_NUM_THREADS"] = str(max(1, cores // ranks))
            self.tell(
                info="OMP_NUM_THREADS=%s for %d ranks on %d cores; set it yourself for another"
                % (env["OMP_NUM_THREADS"], ranks, cores)
            )
        return env

    def start_rank(self, entry, base):
        env = dict(base)
        env.update(entry["env"])
        capture = self.config["capture"]
        fds = self.config["fds"]
        parent = os.getpid()

        # A process group to be signalled, but no session: where the kernel gives each session its share
        # of the cores (sched_autogroup), ranks of different sessions cannot yield to each other.
        def in_child():
            os.setpgid(0, 0)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(111)

        given, result = self.task_files()
        try:
            process = subprocess.Popen(
                self.config["command"] + [str(fd) for fd in result[1:]],
                env=env,
                cwd=self.config["cwd"],
                stdin=given,
                stdout=subprocess.PIPE if capture else fds[0],
                stderr=subprocess.PIPE if capture else fds[1],
                preexec_fn=in_child,
                pass_fds=result[1:],
            )
        finally:
            for fd in result[1:]:
                os.close(fd)
            if self.task is not None:
                given.close()
        rank = Rank(entry["rank"], process)
        self.ranks.append(rank)
        if capture:
            self.watch(rank, "stdout", process.stdout)
            self.watch(rank, "stderr", process.stderr)
        for fd in result[:1]:
            self.watch(rank, "result", open(fd, "rb", buffering=0))

    def task_files(self):
        """What a rank that runs a function gets: its standard input, and both ends of a pipe for
        the result. The input is a file without a name, which nobody else can open."""
        if self.task is None:
            return subprocess.DEVNULL, []
        given = tempfile.TemporaryFile()
        given.write(self.task)
        given.seek(0)
        return given, list(os.pipe())

    def watch(self, rank, stream, pipe):
        os.set_blocking(pipe.fileno(), False)
        self.selector.register(pipe, selectors.EVENT_READ, (rank, stream))
        rank.open_pipes += 1

    def start(self):
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "lost", True))
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        self.selector.register(0, selectors.EVENT_READ, None)
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        base = self.base_environment()
        for entry in self.config["ranks"]:
            try:
                self.start_rank(entry, base)
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                self.tell(rank=entry["rank"], error=str(error))
                self.kill_all()
                return
        self.tell(started=True)

    # ---- Running ------------------------------------------------------------------------------

    def forward(self, pipe, rank, stream):
        try:
            data = os.read(pipe.fileno(), 65536)
        except BlockingIOError:
            return
        if not data:
            self.close(pipe, rank)
        elif stream == "result":
            self.tell(rank=rank.number, result=base64.b64encode(data).decode())
        else:
            self.tell(rank=rank.number, stream=stream, data=data.decode("latin-1"))

    def close(self, pipe, rank):
        self.selector.unregister(pipe)
        pipe.close()
        rank.open_pipes -= 1

    def reap(self, rank):
        """Takes note of an ended rank. Its group is killed while the rank is still a zombie, so
        that the group's number cannot belong to somebody else."""
        found = os.waitid(os.P_PID, rank.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return
        rank.signal_group(signal.SIGKILL)
        _, status = os.waitpid(rank.process.pid, 0)
        rank.code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        rank.process.returncode = rank.code
        rank.ended_at = time.monotonic()

    def report(self, rank):
        if rank.open_pipes > 0 and time.monotonic() - rank.ended_at < DRAIN_SECONDS:
            return
        rank.reported = True
        for key in list(self.selector.get_map().values()):
            if key.data and key.data[0] is rank:
                self.close(key.fileobj, rank)
        self.tell(rank=rank.number, exit=rank.code)

    def turn(self):
        drains = any(rank.code is not None and not rank.reported for rank in self.ranks)
        for key, _ in self.selector.select(0.05 if drains else None):
            if key.data:
                self.forward(key.fileobj, *key.data)
            elif key.fd == self.wake_read:
                os.read(self.wake_read, 4096)
            else:
                self.read_orders()
        for rank in self.ranks:
            if rank.code is None:
                self.reap(rank)
            if rank.code is not None and not rank.reported:
                self.report(rank)

    def run(self):
        self.start()
        self.obey(b"")
        while not self.lost and not all(rank.reported for rank in self.ranks):
            self.turn()
        self.kill_all()
        self.tell(end=True)

    # ---- Ending -------------------------------------------------------------------------------

    def kill_all(self):
        """Kills ranks that still run, and every descendant, also those in sessions of their own:
        as orphans they have become children of this process (PR_SET_CHILD_SUBREAPER)."""
        self.signal(signal.SIGKILL)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            children = self.children()
            for pid in children:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                break
            time.sleep(0.002)
        for rank in self.ranks:
            rank.process.returncode = rank.code if rank.code is not None else -9
            rank.code = rank.process.returncode

    @staticmethod
    def children():
        try:
            with open("/proc/self/task/%d/children" % os.getpid()) as file:
                return [int(pid) for pid in file.read().split()]
        except OSError:
            return []


def main():
    stream = sys.stdin.buffer
    agent = Agent(json.loads(stream.read(int(stream.readline())).decode()))
    # Orders that have been read together with the configuration. Not blocking only for that long:
    # behind ssh, standard input and output may be one socket.
    os.set_blocking(0, False)
    agent.input = stream.peek()
    os.set_blocking(0, True)
    agent.run()


if __name__ == "__main__":
    main()
