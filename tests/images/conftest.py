"""Podman in a folder of its own, a base made of Debian's packages, and the image of `launchers/Dockerfile` on it.

`BASE` names another base, which is then pulled. What this machine cannot do is skipped with the reason; an image that was
built and does not work fails.
"""

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
DEBIAN = "bookworm"
PACKAGES = "ca-certificates,python3,python3-venv"
TOOLS = ("podman", "runc", "debootstrap")
IMAGE = "localhost/loadtest:tried"
LIMIT_S = 1800


@dataclass(frozen=True)
class Podman:
    """Podman with images, containers and networks in a folder of its own."""

    environment: dict[str, str]

    def ask(self, *argv, timeout_s=LIMIT_S):
        return subprocess.run(
            ["podman", *map(str, argv)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def __call__(self, *argv, timeout_s=LIMIT_S):
        """What the command prints; it must succeed."""
        done = self.ask(*argv, timeout_s=timeout_s)
        assert done.returncode == 0, f"podman {' '.join(map(str, argv))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def wait_for(self, said, name, patience_s):
        """Until the container has said so; it must be running meanwhile."""
        end_s = time.monotonic() + patience_s
        while said not in (logs := self.ask("logs", name)).stdout + logs.stderr:
            running = self("inspect", "--format", "{{.State.Running}}", name).strip() == "true"
            state = f"{name}: {'running' if running else 'ended'}: {logs.stdout[-3000:]}{logs.stderr[-3000:]}"
            assert running, state
            assert time.monotonic() < end_s, state
            time.sleep(0.2)

    def must(self, *argv):
        """As above, but it is this machine that is tried: skip where the command fails."""
        return skip_unless_done("podman", *argv, env=self.environment)


def skip_unless_done(*argv, **options):
    """What the command prints; where it fails, this machine is not permitted what the tests need."""
    try:
        done = subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=LIMIT_S, **options)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{argv[0]} {argv[1]}: not done after {LIMIT_S} s")
    if done.returncode:
        pytest.skip(f"{argv[0]} {argv[1]}: not possible here: {_last_line(done.stdout + done.stderr)}")
    return done.stdout


def _last_line(text):
    return (text.strip().splitlines() or ["no message"])[-1]


@pytest.fixture(scope="session")
def podman(tmp_path_factory):
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() or missing:
        pytest.skip(f"images need root and {', '.join(missing or TOOLS)}")
    place = tmp_path_factory.mktemp("podman")
    (place / "storage.conf").write_text(
        f'[storage]\ndriver = "{_driver(place)}"\ngraphroot = "{place}/storage"\nrunroot = "{place}/running"\n'
    )
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # podman's own defaults are more than a sandbox permits
    (place / "containers.conf").write_text(
        f'[containers]\ndefault_ulimits = ["nofile={open_files}:{open_files}", "nproc=4096:4096"]\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\nlock_type = "file"\n'
        f'tmp_dir = "{place}/engine"\n'
        f'[network]\nnetwork_backend = "netavark"\nnetwork_config_dir = "{place}/networks"\n'
    )
    settings = {"CONTAINERS_STORAGE_CONF": "storage.conf", "CONTAINERS_CONF": "containers.conf"}
    made = Podman(os.environ | {name: str(place / file) for name, file in settings.items()})
    yield made
    made.ask("rm", "--all", "--force", "--time", "0")
    made.ask("network", "prune", "--force")
    made.ask("rmi", "--all", "--force")
    _remove(place)


def _driver(folder):
    """Of the storage: layers over one another where the kernel permits it here, else copies."""
    layers = [folder / name for name in ("lower", "upper", "work", "merged")]
    for layer in layers:
        layer.mkdir()
    options = "lowerdir={},upperdir={},workdir={}".format(*layers[:3])
    mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, layers[3]], capture_output=True)
    if mounted.returncode:
        return "vfs"
    subprocess.run(["umount", layers[3]], check=True)
    return "overlay"


@pytest.fixture(scope="session")
def base(podman, tmp_path_factory):
    """The name of the base: `BASE`, or Debian with its own Python."""
    if named := os.environ.get("BASE"):
        podman("pull", named)
        return named
    folder = tmp_path_factory.mktemp("debian")
    try:
        skip_unless_done("debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, folder, *_mirror())
        for leftover in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        name = f"localhost/debian:{DEBIAN}"
        archived = ["tar", "--create", "--one-file-system", "--directory", folder, "--file", f"{folder}.tar", "."]
        subprocess.run(archived, check=True)
        podman("import", f"{folder}.tar", name)
    finally:
        _remove(folder)
        Path(f"{folder}.tar").unlink(missing_ok=True)
    return name


def _remove(folder):
    """With nothing left mounted below it, as an interrupted debootstrap leaves the machine's /proc."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if (below := line.split()[1]).startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", below], check=True)
    shutil.rmtree(folder)


def _mirror():
    """Where apt has its packages from on this machine, where it says so."""
    argv = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages", "Component: main"]
    known = subprocess.run(argv, capture_output=True, text=True).stdout.splitlines()
    return [site for site, _, release in (line.partition(" ") for line in known) if release == DEBIAN][:1]


@pytest.fixture(scope="session")
def image(podman, base, tmp_path_factory):
    """The name of the image, built."""
    podman.must("build", "--isolation", "chroot", "--file", _probe(tmp_path_factory.mktemp("probe"), base))
    settings, paths = _pip_settings()
    secret = tmp_path_factory.mktemp("pip") / "pip.conf"
    secret.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    volumes = [word for path in paths for word in ("--volume", f"{path}:{path}:ro")]
    argv = [
        "--isolation",
        "chroot",
        "--layers=false",
        "--network",
        "host",
        "--secret",
        f"id=pip.conf,src={secret}",
        *volumes,
    ]
    argv += ["--build-arg", f"BASE={base}", "--tag", IMAGE, "--file", "launchers/Dockerfile"]
    if podman.ask("build", *argv, CHECKOUT).returncode:
        podman("build", *argv, CHECKOUT)  # once more: the network may have failed
    return IMAGE


def _probe(folder, base):
    (folder / "Dockerfile").write_text(f"FROM {base}\nRUN true\n")
    return folder / "Dockerfile"


def _pip_settings():
    """How this machine's pip finds packages, and the files that this names; folders of packages stay outside."""
    argv = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    settings = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = ast.literal_eval(value)
    settings = {name: value for name, value in settings.items() if name == "cert" or not re.search(r"(^|\s|://)/", value)}
    return settings, [settings["cert"]] if "cert" in settings else []
