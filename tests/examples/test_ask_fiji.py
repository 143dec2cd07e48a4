"""The Fiji script, run by ImageJ 1 and Groovy on a virtual screen, against a real server.

It needs no Fiji, but the parts of it that the script uses. On Debian: apt-get install imagej groovy
openjdk-17-jre xvfb xauth.
"""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT
from support.student_server import StudentServer

JARS = [Path("/usr/share/java") / name for name in ("ij.jar", "groovy-all.jar")]
# Debian's Groovy does not run on later ones.
JAVA = next(iter(sorted(Path("/usr/lib/jvm").glob("java-1[17]-*/bin/java"))), None)
XVFB = shutil.which("xvfb-run")
QUESTION = 'How "large" are they,\tin µm?'
SCRIPT = ROOT / "examples" / "ask_mvaema.groovy"

# Opens an image as a user would, and fills in the dialog as a macro would.
DRIVER = """
import ij.*
import ij.gui.Roi
def image = IJ.openImage(args[0])
image.show()
image.calibration.pixelWidth = 0.005
image.calibration.pixelHeight = 0.005
image.calibration.setUnit("um")
image.setRoi(new Roi(10, 20, 60, 50))
Thread.currentThread().setName("Run\\$_ask")
Macro.setOptions("question=[" + args[3] + "] server=" + args[1])
evaluate(new File(args[2]))
System.exit(0)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (XVFB and JAVA and all(jar.is_file() for jar in JARS)),
        reason="needs ImageJ, Groovy, Java 17 and Xvfb (the docstring says where from)",
    ),
]


@pytest.fixture
def picture(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (90, 100), dtype=np.uint8)
    pixels[0, :2] = 0, 255  # so that ImageJ shows all grey levels as they are
    path = tmp_path / "wafer.png"
    Image.fromarray(pixels).save(path)
    return path


def run(picture: Path, url: str, folder: Path, key: str | None = None) -> str:
    """What the script writes to the log."""
    driver = folder / "driver.groovy"
    driver.write_text(DRIVER)
    command = [
        XVFB,
        "-a",
        str(JAVA),
        "-Dfile.encoding=UTF-8",
        "-cp",
        os.pathsep.join(map(str, JARS)),
    ]
    command += ["groovy.ui.GroovyMain", "-c", "UTF-8", str(driver)]
    environment = {k: v for k, v in os.environ.items() if k != "MVAEMA_API_KEY"}
    environment |= {"LC_ALL": "C.UTF-8", **({"MVAEMA_API_KEY": key} if key else {})}
    done = subprocess.run(
        [*command, str(picture), url, str(SCRIPT), QUESTION],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_server_answers_about_the_drawn_rectangle(model, picture, tmp_path):
    with Image.open(picture) as image:
        region = image.crop((10, 20, 70, 70))
    expected = model.answer(region, QUESTION, pixel_size_nm=5.0)
    other = model.answer(region, QUESTION)
    assert expected != other  # the scale does reach the student
    with StudentServer(model, keys=["secret"]) as server:
        printed = run(picture, server.url.removesuffix("/v1"), tmp_path, "secret")
        refused = run(picture, server.url.removesuffix("/v1"), tmp_path, "wrong")
    assert printed == f"{QUESTION}\n{expected}\n"
    assert refused.startswith("No answer: ") and "key" in refused


def test_a_server_that_is_not_there_is_named(picture, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        printed = run(picture, url, tmp_path)
    assert printed.startswith(f"No answer from {url}. Is `mvaema serve` running there?")
