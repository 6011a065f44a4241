"""The bundle's app code does on its own runtimes what Twinhash does here.

TypeScript runs with ONNX Runtime Web under Node; Kotlin runs on a JVM, where a stand-in repeats LiteRT's recorded
answers; Swift, for which no registry has a compiler, is only parsed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.artifact import KEY
from export.bundle import APPS, Golden, open_bundle, source_of, write_bundle
from export.exporter import golden_of
from export.golden_photos import SIDES as PHOTO_SIDES
from gallery.codes import RULE, pack, unpack
from gallery.decode import _to_rgb, decode, to_square
from gallery.files import sha256_of
from mobile_eval.runtimes import ModelOutput, open_model
from tests.export.factories import BITS, SIZE, Exports, request_for

HERE, KIT = Path(__file__).with_name("apps"), Path(__file__).parents[2] / "export" / "apps" / "web"
GOLDEN, ODD = 5, 25  # golden images; a side for squares that no model takes
WEB: dict[str, str] = json.loads((KIT / "package.json").read_text())["devDependencies"]
KOTLIN = {"kotlin-compiler": "2.4.20"}
KOTLIN_SOURCES = "QueryEncoder.kt", "PhotoDecoder.kt"
OFFLINE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "E403")
SIDES = [(100, 77), (77, 100), (33, 32), (35, 32), (32, 37), (20, 15), (9, 23), (7, 150), (640, 479), (1, 1)]
MODELS = ("onnx-fp32", "onnx-fp16", "onnx-w8a32", "litert-fp32", "litert-w8a32", "coreml-w8a32")


@dataclass(frozen=True)
class Case:
    """A folder with a bundle, images as RGBA bytes, a gallery and three queries; and the images' squares.

    on_white: the square of a translucent image, which is the last one, laid on white
    """

    folder: Path
    bundle: Path
    space: str
    squares: dict[int, NDArray[np.uint8]]
    on_white: NDArray[np.uint8]

    def images(self) -> NDArray[np.uint8]:
        """The squares that the models take, in the order of their numbers."""
        return np.stack([square for square in self.squares.values() if len(square) == SIZE])


Answers = dict[str, str]


@pytest.fixture(scope="module")
def case(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder, student = tmp_path_factory.mktemp("apps"), exports.student
    logits = student.logits[:GOLDEN]
    models = [exports.files[variant] for variant in MODELS]
    golden = golden_of(request_for(student, golden=(student.images[:GOLDEN], pack(logits), logits)))
    write_bundle(folder / "bundle", models, student.space, student.centers, golden)
    squares, on_white = write_images(folder / "images", student.images[:GOLDEN], golden.photos)
    rng = np.random.default_rng(5)
    queries, gallery = (rng.integers(0, 256, (rows, BITS // 8), np.uint8) for rows in (3, 400))
    gallery[100:160] = gallery[:60]  # ties: equal rows, and few distances for many rows
    gallery[7], gallery[300:310], gallery[399] = queries[0], queries[1], ~queries[0]
    (folder / "queries.bin").write_bytes(queries.tobytes())
    (folder / "gallery.bin").write_bytes(gallery.tobytes())
    return Case(folder, folder / "bundle", student.space.id, squares, on_white)


def write_images(
    folder: Path, golden: NDArray[np.uint8], photos: dict[str, bytes]
) -> tuple[dict[int, NDArray[np.uint8]], NDArray[np.uint8]]:
    """`<number>-<width>-<height>-<size>.rgba`: golden images, photos, noise of many shapes, translucent noise."""
    folder.mkdir()
    rng = np.random.default_rng(4)
    noise = [(rng.integers(0, 256, (h, w, 4), np.uint8), size) for w, h in SIDES for size in (SIZE, ODD)]
    for rgba, _ in noise:
        rgba[..., 3] = 255
    translucent = rng.integers(0, 256, (60, 70, 4), np.uint8)
    decoded = [*map(Image.fromarray, golden), *map(decode, photos.values())]
    opaque = [np.asarray(image.convert("RGBA")) for image in decoded]
    squares = {}
    for number, (rgba, size) in enumerate([*((image, SIZE) for image in opaque), *noise, (translucent, ODD)]):
        height, width = rgba.shape[:2]
        (folder / f"{number}-{width}-{height}-{size}.rgba").write_bytes(rgba.tobytes())
        squares[number] = to_square(Image.fromarray(rgba[..., :3]), size)
    return squares, to_square(_to_rgb(Image.fromarray(translucent)), ODD)


def installed(config: pytest.Config, packages: dict[str, str]) -> Path:
    """A folder whose node_modules holds the packages, kept in pytest's cache; skips where they cannot be had."""
    assert config.cache is not None
    folder, wanted = (
        config.cache.mkdir("-".join(packages).replace("/", "-")),
        json.dumps({"private": True, "dependencies": packages}),
    )
    if (folder / "done").is_file() and (folder / "done").read_text() == wanted:
        return folder
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    (folder / "package.json").write_text(wanted)
    quick = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    quick += ["--fetch-retries=0", "--fetch-timeout=60000"]
    run = subprocess.run(["npm", "install", *quick], cwd=folder, capture_output=True, text=True)
    if run.returncode and any(code in run.stderr for code in OFFLINE):
        pytest.skip(f"npm's registry cannot be reached for {', '.join(packages)}")
    assert run.returncode == 0, run.stderr
    (folder / "done").write_text(wanted)
    return folder


def answers(command: Sequence[str | Path], case: Case, cwd: Path) -> Answers:
    run = subprocess.run(
        [*command, case.folder, case.bundle, case.space], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return dict(line.split(" ", 1) for line in run.stdout.splitlines())


@pytest.fixture(scope="module")
def web(case: Case, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The TypeScript of the bundle, type-checked, compiled and run."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    folder = tmp_path_factory.mktemp("web")
    packages = installed(pytestconfig, WEB) / "node_modules"
    (folder / "node_modules").symlink_to(packages)
    for path in (case.bundle / "apps" / "queryEncoder.ts", case.bundle / "apps" / "onnx.ts", HERE / "drive.mjs"):
        shutil.copy(path, folder)
    strict = ["--strict", "--noUnusedLocals", "--noUnusedParameters", "--noImplicitReturns", "--types", ""]
    modern = ["--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", "--lib", "es2022,dom"]
    compiler = ["node", packages / "typescript" / "bin" / "tsc", *strict, *modern, "onnx.ts"]
    check = subprocess.run(compiler, cwd=folder, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    return answers(["node", "drive.mjs"], case, folder)


@pytest.fixture(scope="module")
def android(case: Case, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The Kotlin of the bundle, compiled without a warning, and run with stand-ins for Android and LiteRT."""
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    library = installed(pytestconfig, KOTLIN) / "node_modules" / "kotlin-compiler" / "lib"
    folder = tmp_path_factory.mktemp("android")
    for file in case.bundle.glob("*.tflite"):
        record(file, case)
    sources = [*(case.bundle / "apps" / name for name in KOTLIN_SOURCES), *sorted(HERE.glob("*.kt"))]
    java = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]
    compiler = [*java, library / "kotlin-compiler.jar", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror"]
    standard = f"{library / 'kotlin-stdlib.jar'}:{library / 'kotlinx-coroutines-core-jvm.jar'}"
    options = ["-no-stdlib", "-no-reflect", "-cp", standard, "-d", "out", *sources]
    check = subprocess.run([*compiler, *options], cwd=folder, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    return answers([*java, f"out:{standard}", "DriveKt"], case, folder)


def record(file: Path, case: Case) -> None:
    """Record LiteRT's outputs for the squares, by the names the app uses: image, codes, logits, and the next."""
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(str(file)).get_signature_runner()
    rows = b""
    for image in case.images():
        outputs = signature(image=image[None])
        rows += image.tobytes() + outputs["codes"].tobytes() + outputs["logits"].tobytes()
    (case.folder / f"{file.name}.answers").write_bytes(rows)


@pytest.fixture(params=["web", "android"])
def language(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ran(language: str, request: pytest.FixtureRequest) -> Answers:
    found: Answers = request.getfixturevalue(language)
    return found


def test_a_bundle_carries_the_code_of_its_formats_and_no_other(case: Case, exports: Exports, tmp_path: Path) -> None:
    student, logits = exports.student, exports.student.logits[:1]
    for formats in (["onnx"], ["litert"], ["coreml"], ["coreml", "onnx"]):
        models = [exports.files[f"{name}-w8a32"] for name in formats]
        folder = tmp_path / "-".join(formats)
        write_bundle(folder, models, student.space, student.centers, Golden(student.images[:1], pack(logits), logits))
        names = {name for name, its in APPS.items() if its & {*formats}}
        assert {path.name for path in (folder / "apps").iterdir()} == names
        readme = (folder / "README.md").read_text()
        assert {name for name in APPS if f"apps/{name}" in readme} == names
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        for name in names:
            assert listed[f"apps/{name}"]["sha256"] == sha256_of(folder / "apps" / name)
    open_bundle(case.bundle)


def test_the_readme_claims_what_is_tested_here(case: Case) -> None:
    text = " ".join((case.bundle / "README.md").read_text().split())
    for engine in ("onnxruntime-web", "@litertjs/core"):
        assert f"{engine} {WEB[engine]} (WebAssembly)" in text
    assert f"TypeScript {WEB['typescript']}, strict" in text


APP_STATUS = (  # the one place that says what was compiled and run
    f"| Kotlin: `QueryEncoder.kt`, `PhotoDecoder.kt`, `Release.kt` | compiled with Kotlin {KOTLIN['kotlin-compiler']}",
    "| Android: Gradle files, instrumented test | not compiled |",
    "| Swift: package, XCTest | parsed, not compiled |",
)


def test_what_is_not_compiled_is_said_once(case: Case) -> None:
    said = (case.bundle / "apps" / "README.md").read_text()
    assert said == source_of("README.md").read_text()
    for line in APP_STATUS:
        assert line in said
    folder = source_of("README.md").parent
    others = [path for path in folder.rglob("*") if path.suffix in {".kt", ".kts", ".swift", ".md"}]
    texts = [path.read_text() for path in others if "node_modules" not in path.parts and path.name != "README.md"]
    texts.append((case.bundle / "README.md").read_text())
    assert not any("not compiled" in text or "untested" in text.lower() for text in texts)


def test_golden_photographs_are_decoded_on_the_jvm(android: Answers, case: Case) -> None:
    """By Java's decoders, which know no CMYK; Pillow's profile conversion and Java's differ by 1 of 255."""
    for number, name in enumerate(PHOTO_SIDES, GOLDEN):
        if name == "cmyk.jpg":
            continue
        square = np.frombuffer(bytes.fromhex(android[f"photo:{name}"]), np.uint8).reshape(SIZE, SIZE, 3)
        off = np.abs(square.astype(int) - case.squares[number])
        assert off.max() <= 1, name
        assert off.mean() < 0.05, name


def test_hardware_bitmaps_are_copied_and_closing_waits_for_an_image(android: Answers) -> None:
    of_hardware, of_memory = android["hardware"].split()
    assert of_hardware == of_memory
    assert android["closing"] == "code"  # and no other error than that of a closed interpreter


def test_the_kotlin_calls_android_by_its_own_names() -> None:
    """The stand-ins have the methods of Android's API 36, by the number of their arguments."""
    stubs = android_stubs()
    for name, calls in ANDROID_CALLS.items():
        module, _, kind = name.rpartition(".")
        for method, count in calls.items():
            found = arities(stubs / f"{module.removeprefix('android.')}/__init__.pyi", kind.split("$"), method)
            assert count in found, f"{name}.{method}: {found}"


ANDROID_CALLS: dict[str, dict[str, int]] = {  # in PhotoDecoder.kt and QueryEncoder.kt; properties by their methods
    "android.graphics.ImageDecoder": {
        "createSource": 2, "decodeBitmap": 2, "setAllocator": 1, "setTargetColorSpace": 1, "setTargetSampleSize": 1,
        "setUnpremultipliedRequired": 1,
    },
    "android.graphics.ImageDecoder$ImageInfo": {"getSize": 0, "getMimeType": 0},
    "android.graphics.ImageDecoder$OnHeaderDecodedListener": {"onHeaderDecoded": 3},
    "android.graphics.ColorSpace": {"get": 1},
    "android.graphics.Bitmap": {"getPixels": 7, "getWidth": 0, "getHeight": 0, "getConfig": 0, "copy": 2},
    "android.util.Size": {"getWidth": 0, "getHeight": 0},
    "android.net.Uri": {"fromFile": 1},
}  # fmt: skip


def android_stubs() -> Path:
    """The folder of Android's API as Python stubs."""
    try:
        found = distribution("chaquopy-stubs-android")
    except PackageNotFoundError:
        pytest.skip("chaquopy-stubs-android is not installed")
    return Path(str(found.locate_file("android-stubs")))


def arities(path: Path, classes: list[str], method: str) -> set[int]:
    """How many arguments, but for `self`, the forms of a method take."""
    body: list[ast.stmt] = ast.parse(path.read_text()).body
    for name in classes:
        body = next(one.body for one in body if isinstance(one, ast.ClassDef) and one.name == name)
    forms = [one for one in body if isinstance(one, ast.FunctionDef) and one.name == method]
    return {len([a for a in (*one.args.posonlyargs, *one.args.args) if a.arg != "self"]) for one in forms}


def output_of(ran: Answers, name: str) -> ModelOutput:
    """The codes and logits of one model for every image, in order."""
    numbers = sorted(int(key.split(":")[2]) for key in ran if key.startswith(f"code:{name}:"))
    codes = [np.frombuffer(bytes.fromhex(ran[f"code:{name}:{number}"]), np.uint8) for number in numbers]
    logits = [np.array(ran[f"logits:{name}:{number}"].split(","), np.float32) for number in numbers]
    return ModelOutput(np.stack(codes), np.stack(logits))


def test_golden_images_give_their_codes(ran: Answers, language: str, case: Case) -> None:
    golden = json.loads((case.bundle / "golden.json").read_text())
    logits = np.array([row["logits"] for row in golden])
    codes = output_of(ran, "query-fp32" + {"web": ".onnx", "android": ".tflite"}[language]).codes[: len(golden)]
    expected = np.stack([np.frombuffer(bytes.fromhex(row["code"]), np.uint8) for row in golden])
    flipped = unpack(codes) != unpack(expected)
    assert not flipped[np.abs(logits) > 1e-3].any()
    assert (np.abs(logits) > 1e-3).mean() > 0.99
    assert [row["file"] for row in golden[GOLDEN:]] == [f"golden/photos/{name}" for name in PHOTO_SIDES]
    for number, row in enumerate(golden):
        assert hashlib.sha256(bytes.fromhex(ran[f"square:{number}"])).hexdigest() == row["square"], row["file"]


def test_every_model_returns_the_logits_it_returns_here(ran: Answers, language: str, case: Case) -> None:
    images, suffix, count = case.images(), *{"web": (".onnx", 3), "android": (".tflite", 2)}[language]
    files = [file.path for file in open_bundle(case.bundle).files if file.path.suffix == suffix]
    assert len(files) == count
    for file in files:
        expected, found = open_model(file).run(images), output_of(ran, file.name)
        assert np.allclose(found.logits, expected.logits, atol=0.02 if "fp16" in file.name else 2e-4)
        assert np.array_equal(found.codes, pack(found.logits))


def test_squares_are_the_servers_to_the_last_bit(ran: Answers, language: str, case: Case) -> None:
    translucent = GOLDEN + len(PHOTO_SIDES) + 2 * len(SIDES)
    assert translucent == max(case.squares)
    for number, square in case.squares.items():
        on_white = language == "android" and number == translucent  # on the web pixelsOf has laid it on white before
        assert ran[f"square:{number}"] == (case.on_white if on_white else square).tobytes().hex(), number


def test_neighbours_come_by_distance_then_by_row(ran: Answers, case: Case) -> None:
    queries, gallery = (
        np.frombuffer((case.folder / f"{name}.bin").read_bytes(), np.uint8).reshape(-1, BITS // 8)
        for name in ("queries", "gallery")
    )
    tied = 0
    for row, query in enumerate(queries):
        distances = (np.unpackbits(gallery, axis=1) != np.unpackbits(query)).sum(axis=1)
        order = np.lexsort((np.arange(len(gallery)), distances))
        tied += 10 - len(set(distances[order[:10]]))
        for k in (1, 10, 1000):
            assert ran[f"nearest:{row}:{k}"] == ",".join(f"{i}:{distances[i]}" for i in order[:k])
    assert tied
    assert ran["nearest:0:1"] == "7:0"
    assert ran["nearest:0:1000"].endswith("399:64")


def test_what_does_not_fit_is_an_error_with_both_sides(ran: Answers, case: Case) -> None:
    assert case.space in ran["error:foreign"]
    assert "f" * 16 in ran["error:foreign"]
    assert "rule" in ran["error:rule"]
    assert f'"{RULE}"' in ran["error:rule"]
    assert "update this code" in ran["error:rule"]
    assert "metadata" in ran["error:bare"]
    assert "k = 0" in ran["error:k"]
    assert "8 bytes" in ran["error:rows"]
    assert all(message for key, message in ran.items() if key.startswith("error:"))


def test_metadata_of_the_web_counts_only_for_the_bytes_it_was_signed_for(web: Answers, case: Case) -> None:
    (name, *_) = sorted(path.name for path in case.bundle.glob("*.onnx"))
    for what in ("damaged", "sha256"):
        assert name in web[f"error:{what}"]
        assert "SHA-256" in web[f"error:{what}"]
    assert "0" * 64 in web["error:sha256"]
    assert "other.onnx" in web["error:stranger"]
    assert "README.md" in web["error:README.md"]
    assert "12 bytes" in web["error:pixels"]


def test_what_is_no_tflite_file_is_an_error_on_android(android: Answers) -> None:
    assert "tflite" in android["error:damaged"]
    assert "tflite" in android["error:noise"]


def test_the_swift_parses_and_names_what_the_package_holds(case: Case, exports: Exports) -> None:
    parser = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_swift")
    source = (case.bundle / "apps" / "QueryEncoder.swift").read_bytes()
    swift = parser.Parser(parser.Language(grammar.language()))
    package = source_of("README.md").parent / "swift"
    files = [package / "Package.swift", *package.glob("Sources/*/*.swift"), *package.glob("Tests/*/*.swift")]
    assert len(files) == 4
    for file in files:
        assert not swift.parse(file.read_bytes()).root_node.has_error, file
    assert swift.parse(source.replace(b"guard", b"guard else", 1)).root_node.has_error
    metadata = exports.files["coreml-w8a32"].metadata
    rules = [str(metadata.rule), metadata.layout, metadata.colour_order, metadata.bit_order, str(metadata.version)]
    for name in [KEY, *rules, "image", "codes", "logits"]:
        assert f'"{name}"'.encode() in source, name
