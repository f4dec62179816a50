"""The compiled passes: the compiler, what is kept of it, and where there is none."""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.native import _build, in_passes
from tests.compiling import flags
from tests.helpers import ROOT
from tests.helpers_native import MARKS, adamw
from tests.helpers_native import cache as cache

pytestmark = MARKS


def script(body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    head = """
        import warnings
        import jax, jax.numpy as jnp, adamx
        init, step = adamx.fused(adamx.adamw(1e-3), kernel="native")
        p = {"w": jnp.linspace(-1, 1, 100_001), "b": jnp.ones(3)}
        g = {"w": jnp.ones(100_001), "b": jnp.ones(3)}
        run = jax.jit(lambda p, s, g: step(g, s, p), donate_argnums=(0, 1))
    """
    code = textwrap.dedent(head) + textwrap.dedent(body)
    paths = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags(there="")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | paths | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_without_a_compiler_xla_runs_and_a_warning_says_so(tmp_path):
    body = """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            q, s = run(p, init(p), g)
            again = jax.jit(lambda p, s, g: step(g, s, p))(q, s, q)
        assert "adamx_" not in run.lower(q, s, q).compile().as_text()
        print(len(caught), caught[0].message, float(q["b"][0]))
    """
    run = script(body, CC="no-such-compiler", ADAMX_CACHE=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("1 adamx: no C compiler found"), run.stdout
    assert "0.998" in run.stdout or "0.999" in run.stdout


def test_a_compiler_that_fails_is_quoted(tmp_path):
    body = """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            q, s = run(p, init(p), g)
        print(len(caught), caught[0].message)
    """
    run = script(body, ADAMX_CFLAGS="--no-such-option", ADAMX_CACHE=str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert "failed; kernel='native' runs as kernel='xla'" in run.stdout
    assert "no-such-option" in run.stdout
    assert not list(tmp_path.glob("*"))


def test_programs_are_kept_and_serve_programs_that_xla_kept(tmp_path):
    """A second process compiles nothing, neither here nor in XLA."""
    body = """
        q, s = run(p, init(p), g)
        q, s = run(q, s, g)
        print(float(q["w"][0]), float(q["w"][-1]))
    """
    kept = {
        "ADAMX_CACHE": str(tmp_path / "c"),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    first = script(body, **kept)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "c"
    made = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(made) == 1
    second = script(body, **kept)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert made == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()
    }


def test_a_cache_that_others_could_write_to_is_not_used(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    run = script("q, s = run(p, init(p), g); print('ran')", ADAMX_CACHE=str(shared))
    assert run.stdout == "ran\n", run.stderr
    assert not list(shared.iterdir())


def test_a_compiler_with_arguments_and_a_folder_with_a_space(tmp_path):
    folder = tmp_path / "a folder"
    cc = f"{_build.compiler()} -DWITH_ARGUMENTS"
    run = script("run(p, init(p), g); print('ran')", CC=cc, ADAMX_CACHE=str(folder))
    assert run.stdout == "ran\n", run.stderr
    assert "adamx: " not in run.stderr
    assert len(list(folder.glob("*.so"))) == 1


@pytest.mark.skipif(shutil.which("clang") is None, reason="there is no clang")
def test_another_compiler_makes_the_same_of_it(tmp_path):
    """It refuses what only GCC knows."""
    run = script(
        "q, s = run(p, init(p), g); print('ran')", CC="clang", ADAMX_CACHE=str(tmp_path)
    )
    assert run.stdout == "ran\n", run.stderr
    assert "adamx: " not in run.stderr
    assert len(list(tmp_path.glob("*.so"))) == 1


def test_only_what_a_compiler_knows_is_asked_of_it(monkeypatch):
    monkeypatch.setattr(_build, "_version", lambda: "Apple clang version 15.0.0")
    assert "-fno-tree-pre" not in _build._flags()
    monkeypatch.setattr(_build, "_version", lambda: "gcc (GCC) 12.2.0")
    assert "-fno-tree-pre" in _build._flags()


def compiled_anew(x: float) -> Any:
    """A program that no other test has: it is not loaded yet."""
    return jax.jit(lambda p: in_passes(lambda p: p * x, p))


def test_a_broken_file_in_the_cache_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMX_CACHE", str(tmp_path))
    real = _build._compiled

    def broken(folder: Any, name: str, text: str) -> Any:
        if folder == tmp_path:
            (folder / f"{name}.so").write_bytes(b"")
        return real(folder, name, text)

    monkeypatch.setattr(_build, "_compiled", broken)
    np.testing.assert_array_equal(compiled_anew(1.25)(jnp.ones(3)), 1.25)


def test_without_a_home_programs_are_kept_for_this_process(monkeypatch):
    def home() -> Any:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ADAMX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(_build.pathlib.Path, "home", home)
    assert _build._own_folder() == _build._temporary_folder()


def test_threads_that_trace_one_program_register_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMX_CACHE", str(tmp_path))
    made: list[str] = []
    real = _build._compiled

    def slow(folder: Any, name: str, text: str) -> Any:
        made.append(name)
        path = real(folder, name, text)
        made[-1] += " is there"
        return path

    monkeypatch.setattr(_build, "_compiled", slow)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: compiled_anew(1.75)(jnp.ones(3)), range(4))
        assert all(np.all(np.asarray(x) == 1.75) for x in found)
    assert len(made) == 1


def test_columns_of_two_widths_are_aligned(tmp_path):
    """The compiler's own check stops the process at an address that is not."""
    body = """
        from adamx.native import in_passes
        jax.config.update("jax_enable_x64", True)
        x = jnp.arange(70_000 * 7, dtype=jnp.float64).reshape(-1, 7)
        widths = lambda x: (jnp.max(x.astype(jnp.float32), axis=0), jnp.max(x, axis=0))
        print(jax.jit(lambda x: in_passes(widths, x))(x)[1][0])
    """
    flags = "-fsanitize=alignment -fsanitize-undefined-trap-on-error"
    run = script(body, ADAMX_CFLAGS=flags, ADAMX_CACHE=str(tmp_path))
    assert run.stdout == f"{69_999 * 7}.0\n", run.stderr


@pytest.mark.slow
def test_address_sanitizer_finds_nothing(tmp_path):
    def library(name: str) -> str:
        command = [str(_build.compiler()), f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    # The second for the first, which looks there for what throws exceptions.
    found = [library("libasan.so"), library("libstdc++.so")]
    if not all(map(os.path.isabs, found)):
        pytest.skip("the compiler has no address sanitizer")
    body = """
        import optax
        tx = optax.chain(adamx.clip_by_global_norm(1.0), adamx.adamw(1e-3))
        init, step = adamx.fused(tx, kernel="native")
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            shapes = ((1,), (17,), (32768,), (32769,), (5, 77, 3), (200_000,))
            p = [jnp.ones(shape, dtype) for shape in shapes]
            run = jax.jit(lambda p, s, g: step(g, s, p), donate_argnums=(0, 1))
            s = init(p)
            for _ in range(5):
                p, s = run(p, s, [jnp.ones(x.shape, dtype) for x in p])
            jax.block_until_ready(p)
        codecs = adamx.codecs
        for made in (codecs.int8, codecs.int4, codecs.fp8):
            codec = made(min_size=0)
            tx = adamx.adamw(1e-3, mu_dtype=codec, nu_dtype=codec)
            init, step = adamx.fused(tx, kernel="native")
            shapes = ((1, 1), (131, 33), (301, 257), (3, 70, 5), (1, 33_001))
            p = [jnp.ones(shape) for shape in shapes]
            run = jax.jit(lambda p, s, g: step(g, s, p), donate_argnums=(0, 1))
            s = init(p)
            for _ in range(5):
                p, s = run(p, s, [jnp.ones(x.shape) for x in p])
            jax.block_until_ready(p)
        print("clean")
    """
    run = script(
        body,
        LD_PRELOAD=" ".join(found),
        ASAN_OPTIONS="detect_leaks=0",
        ADAMX_CFLAGS="-fsanitize=address -g",
        ADAMX_CACHE=str(tmp_path),
    )
    assert run.stdout == "clean\n", run.stderr[-3000:]


def test_another_kernel_is_refused():
    with pytest.raises(ValueError, match=r"`kernel` must be one of 'xla', 'native'"):
        adamx.fused(adamw(), kernel="c")
