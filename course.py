"""Set the course up and use it. Needs nothing but Python 3.10 or newer.

    python course.py lab      open the course in JupyterLab
    python course.py test     prove that everything works: the unit tests and every notebook
    python course.py run      run notebooks from top to bottom and save their outputs: all, or those named (01 03)
    python course.py site     make the web site in the folder site: every notebook, every slider alive, no kernel
    python course.py slides   make the slides of the notebooks that are named (01 03)
    python course.py check    say what this machine has, and what to do about what is missing

All but `check` first install what is missing into the folder .venv beside this file; COURSE_VENV names another
folder. If the course is installed already for the Python that runs this file (conda, or `pip install -e .`),
that Python is used as it is. What follows the command is handed on: `lab --no-browser`, `run 01`.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import webbrowser
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

# No annotations and no new syntax: an older Python must come as far as the line that says it is too old.
ROOT = Path(__file__).resolve().parent
WINDOWS = os.name == "nt"
OLDEST_PYTHON = (3, 10)
FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"
INSTALL = ["-e", ".[test,site]", "-c", "constraints.txt"]
GB = 10**9
INSTALLED_GB = 6.5 if sys.platform.startswith("linux") else 1.5  # on Linux PyTorch brings the CUDA libraries
NO_NEWS = '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}\n'
DATA = ["letters.npz", "FashionMNIST", "fashion-mnist", "cifar-10-batches-py", "cifar-100-python"]
TORCH_REPORT = """
import torch, torchvision
from course_utils.runtime import available_devices
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, device {available_devices()[0]}")
"""


class Problem(Exception):
    """Something foreseeable, shown as one line without a traceback."""


# --- the environment ---


def venv_folder():
    chosen = os.environ.get("COURSE_VENV")
    return Path(chosen).expanduser().absolute() if chosen else ROOT / ".venv"


def venv_python(venv):
    if venv == Path(sys.prefix):
        return Path(sys.executable)  # conda on Windows has it elsewhere
    return venv / "Scripts" / "python.exe" if WINDOWS else venv / "bin" / "python"


def stamp_file(venv):
    return venv / "course-stamp.txt"


def stamp(venv):
    """What the environment must have been made from; a different value means: install again."""
    lines = (venv / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    settings = dict(line.replace(" ", "").split("=", 1) for line in lines if "=" in line)
    python = settings.get("version") or settings.get("version_info", "")
    sources = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*sources, python.encode(), os.fsencode(ROOT)])).hexdigest()


def state(venv):
    """`missing`, `broken`, `unfinished` (or made from other versions, or moved) or `ready`."""
    if not venv.exists() or (venv.is_dir() and not any(venv.iterdir())):
        return "missing"
    if not (venv / "pyvenv.cfg").is_file() or not venv_python(venv).exists():
        return "broken"
    saved = stamp_file(venv)
    return "ready" if saved.is_file() and saved.read_text(encoding="utf-8").strip() == stamp(venv) else "unfinished"


# --- or an environment that somebody else made ---


def installed(name):
    """What is installed for this Python under `name`, or None. The project folder's own .egg-info says nothing."""
    from importlib.metadata import distributions

    places = [place for place in sys.path if Path(place).resolve() != ROOT]
    return next(iter(distributions(name=name, path=places)), None)


def required(group):
    """{name: lower bound} of a list in pyproject.toml, by hand: Python 3.10 cannot read TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.search(rf"^{group} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    return dict(re.findall(r'^ +"([\w-]+)>=([\d.]+)"', lines, re.MULTILINE))


def numbers(version):
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])]


def installed_here(*groups):
    """Whether somebody installed the course for this Python, from this folder; then it must have all that is needed."""
    if os.environ.get("COURSE_VENV") or Path(sys.prefix) == venv_folder():
        return False
    course = installed("longtail-course")
    address = json.loads((course and course.read_text("direct_url.json")) or "{}").get("url", "")
    if not address or Path(url2pathname(urlsplit(address).path)).resolve() != ROOT:
        return False
    needed = {name: bound for group in ("dependencies", *groups) for name, bound in required(group).items()}
    found = {name: installed(name) for name in needed}
    lacking = [f"{n}>={b}" for n, b in needed.items() if not found[n] or numbers(found[n].version) < numbers(b)]
    if lacking:
        raise Problem(
            f"the course is installed for {sys.executable}, but not {', '.join(lacking)}: run "
            '`pip install -e ".[test,site]"` there, or set COURSE_VENV=.venv for an environment that course.py makes'
        )
    return True


def works(command):
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def find_uv():
    """The command that starts uv, or an empty list: uv does in half a minute what takes pip several."""
    candidates = [["uv"]] if shutil.which("uv") else []
    if importlib.util.find_spec("uv"):
        candidates.append([sys.executable, "-m", "uv"])
    return next((command for command in candidates if works([*command, "--version"])), [])


def free_gb(folder):
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / GB


def check_space(venv, uv):
    needed, free = INSTALLED_GB * (1.25 if uv else 2), free_gb(venv)  # pip holds every archive twice meanwhile
    if free < needed:
        raise Problem(
            f"{free:.1f} GB are free where {venv} belongs, {needed:.1f} GB are needed: make room, "
            "or set COURSE_VENV to a folder on another disk"
        )


def create(venv, uv):
    options = [] if importlib.util.find_spec("ensurepip") else ["--without-pip"]
    if not importlib.util.find_spec("venv") or (options and not uv):
        raise Problem(
            "this Python cannot make virtual environments: on Debian and Ubuntu run `sudo apt install python3-venv`, "
            "elsewhere install Python from its own site; then run this again"
        )
    command = [sys.executable, "-m", "venv", *options, str(venv)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Problem(f"could not make {venv}: {said[-1] if said else 'no reason given'}")


def install(venv, uv):
    """With uv where there is one; pip otherwise, and also where uv fails: uv does not read pip's settings."""
    python = str(venv_python(venv))
    if uv and subprocess.run([*uv, "pip", "install", "--python", python, *INSTALL], cwd=ROOT).returncode == 0:
        return
    if uv:
        print("uv did not succeed; trying pip", flush=True)
    pip = [python, "-m", "pip"]
    if not works([*pip, "--version"]) and not works([python, "-m", "ensurepip"]):
        raise Problem(f"{venv} has no pip: delete that folder and run this again")
    if subprocess.run([*pip, "install", "--disable-pip-version-check", *INSTALL], cwd=ROOT).returncode:
        full = free_gb(venv) < 0.5
        reason = "the disk is full" if full else "the reason stands above; most often there is no network"
        raise Problem(f"the installation did not finish ({reason}). The same command continues it")


def prepare(*groups):
    """The environment, installed or repaired where needed."""
    if installed_here(*groups):
        return Path(sys.prefix)
    venv = venv_folder()
    condition = state(venv)
    if condition == "ready":
        return venv
    if condition == "broken" or (condition == "unfinished" and not works([str(venv_python(venv)), "-c", ""])):
        raise Problem(f"{venv} is not a working Python environment: delete that folder and run this again")
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        raise Problem("PyTorch no longer comes for Intel Pythons on a Mac: take an arm64 Python, or environment.yml")
    uv = find_uv()
    if condition == "missing":
        check_space(venv, uv)
    verb, tool = "Installing" if condition == "missing" else "Completing", "uv" if uv else "pip"
    size = f"about {INSTALLED_GB} GB on disk; this happens once"
    print(f"{verb} PyTorch, JupyterLab and what they need with {tool} in {venv} ({size})", flush=True)
    if condition == "missing":
        create(venv, uv)
    install(venv, uv)
    stamp_file(venv).write_text(stamp(venv) + "\n", encoding="utf-8")
    return venv


# --- the commands ---


def environment(venv, **more):
    """Variables for the programs we start: they find this environment first, whatever else is installed."""
    path = str(venv_python(venv).parent) + os.pathsep + os.environ.get("PATH", "")
    found = {**os.environ, "PATH": path, "VIRTUAL_ENV": str(venv), "JUPYTER_PREFER_ENV_PATH": "1", **more}
    found.pop("PYTHONHOME", None)
    if WINDOWS:
        found["PYTHONUTF8"] = "1"
    return found


def hand_over(command, variables):
    """Become `command`, run in the project folder; its exit code is ours."""
    os.chdir(ROOT)
    sys.stdout.flush()
    if not WINDOWS:
        os.execve(command[0], command, variables)
    process = subprocess.Popen(command, env=variables)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the program has got it too and decides
            pass


def start(venv, module, *arguments, **variables):
    return hand_over([str(venv_python(venv)), "-m", module, *arguments], environment(venv, **variables))


def lab(extra):
    venv = prepare()
    settings = venv / "share/jupyter/lab/settings/overrides.json"
    if stamp_file(venv).exists() and not settings.exists():  # an environment of somebody else stays as it is
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(NO_NEWS, encoding="utf-8")
    options = [f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK}"]
    if hasattr(os, "getuid") and os.getuid() == 0:
        options.append("--allow-root")
    return start(venv, "jupyterlab", *options, *extra)


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def test(extra):
    os.environ.setdefault("COURSE_JOBS", str(max(1, cores() // 4)))  # up to four notebooks share the cores already
    side_by_side = ["-n", "auto", "--maxprocesses=4", "--dist=loadfile"]  # a notebook stays in one process
    return start(prepare("test", "site"), "pytest", *side_by_side, *extra, OMP_NUM_THREADS="1")


def run(extra):
    extra = [str(Path(name).absolute()) if Path(name).is_file() else name for name in extra]  # whose file is it?
    return start(prepare(), "course_utils.classroom.notebooks", *extra, OMP_NUM_THREADS="1")


def with_absolute_out(extra):
    """The folder after --out as the reader meant it: seen from where the command was given."""

    def absolute(path):
        return str(Path(path).expanduser().absolute())

    extra = [f"--out={absolute(word[6:])}" if word.startswith("--out=") else word for word in extra]
    return [absolute(word) if before == "--out" else word for before, word in zip([None, *extra], extra, strict=False)]


def site(extra):
    module = "course_utils.classroom.site"
    return start(prepare("site"), module, *with_absolute_out(extra), OMP_NUM_THREADS="1")


def slides(extra):
    module = "course_utils.classroom.slides"
    return start(prepare("site"), module, *with_absolute_out(extra), OMP_NUM_THREADS="1")


def memory_gb():
    if not WINDOWS:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    import ctypes

    kilobytes = ctypes.c_ulonglong()
    ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * 1024 / GB


def describe_torch(venv):
    condition = state(venv) if venv == venv_folder() else "ready"
    if condition == "missing":
        return f"not installed yet: `python course.py lab` does it (about {INSTALLED_GB} GB)"
    if condition == "broken":
        return f"{venv} is not a working environment: delete that folder, then `python course.py lab`"
    command = [str(venv_python(venv)), "-c", TORCH_REPORT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return f"does not work ({said[-1] if said else 'no reason given'}): `python course.py lab` repairs it"
    return done.stdout.strip() + ("" if condition == "ready" else "; not up to date: `python course.py lab` repairs it")


def describe_browser():
    try:
        return f"found ({webbrowser.get().name})"
    except (webbrowser.Error, AttributeError):
        return "none found: use `python course.py lab --no-browser` and open the address it prints"


def describe_fonts():
    if not sys.platform.startswith("linux") or not shutil.which("fc-list"):
        return "cannot be listed here; other systems than Linux bring what the glossary needs"
    codes = {"Korean": "ko", "Chinese": "zh-cn"}
    lists = {name: subprocess.run(["fc-list", f":lang={code}"], capture_output=True) for name, code in codes.items()}
    missing = " and ".join(name for name, done in lists.items() if not done.stdout.strip())
    return f"none for {missing}: the glossary needs one, such as fonts-noto-cjk" if missing else "enough"


def describe_data():
    chosen = os.environ.get("COURSE_DATA")
    folders = [ROOT / "data", Path("/usr/share/datasets"), *([Path(chosen).expanduser()] if chosen else [])]
    found = [str(folder / name) for folder in folders for name in DATA if (folder / name).exists()]
    letters = any(path.endswith("letters.npz") for path in found)
    return (", ".join(found) or "none") + ("" if letters else "; the letters of the course are missing: fetch it anew")


def check(extra):
    """Works before anything is installed, and changes nothing."""
    try:
        venv = Path(sys.prefix) if installed_here() else venv_folder()
    except Problem as problem:
        venv, packages = Path(sys.prefix), str(problem)
    else:
        packages = describe_torch(venv)
    print(f"Python    {platform.python_version()} ({sys.executable})")
    print(
        f"machine   {platform.system()} {platform.machine()}, {cores()} cores, {memory_gb():.1f} GB memory (2 needed)"
    )
    print(f"disk      {free_gb(venv):.1f} GB free where the packages go (about {INSTALLED_GB} GB)")
    print(f"packages  {packages}")
    print(f"browser   {describe_browser()}")
    print(f"fonts     {describe_fonts()}")
    print(f"data      {describe_data()}")
    return 0


COMMANDS = {"lab": lab, "test": test, "run": run, "site": site, "slides": slides, "check": check}


def main(arguments):
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a folder's name may have letters that a Windows pipe has not
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise Problem(f"Python 3.10 or newer is needed, this is {platform.python_version()} ({sys.executable})")
        if arguments[0] not in COMMANDS:
            raise Problem(f"unknown command {arguments[0]!r}: there are {', '.join(COMMANDS)}")
        return COMMANDS[arguments[0]](arguments[1:])
    except (Problem, OSError) as problem:
        print(f"course.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("course.py: stopped; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
