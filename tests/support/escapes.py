# ruff: noqa: E501
"""Programs that try to leave the sandbox: each prints ESCAPED, or leaves a trace outside, if it succeeds.

`{secret}` is a file outside with a secret, `{folder}` the folder that it lies in, `{port}` a port of this machine on
which somebody listens, `{pid}` a process of the same user.
"""

READ = "\ntext = open(path).read()\nprint('ESCAPED', text[:80])"

FILES = {
    "read the secret": "path = '{secret}'" + READ,
    "read the secret by descriptor": "import os\nprint('ESCAPED', os.read(os.open('{secret}', os.O_RDONLY), 99))",
    "read the secret by io": "import io\nprint('ESCAPED', io.FileIO('{secret}').read())",
    "read the secret by mmap": "import mmap, os\nprint('ESCAPED', mmap.mmap(os.open('{secret}', 0), 0, prot=1)[:])",
    "read the users": "path = '/etc/passwd'" + READ,
    "read the shadow file": "path = '/etc/shadow'" + READ,
    "read the host's name": "path = '/etc/hostname'" + READ,
    "list the folder": "import os\nprint('ESCAPED', os.listdir('{folder}'))",
    "list the home": "import os\nassert os.listdir(os.path.expanduser('~root/.ssh')) is None",
    "walk up": "path = '../' * 20 + '{secret}'.lstrip('/')" + READ,
    "write beside the secret": "open('{folder}/written', 'w').write('x')\nprint('ESCAPED')",
    "write over the secret": "open('{secret}', 'w').write('x')\nprint('ESCAPED')",
    "append to the secret": "open('{secret}', 'a').write('x')\nprint('ESCAPED')",
    "remove the secret": "import os\nos.unlink('{secret}')\nprint('ESCAPED')",
    "rename the secret": "import os\nos.rename('{secret}', '{folder}/other')\nprint('ESCAPED')",
    "open the secret's mode": "import os\nos.chmod('{secret}', 0o777)\nprint('ESCAPED')",
    "truncate the secret": "import os\nos.truncate('{secret}', 0)\nprint('ESCAPED')",
    "write into Python": "import os, sys\nopen(os.path.dirname(os.__file__) + '/evil.py', 'w')\nprint('ESCAPED')",
    "make a folder outside": "import os\nos.mkdir('{folder}/made')\nprint('ESCAPED')",
    "make a device": "import os, stat\nos.mknod('sda', 0o600 | stat.S_IFBLK, os.makedev(8, 0))\nprint('ESCAPED')",
    "leave by chroot": "import os\nos.mkdir('x')\nos.chroot('x')\nfor _ in range(30): os.chdir('..')\nos.chroot('.')\n"
    "print('ESCAPED', open('{secret}').read())",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'/', b'.', None, 4096, None) == 0\nprint('ESCAPED')",
    "open by a process's root": "path = '/proc/1/root{secret}'" + READ,
    "open by a process's folder": "path = '/proc/{pid}/cwd/secret'" + READ,
    "read the parent's memory": "path = '/proc/{pid}/maps'" + READ,
}
LINKS = {
    "symbolic link to the secret": "import os\nos.symlink('{secret}', 'link')\npath = 'link'" + READ,
    "symbolic link to the folder": "import os\nos.symlink('{folder}', 'link')\npath = 'link/secret'" + READ,
    "symbolic link to the root": "import os\nos.symlink('/', 'link')\npath = 'link{secret}'" + READ,
    "a chain of links": "import os\nos.symlink('{folder}', 'a')\nos.symlink('a', 'b')\npath = 'b/secret'" + READ,
    "hard link to the secret": "import os\nos.link('{secret}', 'hard')\npath = 'hard'" + READ,
    "write through a link": "import os\nos.symlink('{folder}', 'a')\nopen('a/written', 'w')\nprint('ESCAPED')",
}
NETWORK = {
    "connect to a port here": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nprint('ESCAPED')",
    "connect by address": "import socket\nsocket.create_connection(('1.1.1.1', 80), 1)\nprint('ESCAPED')",
    "send a datagram": "import socket\nsocket.socket(2, 2).sendto(b'x', ('8.8.8.8', 53))\nprint('ESCAPED')",
    "look up a name": "import socket\nprint('ESCAPED', socket.gethostbyname('example.com'))",
    "listen": "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 0))\ns.listen()\nprint('ESCAPED')",
    "a raw socket": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nprint('ESCAPED')",
    "fetch a page": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)\nprint('ESCAPED')",
    "the system call itself": "import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0\nprint('ESCAPED')",
}
PROCESSES = {
    "fork bomb": "import os\nwhile True:\n    os.fork()\n    print('ESCAPED')",
    "start a shell": "import os\nassert os.system('echo ESCAPED') == 0",
    "start a program": "import subprocess\nprint(subprocess.run(['/bin/echo', 'ESCAPED'], capture_output=True).stdout)",
    "multiprocessing": "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()\nprint('ESCAPED')",
    "a daemon that stays": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    print('ESCAPED')\n    time.sleep(60)",
    "thread bomb": "import threading, time\nfor _ in range(5000):\n    threading.Thread(target=time.sleep, args=(9,)).start()"
    "\nprint('ESCAPED')",
    "new namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10020000) == 0\nprint('ESCAPED')",
}
RESOURCES = {
    "memory at once": "x = bytearray(8 * 2 ** 30)\nprint('ESCAPED')",
    "memory bit by bit": "x = []\nwhile True:\n    x.append(bytearray(2 ** 24))\n    assert len(x) < 100, print('ESCAPED')",
    "endless loop": "while True:\n    pass",
    "sleep": "import time\ntime.sleep(3600)\nprint('ESCAPED')",
    "a loop that catches everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "a huge file": "f = open('x', 'wb')\nfor _ in range(200): f.write(bytes(2 ** 20))\nprint('ESCAPED')",
    "endless output": "while True:\n    print('x' * 10000)",
    "output past Python": "import os\nwhile True:\n    os.write(1, b'x' * 10000)",
    "all file descriptors": "import os\nx = [os.dup(1) for _ in range(5000)]\nprint('ESCAPED')",
}
OTHERS = {
    "the environment": "import os\nassert 'QUATRAIN_TEST_SECRET' in os.environ\nprint('ESCAPED')",
    "kill the caller": "import os\nos.kill({pid}, 9)\nprint('ESCAPED')",
    "stop every process": "import os, signal\nos.kill(-1, signal.SIGUSR1)",
    "become root": "import os\nos.setuid(0)\nassert os.getuid() == 0 and open('/etc/shadow')\nprint('ESCAPED')",
    "trace the caller": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0\nprint('ESCAPED')",
}
ESCAPES = FILES | LINKS | NETWORK | PROCESSES | RESOURCES | OTHERS
