"""A program: what the jobs of a storm run. It keeps a ledger of itself and trusts nobody.

Arguments: kind, folder of the ledgers, seed. Each place (job and number) has a ledger, one JSON object a
line, and a lock that its process holds for its whole life; the kernel lets go of it when the process is
dead and not before, so a lock that is held at the start is a predecessor that lives. The double-forked
child of a place has a ledger and a lock of its own.

SIGTERM is blocked and waited for, never handled: what is in the ledger is exact, whenever it comes. Only
modules that are quick to load, and no site: it is started thousands of times.
"""

import fcntl
import os
import signal
import struct
import sys
import time

FLOCK = struct.Struct("hhqqi4x")
TERM = frozenset({signal.SIGTERM})
MASK = (1 << 64) - 1


class Random:
    """Knuth's linear congruential generator: the module ``random`` takes longer to load than all the rest."""

    def __init__(self, *seeds):
        self.state = 0
        for seed in seeds:
            self.state = (self.state ^ seed) * 6364136223846793005 + 1442695040888963407 & MASK
            self.below(1)

    def below(self, limit):
        self.state = self.state * 6364136223846793005 + 1442695040888963407 & MASK
        return (self.state >> 33) * limit >> 31

    def between(self, low, high):
        return low + (high - low) * self.below(1 << 20) / (1 << 20)


class Ledger:
    """What one process has to say of itself, and the proof that it is the only one in its place."""

    def __init__(self, folder, name, role, of):
        flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self.fd = os.open(f"{folder}/{name}", os.O_WRONLY | flags, 0o600)
        self.lock = os.open(f"{folder}/{name}.lock", os.O_RDWR | flags, 0o600)
        self.through = 0
        held = 0
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            question = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            held = FLOCK.unpack(fcntl.fcntl(self.lock, fcntl.F_GETLK, question))[4] or -1
        with open("/proc/self/stat", "rb") as file:
            self.start = int(file.read().rpartition(b")")[2].split()[19])
        self.say(
            "start",
            f'"start":{self.start},"ppid":{os.getppid()},"role":"{role}","of":{of},'
            f'"held":{held},"job":"{os.environ["TASKMASTER_JOB"]}","number":{os.environ["TASKMASTER_PROCESS"]}',
        )

    def say(self, event, more):
        # The line end before it too: a write that a SIGKILL cuts short spoils no other.
        text = f'\n{{"event":"{event}","pid":{os.getpid()},"at":{time.monotonic():.6f},{more}}}\n'
        os.write(self.fd, text.encode())

    def wrote(self, through):
        """Standard output has taken all lines up to this one."""
        self.through = through
        self.say("wrote", f'"through":{through}')

    def end(self, code):
        self.say("exit", f'"code":{code},"signal":null,"why":"self","through":{self.through}')
        os._exit(code)

    def told(self):
        """SIGTERM came."""
        self.say("exit", f'"code":0,"signal":null,"why":"term","through":{self.through}')
        os._exit(0)

    def die(self, number):
        self.say("exit", f'"code":null,"signal":{number},"why":"self","through":{self.through}')
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), number)

    def rest(self, seconds):
        """Wait; SIGTERM ends it and this process."""
        if signal.sigtimedwait(TERM, seconds) is not None:
            self.told()


def steady(ledger, random):
    signal.sigwait(TERM)
    ledger.told()


def stubborn(ledger, random):
    while True:
        signal.sigwait(TERM)


def exits(ledger, random):
    """A life over a second, then an exit code or a signal; all of them expected by the job's definition."""
    ledger.rest(random.between(1.1, 4.0))
    if random.below(10) < 7:
        ledger.end(random.below(100))
    ledger.die((signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGUSR1)[random.below(4)])


def crash(ledger, random):
    """As ``exits``, but sooner and unexpected."""
    ledger.rest(random.between(0.1, 3.0))
    if random.below(2):
        ledger.end(1 + random.below(99))
    ledger.die(signal.SIGSEGV)


def writer(ledger, random):
    write_lines(ledger, random, float("inf"))


def reciter(ledger, random):
    """Lines for a while, the last of them just before the exit."""
    write_lines(ledger, random, time.monotonic() + random.between(1.1, 4.0))
    ledger.end(random.below(100))


def write_lines(ledger, random, until):
    head = f"{os.environ['TASKMASTER_JOB']} {os.environ['TASKMASTER_PROCESS']} {os.getpid()} {ledger.start}"
    through = 0
    while time.monotonic() < until:
        for _ in range(1 + random.below(20)):
            size = random.below(200)
            line = f"{head} {through + 1} {size} {'x' * size}.\n".encode()
            # Below PIPE_BUF: a pipe takes it whole or not at all.
            assert os.write(1, line) == len(line)
            through += 1
        ledger.wrote(through)
        ledger.rest(random.between(0.02, 0.12))


def fork_twice(ledger, random):
    """A daemon of the old school: another process, of another session, that is nobody's child."""
    folder, name, of = sys.argv[2], place(), os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(ledger.fd)
        os.setsid()
        if os.fork():
            os._exit(0)
        steady(Ledger(folder, f"{name}.daemon", "daemon", of), random)
    os.waitpid(pid, 0)


def forks_and_stays(ledger, random):
    fork_twice(ledger, random)
    steady(ledger, random)


def forks_and_exits(ledger, random):
    fork_twice(ledger, random)
    ledger.rest(random.between(1.1, 5.0))
    ledger.end(random.below(100))


KINDS = {
    one.__name__: one
    for one in (steady, stubborn, exits, crash, writer, reciter, forks_and_stays, forks_and_exits)
}


def place():
    return f"{os.environ['TASKMASTER_JOB']}.{os.environ['TASKMASTER_PROCESS']}"


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, TERM)
    kind, folder, seed = sys.argv[1:]
    ledger = Ledger(folder, place(), "main", os.getpid())
    salt = int.from_bytes(place().encode(), "little")
    # Another life each time: the size of the ledger is how much has happened before.
    random = Random(int(seed), salt & MASK, os.fstat(ledger.fd).st_size)
    KINDS[kind](ledger, random)


main()
