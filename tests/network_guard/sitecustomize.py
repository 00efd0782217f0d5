"""No network but loopback, for every Python process that has this folder on its PYTHONPATH.

Python imports a module of this name when it starts: kernels, joblib workers and JupyterLab servers that the tests
start get it without knowing. An audit hook sees each connection and each look-up before it happens, whichever library
asks for it, and nothing can take the hook off again. What is not Python (a browser) needs flags of its own.
"""

import importlib.util
import ipaddress
import socket
import sys
from importlib.machinery import PathFinder
from pathlib import Path

SENDS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


def is_here(host):
    """Whether `host` (text, bytes or None) means this machine."""
    name = host.decode("utf-8", "replace") if isinstance(host, bytes | bytearray) else str(host or "localhost")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name.lower().rstrip(".") in ("localhost", socket.gethostname().lower())
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def refuse_what_is_not_here(event, arguments):
    if event in SENDS:
        sock, address = arguments[:2]
        host = address[0] if address and sock.family in (socket.AF_INET, socket.AF_INET6) else None
    elif event in LOOK_UPS:
        host = arguments[0]
    else:
        return
    if not is_here(host):
        raise OSError(f"the course's tests allow no network: {event.removeprefix('socket.')} to {host}")


def install():
    """Guard this process; once is enough."""
    if not hasattr(socket, "guarded_by_the_course"):
        socket.guarded_by_the_course = True
        sys.addaudithook(refuse_what_is_not_here)


def run_the_hidden_one():
    """Some Pythons bring a sitecustomize of their own, which this one hides: run that too."""
    here = Path(__file__).resolve().parent
    spec = PathFinder.find_spec("sitecustomize", [p for p in sys.path if Path(p).resolve() != here])
    if spec and spec.loader:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    install()
    run_the_hidden_one()
