"""The base install is enough for `import vlcal` and `vlcal.ops`; nothing heavy is imported."""

import subprocess
import sys

EXTRAS = [
    "scipy",
    "matplotlib",
    "jinja2",
    "open_clip",
    "PIL",
    "torchvision",
    "jsonargparse",
    "rich",
]


def python(*lines):
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_base_install_imports_evaluates_and_names_the_missing_extra():
    out = python(
        "import sys",
        f"for name in {EXTRAS}: sys.modules[name] = None",
        "import vlcal, vlcal.ops, torch",
        "print(round(vlcal.evaluate(confidence=[0.9, 0.8], correct=[1, 0]).metrics['ece'], 6))",
        "print(vlcal.ops.knn(torch.eye(3), torch.eye(3), 1).index[:, 0].tolist())",
        "from vlcal.cli import main",
        "from vlcal.clip import load",
        "try: load()",
        "except ImportError as error: print(error)",
        "sys.stderr = sys.stdout",
        "print(main(['info']))",
    )
    lines = out.splitlines()
    assert lines[:2] == ["0.45", "[0, 1, 2]"]
    assert "pip install 'vlcal[clip]'" in lines[2]
    assert "vlcal needs jsonargparse: pip install 'vlcal[cli]'" in lines[3]
    assert lines[4] == "1"


def test_import_leaves_the_extras_and_the_network_alone():
    out = python(
        "import socket, sys",
        "def refuse(*_, **__): raise AssertionError('a socket was opened')",
        "socket.socket.connect = socket.getaddrinfo = refuse",
        "import vlcal, vlcal.ops",
        f"print([name for name in {EXTRAS} if name in sys.modules])",
    )
    assert out.strip() == "[]"
