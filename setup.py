"""Build of the native extension: a shared library on the libtorch stable ABI, one object per instruction set.

Where Python's headers are installed a small module on Python's limited API lets the streaming engine be called faster.

Everything else about the package is in pyproject.toml.  Environment variables:

DYNCP_NO_EXTENSION=1  install the pure-Python package, without the extension
CXX                   the C++ compiler (default: the first of c++, g++, clang++)
DYNCP_CXXFLAGS        further compiler flags, for example "-g -fsanitize=address"
MAX_JOBS              how many compilers run at once (default: all processors)
DYNCP_CUDA            1 builds the CUDA kernels, 0 does not (default: where torch has CUDA and nvcc is there)
DYNCP_CUDA_ARCHS      compute capabilities to build for, as "80;90;100" (default: those of the GPUs here, else these)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
OBJECTS = ROOT / "build" / "objects"

# Stable ABI of torch 2.11: one binary for that release and all later ones.
TORCH_TARGET_VERSION = "0x020b000000000000"

X86_SETS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
}
# Sums of products of bytes, on top of AVX-512: for the streaming kernels only.
X86_SETS["avx512vnni"] = [*X86_SETS["avx512"], "-mavx512vnni"]
# Tile registers, on top of those; compilers know them since GCC 11 and Clang 12.
X86_SETS["amx"] = [*X86_SETS["avx512vnni"], "-mavx512vbmi", "-mamx-tile", "-mamx-bf16"]
# Sums of products of bytes, for the streaming kernels only; GCC knows them since 8, Clang since 6.
ARM_SETS = {"portable": [], "neon": [], "neondot": ["-march=armv8.2-a+dotprod"]}
INSTRUCTION_SETS = {"x86_64": X86_SETS, "amd64": X86_SETS, "aarch64": ARM_SETS, "arm64": ARM_SETS}
# Left out where the compiler does not know them; else every source has -DDYNCP_WITH_<NAME>.
NEWER_SETS = ["amx", "neondot"]

DEFAULT_CUDA_ARCHS = "80;90;100"

COMMON_FLAGS = ["-O3", "-fPIC", "-Wall", "-Wextra", "-Wno-psabi", "-fno-math-errno"]
COMMON_FLAGS += ["-fvisibility=hidden", "-fvisibility-inlines-hidden"]


def find_compiler() -> str | None:
    """The C++ compiler to use, or None when there is none."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in candidates if shutil.which(shlex.split(name)[0])), None)


def further_flags() -> list[str]:
    """The compiler flags that the user adds."""
    return shlex.split(os.environ.get("DYNCP_CXXFLAGS", ""))


def instruction_sets(compiler: list[str], machine: str) -> tuple[dict[str, list[str]], list[str]]:
    """The sets that this compiler can build for a machine, each with its flags, and the flags of every source."""
    sets, flags = dict(INSTRUCTION_SETS.get(machine.lower(), {"portable": []})), []
    for name in [name for name in NEWER_SETS if name in sets]:
        probe = [*compiler, *sets[name], "-E", "-x", "c++", os.devnull, "-o", os.devnull]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            flags.append(f"-DDYNCP_WITH_{name.upper()}")
        else:
            del sets[name]
    return sets, flags


def has_kernels(name: str, source: str) -> bool:
    """Whether a source of csrc/core/kernels, without its ending, is compiled for an instruction set."""
    return name not in (["amx"] if source.startswith("stream_") else ["avx512vnni", "neondot"])


def reason_for_no_extension() -> str | None:
    """Why the extension cannot be built here, or None when it can."""
    if os.environ.get("DYNCP_NO_EXTENSION", "0") not in ("", "0"):
        return "DYNCP_NO_EXTENSION is set"
    if not sys.platform.startswith(("linux", "darwin")):
        return f"the build supports Linux and macOS (got {sys.platform})"
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not importable here; install torch first and build with `pip install . --no-build-isolation`"
    if find_compiler() is None:
        return "no C++ compiler was found; install g++ or clang++ and install the package again"
    return None


def python_headers() -> Path | None:
    """The folder of Python.h, or None when it is not installed."""
    folder = Path(sysconfig.get_path("include"))
    return folder if (folder / "Python.h").exists() else None


def find_nvcc() -> str | None:
    """The CUDA compiler: on the path, below CUDA_HOME, or where toolkits are installed by default."""
    if path := shutil.which("nvcc"):
        return path
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if root and (path := shutil.which("nvcc", path=os.path.join(root, "bin"))):
            return path
    return None


def builds_cuda() -> bool:
    """Whether the CUDA kernels are built: as DYNCP_CUDA says, or where torch has CUDA and nvcc is there."""
    import torch

    wish = os.environ.get("DYNCP_CUDA", "")
    if wish in ("0", "1"):
        return wish == "1"
    return torch.version.cuda is not None and find_nvcc() is not None


def cuda_architectures() -> list[str]:
    """Compute capabilities to build for, without the point."""
    import torch

    wish = os.environ.get("DYNCP_CUDA_ARCHS", "")
    if not wish and torch.cuda.is_available():
        pairs = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
        return sorted(f"{major}{minor}" for major, minor in pairs)
    return [name.strip() for name in (wish or DEFAULT_CUDA_ARCHS).split(";") if name.strip()]


class Job(NamedTuple):
    """A source to compile; `version` is that of what it is compiled against, if it is not part of the command."""

    compiler: list[str]
    source: Path
    target: Path
    flags: list[str]
    version: str = ""


def core_jobs(compiler: list[str], machine: str = platform.machine(), objects: Path = OBJECTS) -> list[Job]:
    """The torch-free core for a machine, its kernels once per instruction set."""
    sets, set_flag = instruction_sets(compiler, machine)
    flags = [*host_flags(compiler), *set_flag]
    jobs = [
        Job(compiler, source, objects / f"core.{source.stem}.o", flags)
        for source in sorted((CSRC / "core").glob("*.cpp"))
    ]
    for source in sorted((CSRC / "core" / "kernels").glob("*.cpp")):
        for name, own in sets.items():
            if has_kernels(name, source.stem):
                target = objects / f"kernels.{source.stem}.{name}.o"
                jobs.append(Job(compiler, source, target, [*flags, *own, f"-DDYNCP_ISA={name}"]))
    return jobs


def host_flags(compiler: list[str]) -> list[str]:
    """What every C++ source is compiled with; asks for C++17 only where the compiler's own default is older."""
    probe = subprocess.run([*compiler, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True)
    # Contraction is asked for by name because the default differs between compilers and language modes; without it the
    # micro-kernels would multiply and add separately.  Clang's "fast" depends on what a function is inlined into, so
    # that frames together would not get the bits of each alone; GCC does not know "on".
    contraction = "on" if "#define __clang__ " in probe.stdout else "fast"
    flags = [*COMMON_FLAGS, f"-ffp-contract={contraction}", f"-I{CSRC}", *further_flags()]
    for line in probe.stdout.splitlines():
        if line.startswith("#define __cplusplus "):
            return flags if int(line.split()[-1].rstrip("L")) >= 201703 else [*flags, "-std=gnu++17"]
    return flags


def build_core(compiler: list[str], folder: Path, objects: Path | None = None, extra: Sequence[str] = ()) -> None:
    """Build the core and its C example for the compiler's target, without torch and Python.

    Writes libdyncp.a, dyncp.h and enhance_wav; `extra` are further flags of every step.
    """

    def ask(question: str) -> str:
        return subprocess.run([*compiler, question], capture_output=True, text=True, check=True).stdout.strip()

    target = ask("-dumpmachine")
    machine = target.partition("-")[0]
    if objects is None:
        objects = OBJECTS if machine == platform.machine() else OBJECTS / target
    objects.mkdir(parents=True, exist_ok=True)
    jobs = [job._replace(flags=[*job.flags, *extra]) for job in core_jobs(compiler, machine, objects)]
    compile_changed(jobs)
    folder.mkdir(parents=True, exist_ok=True)
    library, example = folder / "libdyncp.a", folder / "enhance_wav"
    library.unlink(missing_ok=True)
    run([ask("-print-prog-name=ar"), "rcs", str(library), *[str(job.target) for job in jobs]])
    shutil.copy(CSRC / "core" / "dyncp.h", folder)
    source = str(CSRC / "example" / "enhance_wav.c")
    run([*compiler, "-O2", f"-I{CSRC}", *extra, "-x", "c", "-std=c99", "-c", source, "-o", f"{example}.o"])
    run([*compiler, *further_flags(), *extra, f"{example}.o", str(library), "-o", str(example)])
    os.remove(f"{example}.o")


class BuildCore(Command):
    """`python setup.py build_core --folder FOLDER`: the library for programs in C; CXX may be a cross compiler."""

    user_options: ClassVar = [("folder=", None, "where the library, the header and the example go")]

    def initialize_options(self) -> None:
        """Default: below build/."""
        self.folder = str(ROOT / "build" / "core")

    def finalize_options(self) -> None:
        """Nothing depends on other commands."""

    def run(self) -> None:
        """Build with the compiler that is found."""
        compiler = find_compiler()
        if compiler is None:
            raise RuntimeError("building the core needs a C++ compiler (got none)")
        with building():
            build_core(shlex.split(compiler), Path(self.folder))


@contextmanager
def building() -> Iterator[None]:
    """One build at a time uses the objects."""
    OBJECTS.mkdir(parents=True, exist_ok=True)
    with open(OBJECTS / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_changed(jobs: Iterable[Job], force: bool = False) -> bool:
    """Compile, in parallel, what has another command, source or header than before; say whether anything had."""
    workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        return any(list(pool.map(lambda job: _compile(job, force), jobs)))


def _compile(job: Job, force: bool) -> bool:
    depfile, stamp, fresh = (job.target.with_suffix(ending) for ending in (".d", ".cmd", ".new.o"))
    command = [*job.compiler, *job.flags, "-c", str(job.source), "-MMD", "-MF", str(depfile), "-o", str(fresh)]
    signature = " ".join([*command, job.version])
    if not force and _is_current(job.target, depfile, stamp, signature):
        return False
    run(command)
    os.replace(fresh, job.target)
    stamp.write_text(signature)
    return True


def _is_current(target: Path, depfile: Path, stamp: Path, signature: str) -> bool:
    if not (target.exists() and depfile.exists() and stamp.exists()) or stamp.read_text() != signature:
        return False
    dependencies = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    built = target.stat().st_mtime
    return all(os.path.exists(name) and os.path.getmtime(name) <= built for name in dependencies)


def run(command: list[str]) -> None:
    """Run a compiler; its warnings are shown, its failure is the build's."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.stderr:
        print(result.stderr, file=sys.stderr, flush=True)
    if result.returncode != 0:
        raise RuntimeError(
            f"building the extension failed: {shlex.join(command)}\n{result.stderr}\n"
            "Set DYNCP_NO_EXTENSION=1 to install the pure-Python package instead."
        )


def torch_cuda_flags(compiler: list[str], torch_root: Path) -> list[str]:
    """What links torch's CUDA library, which is found by its name in the process that has loaded torch.

    A torch without CUDA has none, so an empty one of that name stands for it.
    """
    if (torch_root / "lib" / "libtorch_cuda.so").exists():
        return ["-ltorch_cuda"]
    stub = OBJECTS / "stub" / "libtorch_cuda.so"
    stub.parent.mkdir(parents=True, exist_ok=True)
    run([*compiler, "-shared", "-x", "c", os.devnull, f"-Wl,-soname,{stub.name}", "-o", str(stub)])
    return [f"-L{stub.parent}", "-Xlinker", "--no-as-needed", "-ltorch_cuda"]


class BuildExtension(build_ext):
    """Compiles csrc/ with the plain compiler driver."""

    def build_extension(self, ext: Extension) -> None:
        """Build the shared library of `ext` and put it where setuptools expects it."""
        import torch

        compiler = find_compiler()
        assert compiler is not None, "setup() offers the extension only when a compiler is there"
        torch_root = Path(torch.__file__).resolve().parent
        with building():
            builds = {"_C": self._build, "_C_cuda": self._build_cuda, "_frame_call": self._build_frame_call}
            build = builds[ext.name.rpartition(".")[2]]
            build(shlex.split(compiler), torch_root, torch.__version__, Path(self.get_ext_fullpath(ext.name)))

    def _build(self, compiler: list[str], torch_root: Path, torch_version: str, output: Path) -> None:
        flags = [*host_flags(compiler), *self._torch_flags(torch_root)]
        jobs = core_jobs(compiler) + [
            Job(compiler, source, OBJECTS / f"torch.{source.stem}.o", flags, torch_version)
            for source in sorted((CSRC / "torch").glob("*.cpp"))
        ]
        changed = compile_changed(jobs, self.force)
        objects = [str(job.target) for job in jobs]
        link = [*compiler, *further_flags(), "-shared", *objects, f"-L{torch_root / 'lib'}", "-ltorch_cpu"]
        self._link(link, torch_version, output, changed)

    def _build_frame_call(self, compiler: list[str], torch_root: Path, torch_version: str, output: Path) -> None:
        """The fast way from Python into the streaming engine: a module that finds everything else at run time."""
        flags = [*host_flags(compiler), f"-isystem{torch_root / 'include'}", f"-isystem{python_headers()}"]
        target = OBJECTS / "python.frame_call.o"
        job = Job(compiler, CSRC / "python" / "frame_call.cpp", target, flags, torch_version)
        changed = compile_changed([job], self.force)
        self._link([*compiler, *further_flags(), "-shared", str(target)], torch_version, output, changed)

    def _build_cuda(self, compiler: list[str], torch_root: Path, torch_version: str, output: Path) -> None:
        """The CUDA kernels, with nvcc, and their binding: a library of its own, loaded when a back-end asks for it."""
        nvcc = find_nvcc()
        if nvcc is None:
            raise RuntimeError("building the CUDA kernels needs nvcc, on the path or below CUDA_HOME (got none)")
        architectures = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in cuda_architectures()]
        newest = cuda_architectures()[-1]
        architectures.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
        flags = ["-O3", "-std=c++17", f"-I{CSRC}", "-Xcompiler", "-fPIC,-fvisibility=hidden", *architectures]
        jobs = [
            Job([nvcc], source, OBJECTS / f"cuda.{source.stem}.o", flags)
            for source in sorted((CSRC / "cuda").glob("*.cu"))
        ]
        flags = [*host_flags(compiler), *self._torch_flags(torch_root)]
        jobs += [
            Job(compiler, source, OBJECTS / f"cuda.{source.stem}.o", flags, torch_version)
            for source in sorted((CSRC / "cuda").glob("*.cpp"))
        ]
        changed = compile_changed(jobs, self.force)
        libraries = ["-ltorch_cpu", *torch_cuda_flags(compiler, torch_root)]
        link = [nvcc, "-shared", *[str(job.target) for job in jobs], f"-L{torch_root / 'lib'}", *libraries]
        self._link(link, torch_version, output, changed)

    @staticmethod
    def _torch_flags(torch_root: Path) -> list[str]:
        return [f"-isystem{torch_root / 'include'}", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]

    def _link(self, link: list[str], torch_version: str, output: Path, changed: bool) -> None:
        """Link `output` when an object, the command or torch has changed."""
        if sys.platform == "darwin":
            link = [*link, "-undefined", "dynamic_lookup"]
        signature = hashlib.sha256(" ".join([*link, torch_version]).encode()).hexdigest()
        stamp = OBJECTS / f"{output.name}.link"
        current = stamp.exists() and stamp.read_text() == f"{signature} {output}"
        if output.exists() and current and not changed:
            return
        # The library is replaced, never rewritten in place: a running process keeps the file that it has mapped.
        output.parent.mkdir(parents=True, exist_ok=True)
        fresh = output.with_name(output.name + ".new")
        run([*link, "-o", str(fresh)])
        os.replace(fresh, output)
        stamp.write_text(f"{signature} {output}")


def main() -> None:
    """Build with the extension where that is possible, and say why where it is not."""
    reason = reason_for_no_extension()
    if reason is not None:
        print(f"dyncp_kernels: installing without the native extension: {reason}.", file=sys.stderr, flush=True)
        setup(cmdclass={"build_core": BuildCore})
        return
    names = ["_C"]
    if builds_cuda():
        names.append("_C_cuda")
    if python_headers() is not None:
        names.append("_frame_call")
    else:
        print("dyncp_kernels: no Python.h here, so streams are called through torch's dispatcher.", file=sys.stderr)
    setup(
        ext_modules=[Extension(f"dyncp_kernels.{name}", sources=[], py_limited_api=True) for name in names],
        cmdclass={"build_core": BuildCore, "build_ext": BuildExtension},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


if __name__ == "__main__":
    main()
